"""Train the UNet of a Stable unCLIP on (latents, CLIP image embedding) pairs and save the diffusers folder.

The condition enters exactly as `StableUnCLIPImg2ImgPipeline` feeds it: normalised, noised at a level, un-normalised and
concatenated with the code of the level; a dropped condition is a zero vector, which is the pipeline's negative.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableUnCLIPImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
    StableUnCLIPImageNormalizer,
)
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from torch import Tensor, nn

from alignment.fit import BatchAt, FitConfig, FitResult, fit
from alignment.runtime import STORED_WEIGHTS, Runtime
from generation.empty_prompt import EMPTY_PROMPT_FILE


class DenoiserConfig(BaseModel):
    """Sizes of the UNet and how it is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block_out_channels: tuple[int, int, int] = (64, 128, 192)
    layers_per_block: int = Field(default=1, gt=0)
    head_dim: int = Field(default=32, gt=0)
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    noised_share: float = Field(default=0.1, ge=0, le=1, description="share of conditions noised at a random level")
    max_noise_level: int = Field(default=200, gt=0, lt=1000)


def build_unet(config: DenoiserConfig, latent_channels: int, embed_dim: int, text_dim: int) -> UNet2DConditionModel:
    """Build an untrained UNet for 8x8 latents whose class label is the noised image embedding with its level."""
    unet: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type=None,  # at 2x2 it costs a fifth of a step
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        cross_attention_dim=text_dim,
        attention_head_dim=tuple(max(width // config.head_dim, 1) for width in config.block_out_channels),
        use_linear_projection=True,
        norm_num_groups=16,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * embed_dim,
        resnet_time_scale_shift="scale_shift",
    )
    return unet


def noise_scheduler() -> DDPMScheduler:
    """Give the training schedule: v-prediction with zero terminal signal-to-noise ratio (arXiv:2305.08891)."""
    return DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip


class _Denoise(nn.Module):
    """The UNet with the empty prompt built in."""

    def __init__(self, unet: UNet2DConditionModel, empty_prompt: Tensor) -> None:
        super().__init__()
        self.unet = unet
        self.register_buffer("empty_prompt", empty_prompt, persistent=False)

    def forward(self, noisy: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:
        prompt = self.empty_prompt.expand(len(noisy), -1, -1)  # type: ignore[operator]
        velocity: Tensor = self.unet(noisy, timesteps, encoder_hidden_states=prompt, class_labels=class_labels).sample
        return velocity


def noised_condition(
    image_embeds: Tensor, levels: Tensor, noise: Tensor, normalizer: StableUnCLIPImageNormalizer, noiser: DDPMScheduler
) -> Tensor:
    """Build class labels, (n, 2 d), the way `StableUnCLIPImg2ImgPipeline.noise_image_embeddings` does."""
    mean, std = normalizer.mean.detach(), normalizer.std.detach()
    noised = noiser.add_noise((image_embeds - mean) / std, noise, levels) * std + mean
    code = get_timestep_embedding(levels, image_embeds.shape[-1], flip_sin_to_cos=True, downscale_freq_shift=0)
    return torch.cat([noised, code], dim=1)


def train_unet(
    unet: UNet2DConditionModel,
    batch_at: BatchAt,
    normalizer: StableUnCLIPImageNormalizer,
    empty_prompt: Tensor,
    config: DenoiserConfig,
    fit_config: FitConfig,
    runtime: Runtime,
    run_dir: Path,
) -> FitResult:
    """Train a UNet in place and leave the averaged (EMA) weights in it.

    Parameters
    ----------
    batch_at : callable
        ``batch_at(step, rank, world) -> (latents (b, c, 8, 8), image_embeds (b, d) raw, levels (b,))``: float32,
        float32, and int64 noise levels below which an embedding is not shown, 0 where it is exact.
    empty_prompt : Tensor, (1, n_tokens, text_dim)
        Text states of the empty prompt; the UNet never sees another.
    """
    unet.set_attn_processor(AttnProcessor())  # fused attention takes a quarter longer on so few tokens
    schedule = noise_scheduler()
    noiser = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")

    def drawn_at(step: int, rank: int, world: int) -> tuple[Tensor, ...]:
        latents, image_embeds, least = batch_at(step, rank, world)
        n = len(latents)
        generator = runtime.generator(step, rank)
        # density ~ sqrt(t): what a picture shows is settled at high noise, and that is what is hard to learn here
        timesteps = (1000 * torch.rand(n, generator=generator) ** (2 / 3)).long().clamp(max=999)
        levels = torch.randint(0, config.max_noise_level, (n,), generator=generator)
        levels = torch.maximum(least, levels * (torch.rand(n, generator=generator) < config.noised_share))
        noise = torch.randn(image_embeds.shape, generator=generator)
        labels = noised_condition(image_embeds, levels, noise, normalizer, noiser)
        labels = labels * (torch.rand(n, 1, generator=generator) >= config.condition_dropout)
        return latents, torch.randn(latents.shape, generator=generator), timesteps, labels

    def loss_fn(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        latents, noise, timesteps, labels = batch
        velocity = module(schedule.add_noise(latents, noise, timesteps), timesteps, labels)
        return F.mse_loss(velocity.float(), schedule.get_velocity(latents, noise, timesteps))

    result = fit(_Denoise(unet, empty_prompt), loss_fn, drawn_at, fit_config, runtime, run_dir)
    unet.load_state_dict({name.removeprefix("unet."): value for name, value in result.weights.items()})
    unet.eval()
    return result


@dataclass(frozen=True)
class Towers:
    """The transformers parts of a Stable unCLIP folder; our own decoder loads none of them."""

    text_encoder: nn.Module
    tokenizer: object
    image_encoder: nn.Module
    image_processor: object


@dataclass(frozen=True)
class UnclipParts:
    """The parts of a Stable unCLIP folder, in float32."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    normalizer: StableUnCLIPImageNormalizer
    towers: Towers
    empty_prompt: Tensor


def load_unclip(folder: Path) -> UnclipParts:
    """Open a folder that `save_unclip` wrote, for further training."""
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.float32)
    prompt = load_file(folder / EMPTY_PROMPT_FILE)["prompt_embeds"]
    normalizer = pipeline.image_normalizer.requires_grad_(False)
    towers = Towers(pipeline.text_encoder, pipeline.tokenizer, pipeline.image_encoder, pipeline.feature_extractor)
    return UnclipParts(pipeline.unet, pipeline.vae, normalizer, towers, prompt)


def normalizer_of(image_embeds: Tensor) -> StableUnCLIPImageNormalizer:
    """Make the normaliser of a set of raw embeddings, (n, d): their mean and standard deviation per dimension."""
    normalizer: StableUnCLIPImageNormalizer = StableUnCLIPImageNormalizer(embedding_dim=image_embeds.shape[1])
    normalizer.mean.data.copy_(image_embeds.mean(dim=0, keepdim=True))
    normalizer.std.data.copy_(image_embeds.std(dim=0, keepdim=True))
    normalizer.requires_grad_(False)
    return normalizer


def save_unclip(
    folder: Path,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    normalizer: StableUnCLIPImageNormalizer,
    towers: Towers,
) -> None:
    """Write the folder that `StableUnCLIPImg2ImgPipeline.from_pretrained` opens.

    UNet and VAE are stored as `STORED_WEIGHTS`. The towers stay float32: transformers computes in the stored type,
    diffusers in float32, and a plain ``from_pretrained`` must fit together.
    """
    pipeline = StableUnCLIPImg2ImgPipeline(
        feature_extractor=towers.image_processor,
        image_encoder=towers.image_encoder,
        image_normalizer=normalizer,
        image_noising_scheduler=DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2"),
        tokenizer=towers.tokenizer,
        text_encoder=towers.text_encoder,
        unet=unet,
        scheduler=DDIMScheduler.from_config(noise_scheduler().config, set_alpha_to_one=True),
        vae=vae,
    )
    for part in (unet, vae):
        part.to(dtype=STORED_WEIGHTS)
    pipeline.save_pretrained(folder, safe_serialization=True)
    for part in (unet, vae):
        part.to(dtype=torch.float32)
