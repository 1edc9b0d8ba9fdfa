"""Train the small VAE of the demo decoder: 64x64 RGB to 8x8 latents with 8 channels and back."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from tqdm import tqdm

from alignment.fit import BatchAt, FitConfig, FitResult, fit
from alignment.runtime import Runtime

Pictures = npt.NDArray[np.uint8]


class AutoencoderConfig(BaseModel):
    """Sizes and loss weights of the VAE."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block_out_channels: tuple[int, ...] = (16, 32, 64, 64)
    layers_per_block: int = Field(default=1, gt=0)
    latent_channels: int = Field(default=8, gt=0)
    kl_weight: float = Field(default=1e-6, ge=0)
    latent_noise: float = Field(default=0.25, ge=0, description="noise on unit-variance latents while polishing")
    latent_gain: float = Field(default=0.6, ge=0, description="largest excess of their amplitude and local contrast")
    edge_weight: float = Field(default=1.0, ge=0, description="weight of the squared error of pixel differences")


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """Build an untrained VAE that halves the picture once per block but the last."""
    n_blocks = len(config.block_out_channels)
    vae: AutoencoderKL = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * n_blocks,
        up_block_types=("UpDecoderBlock2D",) * n_blocks,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=2,  # with few channels per group the absolute colour would be normalised away
        sample_size=64,
    )
    with torch.no_grad():  # start with little noise in the latents, or the decoder learns to do without them
        vae.quant_conv.bias[config.latent_channels :] = -6.0
    return vae.to(memory_format=torch.channels_last)  # a third faster on a CPU


def load_vae(folder: Path) -> AutoencoderKL:
    """Open a VAE that ``save_pretrained`` wrote."""
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder, use_safetensors=True)
    return vae.to(memory_format=torch.channels_last)


def to_pixels(images: Pictures) -> Tensor:
    """Turn (n, h, w, 3) uint8 into (n, 3, h, w) float32 in [-1, 1], the range of diffusers."""
    # (n, h, w, c) -> (n, c, h, w)
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


class _Reconstruct(nn.Module):
    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(pixels).latent_dist
        mean, logvar = posterior.mean, posterior.logvar
        latents = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return self.vae.decode(latents).sample, kl


def reconstruction_loss(output: Tensor, target: Tensor, edge_weight: float) -> Tensor:
    """Squared error of pixels plus ``edge_weight`` times that of horizontal and vertical differences.

    An absolute error stalls here: the median of a picture is its background, and small objects are never drawn.
    """
    loss = F.mse_loss(output, target)
    for axis in (2, 3):
        loss = loss + edge_weight * F.mse_loss(output.diff(dim=axis), target.diff(dim=axis))
    return loss


def train_autoencoder(
    batch_at: BatchAt,
    config: AutoencoderConfig,
    fit_config: FitConfig,
    runtime: Runtime,
    run_dir: Path,
    held_out: Pictures,
) -> tuple[AutoencoderKL, FitResult]:
    """Train a VAE on pictures and standardise its latents.

    Parameters
    ----------
    batch_at : callable
        ``batch_at(step, rank, world) -> uint8 (b, h, w, 3)``.
    held_out : uint8 (n, h, w, 3)
        Validation pictures; their PSNR in dB is logged.
    """
    torch.manual_seed(runtime.seed)
    vae = build_autoencoder(config)

    def pixels_at(step: int, rank: int, world: int) -> Tensor:
        return to_pixels(batch_at(step, rank, world))

    def loss_fn(module: nn.Module, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        output, kl = module(pixels)
        error = reconstruction_loss(output.float(), pixels, config.edge_weight)
        return error + config.kl_weight * kl, {"kl": kl.detach()}

    def validate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, _Reconstruct)
        latents = encode_latents(module.vae, held_out, runtime, scaled=False)
        return {"psnr": psnr(decode_latents(module.vae, latents, runtime, scaled=False), held_out)}

    result = fit(_Reconstruct(vae), loss_fn, pixels_at, fit_config, runtime, run_dir, validate)
    vae.load_state_dict({name.removeprefix("vae."): value for name, value in result.weights.items()})
    vae.eval()
    sample = np.concatenate([batch_at(step, 0, 1) for step in range(64)])
    standardise_latents(vae, encode_latents(vae, sample, runtime, scaled=False))
    return vae, result


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, latents: Tensor) -> None:
    """Give every latent channel mean 0 and variance 1 over ``latents``, (n, c, h, w), without changing a picture.

    Shift and scale go into the 1x1 convolutions on both sides of the latents. A single ``scaling_factor`` would leave
    channels of small variance to drown in the noise of a sampler; here it becomes 1.
    """
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    n = len(mean)
    out, back = vae.quant_conv, vae.post_quant_conv
    back.bias += back.weight[:, :, 0, 0] @ mean
    back.weight *= std[None, :, None, None]
    out.weight[:n] /= std[:, None, None, None]
    out.bias[:n] = (out.bias[:n] - mean) / std
    out.bias[n:] -= 2 * std.log()
    vae.register_to_config(scaling_factor=1.0)


