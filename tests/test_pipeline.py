"""Recordings in, pictures out, on a tiny bundle of random weights in the real file formats."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import EMBED_DIM, IMAGE_SIZE, make_tiny_bundle, tiny_recording

from alignment.runtime import Runtime
from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.preprocess import default_preprocess
from generation.assemble import assemble_bundle, cut_window
from generation.bundle import Bundle, BundleError, BundleParts
from generation.gallery import Gallery
from generation.image_decoder import ImageVariationConfig, StableUnCLIPConfig
from generation.manifest import Manifest
from generation.pipeline import ReconstructionPipeline, seed_for


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="module")
def pipeline(folder: Path, runtime: Runtime) -> ReconstructionPipeline:
    return ReconstructionPipeline(folder, runtime)


def both(n: int = 2) -> tuple[SignalEpochs, SignalEpochs]:
    return tiny_recording("eeg", n), tiny_recording("meg", n)


def mixed(n: int = 2) -> SignalEpochs:
    eeg, meg = both(n)
    return replace(
        eeg,
        data=np.concatenate([meg.data, eeg.data], axis=1),
        ch_names=meg.ch_names + eeg.ch_names,
        ch_types=meg.ch_types + eeg.ch_types,
        positions=np.concatenate([meg.positions, eeg.positions]),
    )


@pytest.mark.parametrize(
    ("recordings", "modalities"),
    [
        ([tiny_recording("eeg", 3)], ("eeg",)),
        ([tiny_recording("meg", 3)], ("meg",)),
        (both(3), ("eeg", "meg")),
        ([mixed(3)], ("eeg", "meg")),
    ],
)
def test_every_combination_of_modalities_becomes_pictures(
    pipeline: ReconstructionPipeline, recordings: Any, modalities: tuple[str, ...]
) -> None:
    result = pipeline(recordings, n_images=2, seed=3)
    assert result.images.shape == (3, 2, IMAGE_SIZE, IMAGE_SIZE, 3) and result.images.dtype == np.uint8
    embedding = result.embedding
    assert embedding.image_embeds.shape == (3, EMBED_DIM) and embedding.image_embeds.dtype == np.float32
    assert embedding.confidence.shape == (3,) and ((0 <= embedding.confidence) & (embedding.confidence <= 1)).all()
    assert [len(row) for row in embedding.neighbours] == [5, 5, 5]
    assert embedding.report.modalities == modalities
    assert embedding.stimulus == ("image-0", "image-1", "image-2") and embedding.n_averaged == (1, 1, 1)


def test_a_mixed_file_is_the_two_recordings_in_one(pipeline: ReconstructionPipeline) -> None:
    together, apart = pipeline.embed([mixed()]), pipeline.embed(both())
    assert np.array_equal(together.image_embeds, apart.image_embeds)
    assert together.neighbours == apart.neighbours
    alone = pipeline.embed([tiny_recording("eeg")])
    assert not np.allclose(alone.image_embeds, apart.image_embeds)


def test_one_epoch_does_not_depend_on_the_others(pipeline: ReconstructionPipeline) -> None:
    recording = tiny_recording("eeg", 3)
    whole = pipeline.embed([recording])
    changed = replace(recording, data=recording.data * np.array([1, -1, -1], np.float32)[:, None, None])
    part = pipeline.embed([changed])
    assert np.array_equal(whole.image_embeds[0], part.image_embeds[0])
    first, second = pipeline.generate(whole.image_embeds), pipeline.generate(part.image_embeds)
    assert np.array_equal(first[0], second[0]) and not np.array_equal(first[1], second[1])


def test_neighbours_and_confidence_come_from_gallery_and_null(pipeline: ReconstructionPipeline) -> None:
    result = pipeline.embed([tiny_recording("eeg", 40, seed=11)], top_k=20)
    gallery, null = pipeline.bundle.gallery(), pipeline.bundle.null().scores["eeg"]
    for row, confidence in zip(result.neighbours, result.confidence, strict=True):
        similarity = [neighbour.similarity for neighbour in row]
        assert similarity == sorted(similarity, reverse=True)
        assert sorted(neighbour.name for neighbour in row) == sorted(gallery.names)
        assert all(gallery.captions[neighbour.index] == neighbour.caption for neighbour in row)
        assert confidence == pytest.approx((null < np.float32(similarity[0])).mean(), abs=1 / len(null))
    assert abs(result.confidence.mean() - 0.5) < 0.15  # noise reads as noise


def test_averaging_gives_one_row_per_stimulus(pipeline: ReconstructionPipeline) -> None:
    recording = replace(tiny_recording("eeg", 4), stimulus=("a", "b", "a", "a"))
    result = pipeline([recording], average=True)
    assert result.embedding.stimulus == ("a", "b") and result.embedding.n_averaged == (3, 1)
    assert len(result.images) == 2
    assert np.array_equal(
        result.embedding.image_embeds, pipeline.embed([recording.average_repetitions()]).image_embeds
    )


def test_an_unknown_person_is_decoded_and_reported(pipeline: ReconstructionPipeline) -> None:
    known = pipeline.embed([tiny_recording("eeg")])
    assert known.report.subject == "sim-01" and not known.report.warnings
    unknown = pipeline.embed([tiny_recording("eeg")], subject="someone")
    assert unknown.report.subject == "" and "mean person" in unknown.report.warnings[0]
    assert np.isfinite(unknown.image_embeds).all()


def test_missing_and_extra_channels_are_reported(pipeline: ReconstructionPipeline) -> None:
    recording = tiny_recording("eeg")
    fewer = recording.pick([name for name in reversed(recording.ch_names) if name != "Cz"])
    odd = replace(fewer, ch_names=("Q99", *fewer.ch_names[1:]))
    report = pipeline.embed([odd]).report
    assert set(report.interpolated) == {"Cz", fewer.ch_names[0]} and report.dropped == ("Q99",)


def test_recordings_that_do_not_fit_are_refused(pipeline: ReconstructionPipeline) -> None:
    eeg, meg = both()
    with pytest.raises(EpochsMismatch, match="epochs"):
        pipeline.embed([eeg, meg.select([0])])
    with pytest.raises(EpochsMismatch, match="one recording per modality"):
        pipeline.embed([eeg, eeg])
    with pytest.raises(EpochsMismatch):
        pipeline.embed([eeg.pick(["Cz", "Pz"])])


def test_the_seed_decides_every_picture(pipeline: ReconstructionPipeline) -> None:
    embeds = pipeline.embed([tiny_recording("eeg")]).image_embeds
    first = pipeline.generate(embeds, n_images=3, seed=5)
    assert first.tobytes() == pipeline.generate(embeds, n_images=3, seed=5).tobytes()
    assert not np.array_equal(first, pipeline.generate(embeds, n_images=3, seed=6))
    assert len({first[epoch, image].tobytes() for epoch in range(2) for image in range(3)}) == 6
    fewer = pipeline.generate(embeds, n_images=1, seed=5).astype(int)
    assert np.abs(first[:, :1].astype(int) - fewer).max() <= 1
    seeds = [seed_for(5, epoch, image) for epoch in range(2) for image in range(3)]
    decoded = pipeline.decode(np.repeat(embeds, 3, axis=0), seeds=seeds)
    assert decoded.tobytes() == first.tobytes()


def test_seed_for_is_a_documented_hash_without_collisions() -> None:
    assert seed_for(0, 0, 0) == 8387133978117270309
    seeds = {seed_for(seed, epoch, image) for seed in range(-5, 5) for epoch in range(20) for image in range(8)}
    assert len(seeds) == 10 * 20 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_steps_and_guidance_default_to_the_bundle(pipeline: ReconstructionPipeline) -> None:
    embeds = pipeline.embed([tiny_recording("eeg", 1)]).image_embeds
    seen: list[tuple[int, int]] = []
    images = pipeline.generate(embeds, on_step=lambda *step: seen.append(step))
    assert seen == [(1, 2), (2, 2)]
    assert np.array_equal(images, pipeline.generate(embeds, num_inference_steps=2, guidance_scale=2.0, noise_level=0))
    assert not np.array_equal(images, pipeline.generate(embeds, noise_level=400))
    assert not np.array_equal(images, pipeline.generate(embeds, guidance_scale=6.0))
    assert not np.array_equal(images, pipeline.generate(embeds, num_inference_steps=4))
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        pipeline.generate(embeds, num_inference_steps=0)
    with pytest.raises(ValueError, match="n_images is 0"):
        pipeline.generate(embeds, n_images=0)


def test_cancelling_passes_through(pipeline: ReconstructionPipeline) -> None:
    class Cancelled(Exception):
        pass

    def cancel(step: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        pipeline([tiny_recording("eeg")], on_step=cancel)


def test_two_halves_make_the_whole(pipeline: ReconstructionPipeline, folder: Path, runtime: Runtime) -> None:
    bundle = Bundle.load(folder)
    encoder = ReconstructionPipeline(bundle, runtime, embedding_only=True)
    decoder = ReconstructionPipeline(bundle, runtime, decoder_only=True)
    whole = pipeline([tiny_recording("eeg")], seed=2)
    embedding = encoder.embed([tiny_recording("eeg")])
    assert np.array_equal(decoder.generate(embedding.image_embeds, seed=2), whole.images)
    assert encoder.window == decoder.window == pipeline.window
    with pytest.raises(ValueError, match="decoder_only"):
        decoder.embed([tiny_recording("eeg")])
    with pytest.raises(ValueError, match="embedding_only"):
        encoder.generate(embedding.image_embeds)
    with pytest.raises(ValueError, match="one at most"):
        ReconstructionPipeline(bundle, runtime, embedding_only=True, decoder_only=True)


def test_the_window_covers_what_the_preprocessing_needs(pipeline: ReconstructionPipeline) -> None:
    wide = default_preprocess("meg", tmin=-0.05, n_times=90, baseline=None, l_freq=0.5, h_freq=30.0)
    window = cut_window({"eeg": default_preprocess("eeg"), "meg": wide})
    assert (window.tmin, window.tmax) == (pytest.approx(-0.3), pytest.approx(0.84 + 0.2))
    assert (window.l_freq, window.h_freq) == (0.1, 40.0)
    assert pipeline.window == cut_window({"eeg": default_preprocess("eeg")})


def test_the_manifest_describes_the_models(pipeline: ReconstructionPipeline) -> None:
    manifest = pipeline.bundle.manifest
    assert manifest.modalities == ("eeg", "meg") and manifest.subjects == ("sim-01", "sim-02")
    assert (manifest.embed_dim, manifest.image_size) == (EMBED_DIM, IMAGE_SIZE)
    assert len(manifest.preprocessing_hash) == 64 and pipeline.bundle.example is not None
    assert pipeline.embed([SignalEpochs.load(pipeline.bundle.example)]).report.modalities == ("eeg",)


def test_parts_of_different_clip_spaces_are_refused(folder: Path, tmp_path: Path, runtime: Runtime) -> None:
    bundle = Bundle.load(folder)
    gallery = bundle.gallery()
    narrow = Gallery(gallery.image_embeds[:, :64].copy(), gallery.thumbs, gallery.names, gallery.captions)
    parts = BundleParts(bundle.brain_folder, bundle.decoder_folder, narrow, bundle.null())
    arguments: dict[str, Any] = {
        "decoder": StableUnCLIPConfig(),
        "data_statement": "random",
        "configs": {},
        "scores": {},
        "runtime": runtime,
    }
    with pytest.raises(ValueError, match="'gallery': 64.*expected one width"):
        assemble_bundle(tmp_path / "out", parts, **arguments)
    scores = {"eeg": bundle.null().scores["eeg"]}
    parts = replace(parts, gallery=gallery, null=replace(bundle.null(), scores=scores))
    with pytest.raises(ValueError, match=r"the null has \['eeg'\]"):
        assemble_bundle(tmp_path / "out", parts, **arguments)
    with pytest.raises(ValueError, match="expected a StableDiffusionImageVariationPipeline"):
        assemble_bundle(tmp_path / "out", parts, **(arguments | {"decoder": ImageVariationConfig()}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"), [({"embed_dim": 64}, "width 128, expected 64"), ({"decoder": {"name": "karlo"}}, "karlo")]
)
def test_a_manifest_that_contradicts_the_models_is_refused(
    folder: Path, runtime: Runtime, change: dict[str, Any], message: str
) -> None:
    raw = json.loads((folder / "manifest.json").read_text()) | change
    bundle = Bundle(folder, Manifest.model_validate(raw))
    with pytest.raises(BundleError, match=message):
        ReconstructionPipeline(bundle, runtime)
