"""A laboratory's own files, from the converter to a bundle that decodes and is served."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fake_service import fake_service
from own_lab_files import IMAGES, train_own_lab, write_tower
from PIL import Image
from tiny_bundle import IMAGE_SIZE, make_tiny_image_variation, make_tiny_unclip

from alignment.target_table import read_target_table
from encoders.epochs import SignalEpochs
from encoders.store import EpochStore
from generation.bundle import Bundle, BundleError
from generation.pipeline import ReconstructionPipeline
from generation.run_bundle import run_scores
from serving.cli import main
from serving.local_backend import LocalBackend
from serving.schema import GenerationResponse
from serving.settings import ServingSettings

N_NEW = 6
WIDTH = 16


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a trained and evaluated laboratory, with a gallery of shown and of new pictures."""
    folder = tmp_path_factory.mktemp("lab")
    train_own_lab(folder)
    gallery = folder / "gallery"
    gallery.mkdir()
    for name in IMAGES[::4]:
        (gallery / Path(name).name).write_bytes((folder / "pictures" / name).read_bytes())
    generator = np.random.default_rng(5)
    for index in range(N_NEW):
        picture = Image.fromarray(generator.integers(0, 256, (28, 28, 3), dtype=np.uint8))
        picture.resize((40, 30)).save(gallery / f"new_{index}.png")
    (gallery / "new_0.txt").write_text("a picture with words")
    make_tiny_unclip(folder / "unclip", embed_dim=WIDTH)
    return folder


def bundle_arguments(lab: Path, out: Path, generator: object, *more: object) -> list[str]:
    arguments = ["bundle", "--run-dir", lab / "run", "--generator", generator, "--gallery", lab / "gallery"]
    return [str(one) for one in (*arguments, "--cache", lab / "cache", "--out", out, "--thumb-size", 32, *more)]


@pytest.fixture(scope="module")
def generating(lab: Path) -> Bundle:
    assert main(bundle_arguments(lab, lab / "bundle", lab / "unclip")) == 0
    return Bundle.load(lab / "bundle")


@pytest.fixture(scope="module")
def retrieving(lab: Path) -> Bundle:
    assert main(bundle_arguments(lab, lab / "retrieval", "none")) == 0
    return Bundle.load(lab / "retrieval")


@pytest.fixture(scope="module")
def recording(lab: Path) -> Path:
    """Anna's epochs of four pictures, three presentations of each, in a file of their own."""
    store = EpochStore.open(lab / "eeg.store")
    people, images = (store.metadata[name].to_pylist() for name in ("subject", "image"))
    anna = sorted(set(people))[0]
    rows = [row for row, (person, image) in enumerate(zip(people, images, strict=True)) if person == anna]
    chosen = sorted({images[row] for row in rows})[:4]
    store.epochs([row for row in rows if images[row] in chosen]).save(lab / "anna.npz")
    return lab / "anna.npz"


def decoded(bundle: Bundle, recording: Path, out: Path, *more: str) -> dict[str, Any]:
    assert main(["decode", str(recording), "--bundle", str(bundle.folder), "--out", str(out), *more]) == 0
    answer: dict[str, Any] = json.loads((out / "answer.json").read_text())
    return answer


def test_the_bundle_says_what_it_is(generating: Bundle, lab: Path) -> None:
    manifest = generating.manifest
    table = read_target_table(lab / "targets.safetensors")
    assert manifest.modalities == ("eeg",) and manifest.embed_dim == table.embeds.shape[1] == WIDTH
    assert len(manifest.subjects) == 2 and manifest.decoder["name"] == "stable_unclip"
    assert manifest.image_size == IMAGE_SIZE and "validation pictures" in manifest.data_statement
    assert str(lab) not in json.dumps(manifest.configs["brain"])
    evaluation = manifest.scores["evaluation"]
    assert isinstance(evaluation, dict)
    for figure in evaluation["figures"]:
        assert figure["split"] == "test" and figure["n"] > 0 and 0 < figure["permutation_p"] <= 1
        assert figure["interval"][0] <= figure["interval"][1] and figure["chance"] > 0


