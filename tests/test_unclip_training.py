import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableUnCLIPImg2ImgPipeline
from PIL import Image
from tiny_bundle import tiny_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

from alignment.fit import FitConfig
from alignment.image_encoder import ImageEncoderConfig, build_image_encoder, image_processor
from alignment.runtime import Runtime
from generation.autoencoder import AutoencoderConfig, build_autoencoder
from generation.empty_prompt import save_empty_prompt
from generation.finetune import FinetuneConfig, finetune_unclip
from generation.image_decoder import StableUnCLIPConfig, build_decoder
from generation.unclip_training import (
    DenoiserConfig,
    Towers,
    build_unet,
    load_unclip,
    noised_condition,
    normalizer_of,
    save_unclip,
    train_unet,
)

SIZES = DenoiserConfig(block_out_channels=(16, 16, 32), head_dim=8)
DIM = 12


@pytest.fixture(scope="module")
def embeds():
    return torch.randn(64, DIM, generator=torch.Generator().manual_seed(0)) * 3 + 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory, embeds):
    """A trained (hardly) folder in diffusers format."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("unclip")
    latents = torch.randn(64, 8, 8, 8)
    prompt = torch.zeros(1, 4, 16)
    unet = build_unet(SIZES, 8, DIM, 16)
    normalizer = normalizer_of(embeds)

    def batch_at(step, rank, world):
        rows = torch.from_numpy(np.random.default_rng(step).integers(0, 64, 8))
        return latents[rows], embeds[rows], torch.zeros_like(rows)

    fit_config = FitConfig(max_steps=3, lr=1e-3, ema_decay=0.9, checkpoint_every=10)
    train_unet(unet, batch_at, normalizer, prompt, SIZES, fit_config, Runtime(device="cpu", seed=0), path / "run")
    vae: AutoencoderKL = build_autoencoder(AutoencoderConfig(block_out_channels=(8, 8, 8, 8)))
    vision = build_image_encoder(ImageEncoderConfig(image_size=32, width=32, layers=1), DIM)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=10, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=4,
        )
    )  # fmt: skip
    towers = Towers(text, tiny_tokenizer(path / "words"), vision, image_processor(32))
    save_unclip(path / "unclip", unet, vae, normalizer, towers)
    save_empty_prompt(path / "unclip", prompt)
    return path / "unclip"


def test_condition_equals_the_pipelines_own(folder, embeds):
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(folder)
    levels = torch.tensor([0, 100, 250])
    noise = torch.randn(3, DIM)
    theirs = torch.cat(
        [pipeline.noise_image_embeddings(embeds[i : i + 1], int(levels[i]), noise[i : i + 1]) for i in range(3)]
    )
    noiser = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    ours = noised_condition(embeds[:3], levels, noise, pipeline.image_normalizer, noiser)
    assert ours.shape == (3, 2 * DIM)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_folder_opens_with_diffusers_alone_and_draws_from_a_picture(folder):
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    picture = Image.fromarray(np.full((32, 32, 3), 128, dtype=np.uint8))
    drawn = pipeline(picture, "", num_inference_steps=2, output_type="np").images
    assert drawn.shape == (1, 64, 64, 3) and np.isfinite(drawn).all()


def test_saved_folder_generates(folder, embeds):
    decoder = build_decoder(StableUnCLIPConfig(), folder, Runtime(device="cpu"))
    images = decoder.generate(embeds[:2].numpy(), seeds=[1, 2], num_inference_steps=3, guidance_scale=2.0)
    assert images.shape == (2, 64, 64, 3) and images.dtype == np.uint8


def test_predictions_are_marked_with_their_noise_level(folder, embeds, tmp_path, monkeypatch):
    seen = []

    def spy(image_embeds, levels, noise, normalizer, noiser):
        seen.append((image_embeds, levels))
        return noised_condition(image_embeds, levels, noise, normalizer, noiser)

    monkeypatch.setattr("generation.unclip_training.noised_condition", spy)
    config = FinetuneConfig(
        batch=16, predicted_share=0.5, predicted_level=30, denoiser=SIZES.model_copy(update={"noised_share": 0.0}),
        fit=FitConfig(max_steps=3, lr=1e-3, checkpoint_every=10),
    )  # fmt: skip
    mirrored = -embeds.numpy()
    finetune_unclip(
        load_unclip(folder), torch.randn(64, 8, 8, 8), embeds, mirrored, config, Runtime(device="cpu", seed=0), tmp_path
    )
    for shown, levels in seen:
        similarity = torch.nn.functional.normalize(shown) @ torch.nn.functional.normalize(-embeds).T
        predicted = similarity.max(dim=1).values > 0.999
        assert 0 < predicted.sum() < 16
        assert torch.equal(levels, torch.where(predicted, 30, 0))


def test_finetuning_changes_the_unet_only(folder, embeds, tmp_path):
    before, parts = load_unclip(folder), load_unclip(folder)
    config = FinetuneConfig(batch=8, denoiser=SIZES, fit=FitConfig(max_steps=2, lr=1e-3, checkpoint_every=10))
    predicted = embeds[:16].numpy() + 0.5
    latents = torch.randn(64, 8, 8, 8)
    finetune_unclip(parts, latents, embeds, predicted, config, Runtime(device="cpu", seed=0), tmp_path)
    after = load_unclip(tmp_path / "unclip")
    changed = [
        not torch.equal(one, other)
        for one, other in zip(before.unet.parameters(), after.unet.parameters(), strict=True)
    ]
    assert np.mean(changed) > 0.9
    for before_part, after_part in (
        (before.vae, after.vae),
        (before.normalizer, after.normalizer),
        (before.towers.text_encoder, after.towers.text_encoder),
        (before.towers.image_encoder, after.towers.image_encoder),
    ):
        for one, other in zip(before_part.parameters(), after_part.parameters(), strict=True):
            assert torch.equal(one, other)
