from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from alignment.feature_store import compute_features
from generation.autoencoder import decode_latents
from generation.latent_targets import LatentSpace


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
        scaling_factor=0.5,
    )
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return folder


def pictures(n: int = 3, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def test_latents_are_what_diffusers_encodes(folder: Path) -> None:
    space, images = LatentSpace(folder, 32), pictures()
    vae = AutoencoderKL.from_pretrained(folder).eval()
    pixels = VaeImageProcessor(vae_scale_factor=4).preprocess([Image.fromarray(image) for image in images])
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    rows = space.encode_images(images)
    assert rows.shape == (3, 4 * 8 * 8) and space.embed_dim == 256 and rows.dtype == np.float32
    assert np.allclose(rows, expected.numpy().reshape(3, -1), atol=1e-5)
    assert np.array_equal(rows, space.encode_images(images))
    assert np.allclose(rows[1:2], space.encode_images(images[1:2]), atol=1e-5)
    assert space.encode_images(images[:0]).shape == (0, 256)


def test_rows_go_back_to_the_decoder(folder: Path) -> None:
    space, images = LatentSpace(folder, 32), pictures()
    latents = space.latents(space.encode_images(images))
    assert latents.shape == (3, 4, 8, 8)
    assert decode_latents(space.vae, latents, space.runtime).shape == (3, 32, 32, 3)


def test_other_sizes_are_resized_as_pil_does(folder: Path) -> None:
    space, images = LatentSpace(folder, 16), pictures(2, 40, 50)
    small = np.stack([np.asarray(Image.fromarray(i).resize((16, 16), Image.Resampling.BICUBIC)) for i in images])
    assert np.array_equal(space.encode_images(images), space.encode_images(small)) and space.embed_dim == 64


def test_latents_can_be_stored_like_any_features(folder: Path, tmp_path: Path) -> None:
    space, images = LatentSpace(folder, 16), pictures()
    features = compute_features(space, {str(i): image for i, image in enumerate(images)}, tmp_path)
    assert np.allclose(features.rows(["2", "0"]), space.encode_images(images[[2, 0]]), atol=1e-5)
    assert space.digest != LatentSpace(folder, 32).digest


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        LatentSpace(folder, 18)
    with pytest.raises(ValueError, match="safetensors"):
        LatentSpace(tmp_path, 16)
    with pytest.raises(ValueError, match=r"uint8 \(n, h, w, 3\)"):
        LatentSpace(folder, 16).encode_images(pictures()[0])
