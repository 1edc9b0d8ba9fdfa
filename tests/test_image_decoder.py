"""Pictures from embeddings, each backend on tiny random models saved in diffusers' folder format."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from tiny_bundle import make_tiny_image_variation, make_tiny_unclip

from alignment.runtime import Runtime
from generation.empty_prompt import save_empty_prompt
from generation.image_decoder import (
    ImageDecoder,
    ImageDecoderConfig,
    ImageVariationConfig,
    StableUnCLIPConfig,
    build_decoder,
    match_statistics,
)
from generation.sampling import PreviewRequest

D = 12
SETTINGS: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.0}


@dataclass(frozen=True)
class Backend:
    folder: Path
    decoder: ImageDecoder


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(device="cpu")


@pytest.fixture(scope="module")
def unclip(tmp_path_factory: pytest.TempPathFactory, runtime: Runtime) -> Backend:
    folder = make_tiny_unclip(tmp_path_factory.mktemp("unclip") / "model", embed_dim=D, towers=True)
    return Backend(folder, build_decoder(StableUnCLIPConfig(match="none"), folder, runtime))


@pytest.fixture(scope="module")
def variation(tmp_path_factory: pytest.TempPathFactory, runtime: Runtime) -> Backend:
    folder = make_tiny_image_variation(tmp_path_factory.mktemp("variation") / "model", embed_dim=D)
    return Backend(folder, build_decoder(ImageVariationConfig(), folder, runtime))


@pytest.fixture(params=["unclip", "variation"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.getfixturevalue(request.param)


def embeds(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3.0, size=(n, D)).astype(np.float32)


def levels(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_a_decoder_gives_one_uint8_picture_per_row(backend: Backend) -> None:
    images = backend.decoder.generate(embeds(3), seeds=[1, 2, 3], **SETTINGS)
    assert images.shape == (3, backend.decoder.image_size, backend.decoder.image_size, 3)
    assert images.dtype == np.uint8
    assert backend.decoder.embed_dim == D
    assert images.std() > 1


def test_previews_come_at_quarters_for_the_rows_asked_for_and_change_no_picture(backend: Backend) -> None:
    seen: list[tuple[int, int]] = []

    def show(row: int, step: int, image: np.ndarray) -> None:
        seen.append((step, row))
        assert image.shape == (backend.decoder.image_size, backend.decoder.image_size, 3) and image.dtype == np.uint8

    settings: dict[str, Any] = {"seeds": [1, 2, 3], "num_inference_steps": 8, "guidance_scale": 2.0}
    plain = backend.decoder.generate(embeds(3), **settings)
    shown = backend.decoder.generate(embeds(3), **settings, previews=PreviewRequest((0, 2), show))
    assert np.array_equal(plain, shown)
    assert seen == [(step, row) for step in (2, 4, 6) for row in (0, 2)]


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_a_neighbour_in_the_batch_does_not_change_my_picture(backend: Backend, guidance_scale: float) -> None:
    settings = {"num_inference_steps": 3, "guidance_scale": guidance_scale}
    mine, others = embeds(1), embeds(3, seed=5)
    first = backend.decoder.generate(np.concatenate([mine, others]), seeds=[7, 1, 2, 3], **settings)
    second = backend.decoder.generate(np.concatenate([mine, 10 * others[::-1]]), seeds=[7, 8, 9, 10], **settings)
    assert levels(first[0], second[0]) == 0
    assert levels(first[1:], second[1:]) > 10
    assert levels(first[0], backend.decoder.generate(mine, seeds=[7], **settings)[0]) <= 1
    last = backend.decoder.generate(np.concatenate([others, mine]), seeds=[1, 2, 3, 7], **settings)
    assert levels(first[0], last[3]) <= 1


def test_the_seed_decides_the_bytes(backend: Backend) -> None:
    first = backend.decoder.generate(embeds(2), seeds=[4, 5], **SETTINGS)
    assert first.tobytes() == backend.decoder.generate(embeds(2), seeds=[4, 5], **SETTINGS).tobytes()
    other = backend.decoder.generate(embeds(2), seeds=[4, 6], **SETTINGS)
    assert first[0].tobytes() == other[0].tobytes()
    assert levels(first[1], other[1]) > 10


def test_sampling_leaves_the_global_generator_alone(backend: Backend) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    backend.decoder.generate(embeds(1), seeds=[4], **SETTINGS)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_different_embeddings_give_different_pictures(backend: Backend, guidance_scale: float) -> None:
    two = backend.decoder.generate(embeds(2), seeds=[4, 4], num_inference_steps=3, guidance_scale=guidance_scale)
    assert levels(two[0], two[1]) > 10


def test_cancelling_stops_at_the_next_step(backend: Backend) -> None:
    seen = []

    def cancel(step: int, total: int) -> None:
        seen.append((step, total))
        if step == 2:
            raise KeyboardInterrupt

    before = backend.decoder.generate(embeds(1), seeds=[4], **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        backend.decoder.generate(embeds(1), seeds=[4], num_inference_steps=9, guidance_scale=2.0, on_step=cancel)
    assert seen == [(1, 9), (2, 9)]
    assert before.tobytes() == backend.decoder.generate(embeds(1), seeds=[4], **SETTINGS).tobytes()


SCHEDULERS = [
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "PNDMScheduler",
    "HeunDiscreteScheduler",
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers beside numpy 2
@pytest.mark.parametrize("name", SCHEDULERS)
def test_isolation_seeds_and_steps_hold_for_other_schedulers(
    backend: Backend, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    pipeline = backend.decoder._pipeline  # type: ignore[attr-defined]
    scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    monkeypatch.setattr(pipeline, "scheduler", scheduler)
    seen: list[tuple[int, int]] = []
    settings: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 2.0}
    both = backend.decoder.generate(embeds(2), seeds=[4, 5], on_step=lambda *step: seen.append(step), **settings)
    assert seen == sorted(seen) and seen[-1] == (4, 4)
    assert both.tobytes() == backend.decoder.generate(embeds(2), seeds=[4, 5], **settings).tobytes()
    assert levels(both[1], backend.decoder.generate(embeds(2)[1:], seeds=[5], **settings)[0]) <= 1


def test_large_requests_run_in_batches_and_count_all_steps(unclip: Backend, runtime: Runtime) -> None:
    small = build_decoder(StableUnCLIPConfig(match="none", max_batch=2), unclip.folder, runtime)
    seen: list[tuple[int, int]] = []
    images = small.generate(embeds(5), seeds=range(5), on_step=lambda *step: seen.append(step), **SETTINGS)
    assert seen == [(i + 1, 9) for i in range(9)]
    assert levels(images, unclip.decoder.generate(embeds(5), seeds=range(5), **SETTINGS)) <= 1


@pytest.mark.parametrize("noise_level", [0, 300])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_unclip_agrees_with_the_pipeline_of_diffusers(unclip: Backend, noise_level: int, guidance_scale: float) -> None:
    from diffusers import StableUnCLIPImg2ImgPipeline

    stock = StableUnCLIPImg2ImgPipeline.from_pretrained(unclip.folder)
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        prompt=["", ""],
        image_embeds=torch.from_numpy(embeds(2)),
        generator=[torch.Generator().manual_seed(seed) for seed in (4, 5)],
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        noise_level=noise_level,
    ).images
    images = unclip.decoder.generate(
        embeds(2), seeds=[4, 5], num_inference_steps=4, guidance_scale=guidance_scale, noise_level=noise_level
    )
    assert np.array_equal(images, np.stack([np.asarray(image) for image in expected]))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_image_variation_agrees_with_the_pipeline_of_diffusers_on_a_picture(
    variation: Backend, guidance_scale: float
) -> None:
    from diffusers import StableDiffusionImageVariationPipeline

    stock = StableDiffusionImageVariationPipeline.from_pretrained(variation.folder, safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    pixels = np.random.default_rng(0).integers(0, 256, size=(2, 32, 32, 3), dtype=np.uint8)
    pictures = [Image.fromarray(picture) for picture in pixels]
    expected = stock(
        pictures,
        generator=[torch.Generator().manual_seed(seed) for seed in (4, 5)],
        num_inference_steps=4,
        guidance_scale=guidance_scale,
    ).images
    with torch.no_grad():
        towers_view = stock.feature_extractor(images=pictures, return_tensors="pt").pixel_values
        image_embeds = stock.image_encoder(towers_view).image_embeds.numpy()
    images = variation.decoder.generate(
        image_embeds, seeds=[4, 5], num_inference_steps=4, guidance_scale=guidance_scale
    )
    assert np.array_equal(images, np.stack([np.asarray(image) for image in expected]))


def test_guidance_of_one_runs_the_network_once_per_step(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    unet = backend.decoder._pipeline.unet  # type: ignore[attr-defined]
    forward = unet.forward

    def counting(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        batches.append(len(sample))
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(unet, "forward", counting)
    backend.decoder.generate(embeds(3), seeds=[1, 2, 3], num_inference_steps=2, guidance_scale=1.0)
    assert batches == [3, 3]
    backend.decoder.generate(embeds(3), seeds=[1, 2, 3], num_inference_steps=2, guidance_scale=1.5)
    assert batches == [3, 3, 6, 6]


def test_loading_is_silent(unclip: Backend, runtime: Runtime, capfd: pytest.CaptureFixture[str]) -> None:
    (unclip.folder / "empty_prompt.safetensors").unlink(missing_ok=True)
    save_empty_prompt(unclip.folder, torch.zeros(1, 4, 16))
    capfd.readouterr()
    build_decoder(StableUnCLIPConfig(), unclip.folder, runtime).generate(embeds(1), seeds=[1], **SETTINGS)
    (unclip.folder / "empty_prompt.safetensors").unlink()
    assert capfd.readouterr() == ("", "")


def test_towers_are_not_loaded(unclip: Backend, variation: Backend) -> None:
    for backend in (unclip, variation):
        parts = backend.decoder._pipeline.components  # type: ignore[attr-defined]
        assert sum(p.numel() for p in parts["image_encoder"].parameters()) == 1
        assert parts.get("text_encoder") is None and parts["feature_extractor"] is None


def test_a_folder_with_null_towers_opens_here_and_in_diffusers(tmp_path: Path, runtime: Runtime) -> None:
    from diffusers import StableUnCLIPImg2ImgPipeline

    folder = make_tiny_unclip(tmp_path / "model", embed_dim=D)
    prompt_embeds = load_file(folder / "empty_prompt.safetensors")["prompt_embeds"]
    absent = {"text_encoder": None, "tokenizer": None, "image_encoder": None, "feature_extractor": None}
    stock = StableUnCLIPImg2ImgPipeline.from_pretrained(folder, **absent)
    ours = build_decoder(StableUnCLIPConfig(match="none"), folder, runtime)
    images = ours.generate(embeds(1), seeds=[3], **SETTINGS)
    stock.image_encoder = stock.unet  # only its dtype is read
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        image_embeds=torch.from_numpy(embeds(1)),
        prompt_embeds=prompt_embeds,
        negative_prompt_embeds=prompt_embeds,
        generator=torch.Generator().manual_seed(3),
        **SETTINGS,
    ).images[0]
    assert np.array_equal(images[0], np.asarray(expected))


def test_weights_stored_in_half_precision_compute_in_float32(tmp_path: Path, runtime: Runtime) -> None:
    folder = make_tiny_unclip(tmp_path / "model", embed_dim=D)
    full = build_decoder(StableUnCLIPConfig(), folder, runtime).generate(embeds(2), seeds=[3, 4], **SETTINGS)
    for path in folder.glob("*/*.safetensors"):
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    decoder = build_decoder(StableUnCLIPConfig(), folder, runtime)
    parts = decoder._pipeline.components  # type: ignore[attr-defined]
    weights = [weight for name in ("unet", "vae", "image_normalizer") for weight in parts[name].parameters()]
    assert {weight.dtype for weight in weights} == {torch.float32}
    assert levels(full, decoder.generate(embeds(2), seeds=[3, 4], **SETTINGS)) <= 3


def test_a_stored_empty_prompt_stands_for_the_text_encoder(tmp_path: Path, runtime: Runtime) -> None:
    folder = make_tiny_unclip(tmp_path / "model", embed_dim=D, towers=True)
    encoded = build_decoder(StableUnCLIPConfig(), folder, runtime).generate(embeds(1), seeds=[3], **SETTINGS)
    save_empty_prompt(folder)
    (folder / "text_encoder" / "model.safetensors").unlink()
    stored = build_decoder(StableUnCLIPConfig(), folder, runtime).generate(embeds(1), seeds=[3], **SETTINGS)
    assert np.array_equal(encoded, stored)


def test_a_folder_without_prompt_and_text_encoder_says_what_to_do(tmp_path: Path, runtime: Runtime) -> None:
    folder = make_tiny_unclip(tmp_path / "model", embed_dim=D)
    (folder / "empty_prompt.safetensors").unlink()
    with pytest.raises(ValueError, match="save_empty_prompt"):
        build_decoder(StableUnCLIPConfig(), folder, runtime)


def test_pickled_weights_and_foreign_code_are_refused(tmp_path: Path, runtime: Runtime) -> None:
    folder = make_tiny_unclip(tmp_path / "model", embed_dim=D)
    index = folder / "model_index.json"
    text = index.read_text()
    index.write_text(text.replace('"diffusers",\n    "UNet2DConditionModel"', '"my_unet",\n    "UNet2DConditionModel"'))
    with pytest.raises(ValueError, match="my_unet.*custom code is not run"):
        build_decoder(StableUnCLIPConfig(), folder, runtime)
    index.write_text(text)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        build_decoder(StableUnCLIPConfig(), folder, runtime)


def test_the_wrong_kind_of_folder_is_named(unclip: Backend, runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a StableUnCLIPImg2ImgPipeline, expected a StableDiffusionImageVar"):
        build_decoder(ImageVariationConfig(), unclip.folder, runtime)
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        build_decoder(ImageVariationConfig(), tmp_path, runtime)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_embeds": np.zeros((2, D + 1), np.float32)}, rf"shape \(2, {D + 1}\), expected \(n, {D}\).*use"),
        ({"image_embeds": np.zeros((0, D), np.float32), "seeds": []}, "n >= 1"),
        ({"image_embeds": np.full((2, D), np.nan, np.float32)}, "embedding 0 of 2 holds NaN"),
        ({"seeds": [1]}, "got 1 seeds for 2 image_embeds"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"noise_level": -1}, "noise_level is -1, expected 0"),
    ],
)
def test_requests_that_do_not_fit_are_refused(backend: Backend, change: dict[str, Any], message: str) -> None:
    arguments = {"image_embeds": embeds(2), "seeds": [1, 2], **SETTINGS} | change
    with pytest.raises(ValueError, match=message):
        backend.decoder.generate(**arguments)


def test_match_length_gives_every_row_the_length_of_the_training_embeddings() -> None:
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=D), rng.uniform(0.5, 2.0, size=D)
    matched = match_statistics(embeds(50) / 100, mean, std, "length")
    assert matched.dtype == np.float32
    assert np.allclose(np.linalg.norm(matched, axis=1), np.sqrt((mean**2 + std**2).sum()), rtol=1e-5)
    cosine = (matched * embeds(50)).sum(1) / np.linalg.norm(matched, axis=1) / np.linalg.norm(embeds(50), axis=1)
    assert np.allclose(cosine, 1, atol=1e-5)


def test_match_spread_undoes_the_shrinkage_of_a_regression() -> None:
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=256), rng.uniform(0.5, 2.0, size=256)
    true = mean + std * rng.normal(size=(400, 256))
    matched = match_statistics((mean + 0.2 * (true - mean)).astype(np.float32), mean, std, "spread")
    assert abs((matched.std(0) / true.std(0)).mean() - 1) < 0.02
    assert np.abs((matched - true) / std).mean() < 0.1


@pytest.mark.parametrize("how", ["none", "length", "spread"])
def test_match_does_not_mix_rows(how: str) -> None:
    mean, std = np.ones(D), np.full(D, 2.0)
    together = match_statistics(embeds(4), mean, std, how)
    assert np.array_equal(together[2:3], match_statistics(embeds(4)[2:3], mean, std, how))


def test_the_decoder_applies_its_match(unclip: Backend, variation: Backend, runtime: Runtime) -> None:
    matching = build_decoder(StableUnCLIPConfig(), unclip.folder, runtime)
    once = matching.generate(embeds(1), seeds=[3], **SETTINGS)
    assert levels(once, matching.generate(embeds(1) / 50, seeds=[3], **SETTINGS)) <= 1
    assert levels(once, unclip.decoder.generate(embeds(1) / 50, seeds=[3], **SETTINGS)) > 1
    length = float(np.linalg.norm(embeds(1)))
    matching = build_decoder(ImageVariationConfig(match="length", embed_length=length), variation.folder, runtime)
    plain = variation.decoder.generate(embeds(1), seeds=[3], **SETTINGS)
    assert levels(plain, matching.generate(embeds(1) / 50, seeds=[3], **SETTINGS)) <= 1
    with pytest.raises(ValueError, match="row out"):
        matching.generate(0 * embeds(1), seeds=[3], **SETTINGS)


def test_configs_are_a_union_on_name_and_refuse_settings_without_effect() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(ImageDecoderConfig)
    assert isinstance(adapter.validate_python({"name": "image_variation"}), ImageVariationConfig)
    assert isinstance(adapter.validate_json('{"name": "stable_unclip", "noise_level": 5}'), StableUnCLIPConfig)
    without_effect = {"name": "image_variation", "embed_length": 2}
    for wrong in ({"name": "karlo"}, {"name": "stable_unclip", "steps": 3}, without_effect):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
    with pytest.raises(ValueError, match="how='batch'"):
        match_statistics(embeds(1), np.zeros(D), np.ones(D), "batch")


def test_both_backends_share_one_signature(unclip: Backend, variation: Backend) -> None:
    signatures: list[Callable[..., Any]] = [unclip.decoder.generate, variation.decoder.generate]
    assert inspect.signature(signatures[0]) == inspect.signature(signatures[1])
