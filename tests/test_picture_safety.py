"""The check of generated pictures with a small checker in the real format: flags, replacement, refusal to start."""

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_bundle import make_tiny_bundle
from transformers import CLIPConfig

from alignment.runtime import Runtime
from generation.bundle import Bundle
from generation.picture_safety import PictureSafety
from serving.access_settings import PictureSettings
from serving.backend import PictureOrder, Pictures, Preview, Watcher
from serving.settings import ServingSettings
from serving.workers import GeneratorWorker

CPU = Runtime(device="cpu")


def pictures() -> np.ndarray:
    """A red, a blue and a noisy picture, (3, 40, 60, 3)."""
    images = np.zeros((3, 40, 60, 3), dtype=np.uint8)
    images[0, ..., 0] = images[1, ..., 2] = 220
    images[2] = np.random.default_rng(0).integers(0, 255, images[2].shape)
    return images


def write_checker(folder: Path, unwanted: np.ndarray | None = None, threshold: float = 2.0) -> Path:
    """Write a checker of random weights that flags what looks like ``unwanted``, or above a threshold everything."""
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(vision_config=tower | {"image_size": 32, "patch_size": 8}, text_config=tower, projection_dim=12)
    model = StableDiffusionSafetyChecker(config).eval()
    model.special_care_embeds_weights.fill_(2.0)
    model.concept_embeds_weights.fill_(threshold)
    model.save_pretrained(folder, safe_serialization=True)
    if unwanted is not None:
        inputs = torch.from_numpy(PictureSafety(folder, CPU)._input(unwanted))[None]
        with torch.no_grad():
            embeds = model.visual_projection(model.vision_model(inputs)[1])[0]
        model.concept_embeds[4] = embeds
        model.concept_embeds_weights[4] = 0.99
        model.save_pretrained(folder, safe_serialization=True)
    return folder


def test_what_looks_like_something_unwanted_is_flagged(tmp_path: Path) -> None:
    safety = PictureSafety(write_checker(tmp_path / "safety", pictures()[0]), CPU)
    assert safety.flagged(pictures()).tolist() == [True, False, False]
    assert safety.flagged(pictures()[::-1].copy()).tolist() == [False, False, True]


def test_a_folder_without_all_weights_is_refused(tmp_path: Path) -> None:
    folder = write_checker(tmp_path / "safety")
    weights = load_file(folder / "model.safetensors")
    weights.pop("concept_embeds")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="concept_embeds"):
        PictureSafety(folder, CPU)
    # weights that could hold code are not read, whatever else is missing
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="model.safetensors"):
        PictureSafety(folder, CPU)
    with pytest.raises(ValueError, match="holds no safety checker"):
        PictureSafety(tmp_path / "none", CPU)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def worker_of(bundle: Path, **settings: Any) -> GeneratorWorker:
    return GeneratorWorker(Bundle.load(bundle), ServingSettings(bundle=bundle, **settings))


def made(bundle: Path, settings: PictureSettings) -> Pictures:
    async def run() -> Pictures:
        worker = worker_of(bundle, pictures=settings, max_batch_size=2)
        embeds = np.random.default_rng(0).normal(size=(2, 128)).astype(np.float32)
        try:
            return await worker.generate(embeds, PictureOrder(1, seed=0, num_inference_steps=1, guidance_scale=1.0))
        finally:
            await worker.aclose()

    return asyncio.run(run())


def test_pictures_that_are_flagged_are_replaced_and_others_are_not(bundle: Path, tmp_path: Path) -> None:
    unchecked = made(bundle, PictureSettings())
    assert unchecked.flagged is None and unchecked.images.std() > 0
    strict = write_checker(tmp_path / "strict", threshold=-2.0)
    refused = made(bundle, PictureSettings(safety_folder=str(strict)))
    assert refused.flagged is not None and refused.flagged.all() and refused.images.shape == unchecked.images.shape
    assert (refused.images == 128).all()
    lenient = write_checker(tmp_path / "lenient")
    passed = made(bundle, PictureSettings(safety_folder=str(lenient)))
    assert passed.flagged is not None and not passed.flagged.any()
    np.testing.assert_array_equal(passed.images, unchecked.images)


@pytest.mark.parametrize(("threshold", "shown"), [(-2.0, False), (2.0, True)])
def test_previews_are_checked_like_the_pictures_that_they_become(
    bundle: Path, tmp_path: Path, threshold: float, shown: bool
) -> None:
    checker = PictureSettings(safety_folder=str(write_checker(tmp_path / "safety", threshold=threshold)))
    previews: list[Preview] = []

    async def run() -> None:
        worker = worker_of(bundle, pictures=checker, max_batch_size=2)
        embeds = np.random.default_rng(0).normal(size=(1, 128)).astype(np.float32)
        order = PictureOrder(1, seed=0, num_inference_steps=6, guidance_scale=1.0)
        await worker.generate(embeds, order, Watcher(on_preview=previews.append))
        await asyncio.sleep(0.05)
        await worker.aclose()

    asyncio.run(run())
    images = [np.asarray(Image.open(io.BytesIO(one.png)).convert("RGB")) for one in previews]
    assert len(images) >= 3
    assert [bool((image != 128).any()) for image in images] == [shown] * len(images)


def test_a_service_that_requires_a_check_does_not_start_without(bundle: Path) -> None:
    with pytest.raises(ValueError, match="'required'"):
        worker_of(bundle, pictures=PictureSettings(safety="required"))
