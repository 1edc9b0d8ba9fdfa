import numpy as np
import torch

from alignment.fit import FitConfig
from alignment.runtime import Runtime
from generation.autoencoder import (
    AutoencoderConfig,
    build_autoencoder,
    decode_latents,
    encode_latents,
    polish_decoder,
    psnr,
    reconstruction_loss,
    standardise_latents,
    to_pixels,
    train_autoencoder,
)
from generation.scenes import render, sample_scenes


def test_training_reconstructs_better_and_latents_have_unit_spread(tmp_path):
    images = render(sample_scenes("train", 64, seed=0))
    sizes = AutoencoderConfig(block_out_channels=(8, 8, 16, 16))
    fit_config = FitConfig(max_steps=12, lr=4e-3, checkpoint_every=100, validate_every=1)

    def images_at(step, rank, world):
        return images[np.random.default_rng(step).choice(64, 8)]

    runtime = Runtime(device="cpu", seed=0)
    vae, result = train_autoencoder(images_at, sizes, fit_config, runtime, tmp_path, images[:16])
    assert result.finished
    latents = encode_latents(vae, images[:16], runtime)
    assert latents.shape == (16, 8, 8, 8)
    every = encode_latents(vae, images, runtime)
    assert float(every.mean(dim=(0, 2, 3)).abs().max()) < 0.1
    assert float((every.std(dim=(0, 2, 3)) - 1).abs().max()) < 0.1
    decoded = decode_latents(vae, latents, runtime)
    assert decoded.shape == (16, 64, 64, 3) and decoded.dtype == np.uint8
    untrained = np.full_like(images[:16], 255)
    assert psnr(decoded, images[:16]) > psnr(untrained, images[:16])


def test_standardised_latents_decode_to_the_same_pictures():
    torch.manual_seed(0)
    vae = build_autoencoder(AutoencoderConfig(block_out_channels=(8, 8, 16, 16))).eval()
    images = render(sample_scenes("train", 8, seed=0))
    runtime = Runtime(device="cpu", seed=0)
    before = encode_latents(vae, images, runtime, scaled=False)
    logvar = vae.encode(to_pixels(images)).latent_dist.logvar
    pixels = vae.decode(before).sample
    standardise_latents(vae, before)
    after = encode_latents(vae, images, runtime)
    assert torch.allclose(after.mean(dim=(0, 2, 3)), torch.zeros(8), atol=1e-4)
    assert torch.allclose(after.std(dim=(0, 2, 3)), torch.ones(8), atol=1e-4)
    assert torch.allclose(vae.decode(after).sample, pixels, atol=1e-4)
    spread = before.std(dim=(0, 2, 3))[:, None, None]
    assert torch.allclose(vae.encode(to_pixels(images)).latent_dist.logvar, logvar - 2 * spread.log(), atol=1e-4)


def test_polishing_leaves_the_encoder_alone(tmp_path):
    torch.manual_seed(0)
    sizes = AutoencoderConfig(block_out_channels=(8, 8, 16, 16), latent_gain=0.3)
    vae = build_autoencoder(sizes).eval()
    images = render(sample_scenes("train", 32, seed=0))
    runtime = Runtime(device="cpu", seed=0)
    latents = encode_latents(vae, images, runtime)
    before = decode_latents(vae, latents[:8], runtime)
    fit_config = FitConfig(max_steps=6, lr=2e-3, checkpoint_every=100, validate_every=3)
    polish_decoder(vae, latents, images, 8, sizes, fit_config, runtime, tmp_path, images[:8])
    assert torch.equal(encode_latents(vae, images, runtime), latents)
    assert psnr(decode_latents(vae, latents[:8], runtime), images[:8]) > psnr(before, images[:8])


def test_psnr_matches_its_definition():
    target = np.zeros((2, 4, 4, 3), np.uint8)
    assert abs(psnr(target + 16, target) - 20 * np.log10(255 / 16)) < 1e-9


def test_loss_is_zero_for_equal_pictures_and_sees_edges():
    pixels = to_pixels(render(sample_scenes("train", 2, seed=0)))
    assert float(reconstruction_loss(pixels, pixels, 0.5)) == 0
    shifted = pixels + 0.1
    assert torch.allclose(reconstruction_loss(shifted, pixels, 0.5), torch.tensor(0.01), atol=1e-5)