class _Decode(nn.Module):
    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.vae.decode(latents).sample
        return pixels


def polish_decoder(
    vae: AutoencoderKL,
    latents: Tensor,
    images: Pictures,
    batch: int,
    config: AutoencoderConfig,
    fit_config: FitConfig,
    runtime: Runtime,
    run_dir: Path,
    held_out: Pictures,
) -> FitResult:
    """Train the decoder on with the encoder frozen, in place, so that latents already stored stay valid.

    Parameters
    ----------
    latents : Tensor, (n, c, 8, 8), float32
        Scaled latents of ``images``. Noise is added, amplitude and local contrast are raised at random, as a guided
        generator does: without that, an object 20 % too strong changes its colour (cyan turns white).
    images : uint8 (n, h, w, 3)
    held_out : uint8 (m, h, w, 3)
        Validation pictures; their PSNR in dB is logged.
    """
    vae.requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    factor = vae.config.scaling_factor

    def pairs_at(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        generator = np.random.default_rng([6, step, rank])
        rows = np.sort(generator.choice(len(images), batch // world, replace=False))
        noise = torch.from_numpy(generator.standard_normal((len(rows), *latents.shape[1:]), dtype=np.float32))
        exact = latents[torch.from_numpy(rows)]
        gain = torch.from_numpy(generator.uniform(0, config.latent_gain, (2, len(rows), 1, 1, 1)).astype(np.float32))
        local = exact - F.avg_pool2d(F.pad(exact, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        disturbed = exact * (1 + gain[0]) + local * gain[1] + config.latent_noise * noise
        return disturbed / factor, to_pixels(images[rows])

    def loss_fn(module: nn.Module, pairs: tuple[Tensor, Tensor]) -> Tensor:
        return reconstruction_loss(module(pairs[0]).float(), pairs[1], config.edge_weight)

    def validate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, _Decode)
        return {"psnr": psnr(decode_latents(module.vae, held_out_latents, runtime), held_out)}

    held_out_latents = encode_latents(vae, held_out, runtime)
    result = fit(_Decode(vae), loss_fn, pairs_at, fit_config, runtime, run_dir, validate)
    vae.load_state_dict({name.removeprefix("vae."): value for name, value in result.weights.items()})
    vae.eval()
    return result


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, images: Pictures, runtime: Runtime, *, scaled: bool = True) -> Tensor:
    """Encode pictures to posterior means, (n, c, 8, 8) float32 on the CPU, times ``scaling_factor`` if ``scaled``."""
    factor = vae.config.scaling_factor if scaled else 1.0
    parts = []
    for i in tqdm(range(0, len(images), 250), desc="latents", mininterval=1.0, disable=len(images) < 5000):
        with runtime.autocast():
            posterior = vae.encode(runtime.to_device(to_pixels(images[i : i + 250]))).latent_dist
        parts.append(posterior.mean.float().cpu().contiguous())
    return torch.cat(parts) * factor


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor, runtime: Runtime, *, scaled: bool = True) -> Pictures:
    """Decode latents to uint8 pictures (n, h, w, 3)."""
    factor = vae.config.scaling_factor if scaled else 1.0
    parts = [vae.decode(runtime.to_device(latents[i : i + 100] / factor)).sample for i in range(0, len(latents), 100)]
    # (n, c, h, w) -> (n, h, w, c)
    pixels = torch.cat(parts).cpu().permute(0, 2, 3, 1)
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def psnr(images: Pictures, target: Pictures) -> float:
    """Mean peak signal-to-noise ratio in dB over pictures."""
    error = np.square(images.astype(np.float64) - target.astype(np.float64)).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255.0**2 / np.maximum(error, 1e-9))))
