"""Generators that somebody brings: kind, width and space are found out before a bundle is made."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import make_tiny_image_variation, make_tiny_unclip

from alignment.image_encoder import embed_with_tower
from alignment.runtime import Runtime
from generation.generator_source import GeneratorSource
from generation.image_decoder import build_decoder

WIDTH = 12


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(device="cpu")


@pytest.fixture(scope="module")
def variation(tmp_path_factory: pytest.TempPathFactory) -> GeneratorSource:
    folder = make_tiny_image_variation(tmp_path_factory.mktemp("variation") / "model", embed_dim=WIDTH)
    return GeneratorSource.open(str(folder))


def pictures(n: int = 3) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (40 + i, 36, 3), dtype=np.uint8) for i in range(n)]


def test_both_kinds_are_recognised(variation: GeneratorSource, tmp_path: Path) -> None:
    unclip = GeneratorSource.open(str(make_tiny_unclip(tmp_path / "unclip", embed_dim=20)))
    assert (variation.config.name, variation.embed_dim) == ("image_variation", WIDTH)
    assert (unclip.config.name, unclip.embed_dim) == ("stable_unclip", 20)
    with pytest.raises(ValueError, match="width 20, the training's targets are of width 12 .some space"):
        unclip.check_width(12, "some space")


def test_the_space_is_that_of_the_generators_own_tower(variation: GeneratorSource, runtime: Runtime) -> None:
    images, folder = pictures(), variation.folder
    embeds = embed_with_tower(folder / "image_encoder", folder / "feature_extractor", images, runtime)
    assert embeds.shape == (3, WIDTH)
    assert variation.check_space(images, 3 * embeds, "ours", runtime) == pytest.approx(1.0, abs=1e-4)
    foreign = np.random.default_rng(1).standard_normal(embeds.shape).astype(np.float32)
    with pytest.raises(ValueError, match="are of ours: of 3 pictures"):
        variation.check_space(images, foreign, "ours", runtime)


def test_without_a_tower_the_space_stays_unknown(tmp_path: Path, runtime: Runtime) -> None:
    unclip = GeneratorSource.open(str(make_tiny_unclip(tmp_path / "unclip", embed_dim=WIDTH)))
    assert unclip.check_space(pictures(), np.ones((3, WIDTH), np.float32), "ours", runtime) is None


def test_pictures_do_not_need_the_parts_that_are_left_out(
    variation: GeneratorSource, tmp_path: Path, runtime: Runtime
) -> None:
    shutil.copytree(variation.folder, tmp_path / "small", ignore=shutil.ignore_patterns(*variation.unused_parts()))
    assert not (tmp_path / "small" / "image_encoder").exists()
    embeds = np.random.default_rng(2).standard_normal((2, WIDTH)).astype(np.float32)
    made = [
        build_decoder(variation.config, folder, runtime).generate(
            embeds, seeds=[1, 2], num_inference_steps=2, guidance_scale=2.0
        )
        for folder in (variation.folder, tmp_path / "small")
    ]
    assert np.array_equal(*made)


@pytest.mark.parametrize(
    ("source", "said"), [("nowhere", "diffusers folder, a hub id, or 'none'"), ("./no/such", "no generator at")]
)
def test_what_is_no_generator_is_refused(source: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GeneratorSource.open(source)


def test_other_pipelines_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model_index.json"):
        GeneratorSource.open(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="holds a FluxPipeline, expected one of"):
        GeneratorSource.open(str(tmp_path))