def test_the_gallery_is_the_users_in_the_space_of_the_training(generating: Bundle, lab: Path) -> None:
    gallery, table = generating.gallery(), read_target_table(lab / "targets.safetensors")
    assert len(gallery.names) == N_NEW + len(IMAGES[::4]) and gallery.thumbs.shape[1:] == (32, 32, 3)
    assert gallery.captions[gallery.names.index("new_0.png")] == "a picture with words"
    for name in IMAGES[::4]:
        row = gallery.names.index(Path(name).name)
        assert np.allclose(gallery.image_embeds[row], table.embeds[table.index([name])[0]], atol=1e-5)


def test_confidence_rests_on_validation_pictures(generating: Bundle) -> None:
    calibrations = generating.calibrations()
    assert calibrations is not None
    by_level = {one.n_averaged: one for one in calibrations.entries}
    assert sorted(by_level) == [1, 3]
    assert (by_level[1].n, by_level[3].n) == (60, 20)  # 10 pictures, 2 people, 3 presentations or their average
    assert {(one.split, one.gallery_size) for one in calibrations.entries} == {("val", N_NEW + len(IMAGES[::4]))}
    null = generating.null().scores["eeg"]
    assert len(null) >= 3000 and (np.diff(null) >= 0).all()


def test_test_epochs_are_never_read(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment.recorded_data import split_rows
    from alignment.recorded_sources import open_sources
    from alignment.train_config import read_run_config

    config = read_run_config(lab / "run")
    sources = open_sources(config)
    test_rows = set(split_rows(config.data, sources.stores, sources.targets).modalities["eeg"].rows["test"].tolist())
    read: set[int] = set()
    original = EpochStore.epochs

    def watched(self: EpochStore, rows: Any) -> SignalEpochs:
        read.update(np.asarray(rows).tolist())
        return original(self, rows)

    monkeypatch.setattr(EpochStore, "epochs", watched)
    assert main(bundle_arguments(lab, tmp_path / "bundle", "none")) == 0
    assert read and not read & test_rows


def test_a_recording_is_decoded_to_generated_pictures(generating: Bundle, recording: Path, tmp_path: Path) -> None:
    steps = ("--num-inference-steps", "2", "--images", "2")
    answer = decoded(generating, recording, tmp_path, "--average", *steps)
    assert len(answer["epochs"]) == 4 and answer["pictures"] == "generated"
    for epoch in answer["epochs"]:
        assert epoch["n_averaged"] == 3 and 0 <= epoch["confidence"] <= 1 and 0 < epoch["probability"] < 1
    assert answer["report"]["subject"] == generating.manifest.subjects[0]
    with Image.open(tmp_path / "epoch-003-image-1.png") as picture:
        assert picture.size == (IMAGE_SIZE, IMAGE_SIZE) and "Generated estimate" in picture.text["Description"]


def test_without_a_generator_the_nearest_gallery_pictures_come_back(
    retrieving: Bundle, generating: Bundle, recording: Path, tmp_path: Path
) -> None:
    answer = decoded(retrieving, recording, tmp_path, "--average", "--images", "3")
    other = decoded(generating, recording, tmp_path / "g", "--average", "--num-inference-steps", "1")
    gallery = retrieving.gallery()
    assert answer["pictures"] == "nearest" and "not generated" in answer["notice"]
    for index, epoch in enumerate(answer["epochs"]):
        assert epoch["neighbours"] == other["epochs"][index]["neighbours"]
        for number in range(3):
            with Image.open(tmp_path / f"epoch-{index:03d}-image-{number}.png") as picture:
                name = epoch["neighbours"][number]["name"]
                assert picture.text["phosphene:gallery"] == name and "not generated" in picture.text["Description"]
                assert np.array_equal(np.asarray(picture), gallery.thumbs[gallery.names.index(name)])
    pipeline = ReconstructionPipeline(retrieving)
    made = pipeline([SignalEpochs.load(recording)], average=True, n_images=3)
    assert np.array_equal(made.images, pipeline.retrieve(made.embedding, 3))
    with pytest.raises(ValueError, match="expected 1 to 5"):
        pipeline.retrieve(made.embedding, 6)


@pytest.mark.parametrize(
    ("option", "said"), [(("--images", "6"), "at most 5"), (("--guidance-scale", "2"), "guidance_scale has no effect")]
)
def test_what_a_retrieving_bundle_cannot_do_is_refused(
    retrieving: Bundle, recording: Path, tmp_path: Path, option: tuple[str, str], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(["decode", str(recording), "--bundle", str(retrieving.folder), "--out", str(tmp_path), *option]) == 2
    assert said in capsys.readouterr().err


def test_it_is_served(retrieving: Bundle, recording: Path) -> None:
    settings = ServingSettings(bundle=retrieving.folder)
    service = fake_service(settings, LocalBackend(settings))  # the real workers behind the real routes, without Ray
    with service as url, httpx.Client(base_url=url, timeout=60.0, trust_env=False) as http:
        (told,) = http.get("/v1/bundles").json()["bundles"]
        assert told["pictures"] == "nearest" and told["limits"]["max_images"] == 5
        reply = http.post("/v1/generations", files={"file": recording.read_bytes()}, data={"average": "true"})
    answer = GenerationResponse.model_validate_json(reply.content)
    assert reply.status_code == 200 and len(answer.epochs) == 4 and "not generated" in answer.notice
    for epoch in answer.epochs:
        assert epoch.images == (epoch.neighbours[0].thumbnail,)
        with Image.open(io.BytesIO(base64.b64decode(epoch.images[0]))) as picture:
            assert picture.size == (32, 32)


def failing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    return capsys.readouterr().err


def test_a_generator_of_another_width_is_refused(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = make_tiny_image_variation(tmp_path / "wide", embed_dim=24)
    said = failing(bundle_arguments(lab, tmp_path / "bundle", wide), capsys)
    assert str(wide) in said and "width 24" in said and f"width {WIDTH}" in said and "dinov2" in said
    assert not (tmp_path / "bundle").exists()


def test_a_generator_of_another_space_of_the_same_width_is_refused(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = make_tiny_image_variation(tmp_path / "foreign", embed_dim=WIDTH)
    said = failing(bundle_arguments(lab, tmp_path / "bundle", foreign), capsys)
    assert str(foreign) in said and "mean cosine" in said and "dinov2" in said


def test_a_gallery_in_another_space_is_refused(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    write_tower(tmp_path / "tower")
    from transformers import Dinov2Model

    tower = Dinov2Model.from_pretrained(tmp_path / "tower")
    with torch.no_grad():
        next(tower.parameters()).add_(1.0)
    tower.save_pretrained(tmp_path / "tower")
    space = json.dumps({"name": "dinov2", "model": str(tmp_path / "tower")})
    said = failing(bundle_arguments(lab, tmp_path / "bundle", "none", "--space", space), capsys)
    assert str(tmp_path / "tower") in said and read_target_table(lab / "targets.safetensors").space[:12] in said


def test_a_damaged_calibration_is_named(retrieving: Bundle, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(retrieving.folder, copy)
    content = (copy / "calibration.json").read_bytes()
    (copy / "calibration.json").write_bytes(content.replace(b"1", b"2", 1))
    with pytest.raises(BundleError, match="calibration.json has sha256"):
        Bundle.load(copy)


def test_without_an_evaluation_only_the_validation_score_is_told(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes((lab / "run" / "report.json").read_bytes())
    told = run_scores(tmp_path)["validation"]
    assert told["split"] == "val" and told["chance"] == 0.1 and "flatters" in told["note"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--run-dir", "r"], "--run-dir needs --generator"),
        (["--run-dir", "r", "--generator", "none", "--data", "d"], "--data has no effect with --run-dir"),
        (["--study", "s", "--data", "d"], "--study needs --pictures"),
        (["--run-dir", "nowhere", "--generator", "none"], "config.yaml"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in failing(["bundle", *arguments, "--gallery", "g", "--out", "o"], capsys)
