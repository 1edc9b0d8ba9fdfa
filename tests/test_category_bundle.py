"""People's averages to a bundle that decodes a category: the whole way on made-up people, and the rate on real ones."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from fake_service import fake_service
from PIL import Image
from toy_categories import CLASSES, arguments, write_categories

from alignment.category_model import CategoryModel
from encoders.epochs import SignalEpochs
from generation.bundle import Bundle
from serving.cli import main
from serving.local_backend import LocalBackend
from serving.schema import GenerationResponse
from serving.settings import ServingSettings

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_categories(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def bundle(study: Path) -> Bundle:
    left_out = ("--leave-out", "sub-02", "--leave-out", "sub-13", "--recordings", study / "left_out")
    assert main(arguments(study, study / "bundle", study / "plain.yaml", *left_out)) == 0
    return Bundle.load(study / "bundle")


def decoded(folder: Path, recording: Path, out: Path, *more: str) -> dict[str, Any]:
    assert main(["decode", str(recording), "--bundle", str(folder), "--out", str(out), *more]) == 0
    answer: dict[str, Any] = json.loads((out / "answer.json").read_text())
    return answer


def found(answer: Mapping[str, Any]) -> list[str]:
    return [epoch["neighbours"][0]["caption"] for epoch in answer["epochs"]]


def test_the_bundle_says_what_is_decoded_and_how_well(bundle: Bundle) -> None:
    manifest = bundle.manifest
    figure = manifest.scores["people_left_out"]["balanced_accuracy"]  # type: ignore[index, call-overload]
    assert isinstance(figure, dict)
    assert (figure["chance"], figure["n"], figure["n_groups"]) == (0.2, 50, 10)
    assert figure["split"] == "persons left out" and figure["permutation_p"] < 0.01
    assert "not a picture" in manifest.data_statement and "no single presentation" in manifest.data_statement
    assert manifest.configs["left_out"] == ["sub-02", "sub-13"] and "sub-02" not in manifest.configs["people"]  # type: ignore[operator]
    assert manifest.decoder == {"name": "retrieval", "shows": "category", "max_images": 2}
    assert bundle.example is not None and SignalEpochs.load(bundle.example).subject == "sub-02"


def test_people_left_out_are_decoded_to_pictures_of_their_category(bundle: Bundle, study: Path, tmp_path: Path) -> None:
    answer = decoded(bundle.folder, study / "left_out" / "sub-02.npz", tmp_path, "--images", "2")
    right = [name == epoch["stimulus"] for name, epoch in zip(found(answer), answer["epochs"], strict=True)]
    assert sum(right) >= 4 and answer["pictures"] == "category" and "retrieved, not generated" in answer["notice"]
    for index, epoch in enumerate(answer["epochs"]):
        assert epoch["confidence"] == epoch["probability"] == epoch["neighbours"][0]["similarity"]
        assert "guessing gives 0.20" in epoch["confidence_words"]
        for number in range(2):
            with Image.open(tmp_path / f"epoch-{index:03d}-image-{number}.png") as picture:
                name = picture.text["phosphene:gallery"]
            assert name.startswith(found(answer)[index].replace(" ", "_"))


def test_the_probability_is_that_of_the_decoder(bundle: Bundle, study: Path, tmp_path: Path) -> None:
    recording = SignalEpochs.load(study / "left_out" / "sub-13.npz")
    model = CategoryModel.load(bundle.brain_folder)
    data, _ = model.preprocessor.window(recording)
    expected = model.decoder.probabilities(data, np.zeros(len(data)))
    answer = decoded(bundle.folder, study / "left_out" / "sub-13.npz", tmp_path)
    assert np.allclose([epoch["confidence"] for epoch in answer["epochs"]], expected.max(axis=1), atol=1e-5)
    assert found(answer) == [model.classes[column] for column in expected.argmax(axis=1)]


def test_the_order_of_channels_and_further_ones_do_not_matter(bundle: Bundle, study: Path, tmp_path: Path) -> None:
    recording = SignalEpochs.load(study / "left_out" / "sub-02.npz")
    recording.pick(recording.ch_names[::-1]).save(tmp_path / "turned.npz")
    first, second = (
        decoded(bundle.folder, path, tmp_path / str(index))
        for index, path in enumerate((study / "left_out" / "sub-02.npz", tmp_path / "turned.npz"))
    )
    assert np.allclose(*([epoch["confidence"] for epoch in one["epochs"]] for one in (first, second)), atol=1e-4)


def test_it_is_served(bundle: Bundle, study: Path) -> None:
    settings = ServingSettings(bundle=bundle.folder)
    service = fake_service(settings, LocalBackend(settings), bundle.example)  # type: ignore[arg-type]
    with service as url, httpx.Client(base_url=url, timeout=60.0, trust_env=False) as http:
        (told,) = http.get("/v1/bundles").json()["bundles"]
        content = (study / "left_out" / "sub-02.npz").read_bytes()
        reply = http.post("/v1/generations", files={"file": content}, data={"images": "2"})
        refused = http.post("/v1/generations", files={"file": content}, data={"images": "3"})
    assert told["pictures"] == "category" and told["limits"]["max_images"] == 2
    answer = GenerationResponse.model_validate_json(reply.content)
    assert len(answer.epochs) == 5 and all(len(epoch.images) == 2 for epoch in answer.epochs)
    with Image.open(io.BytesIO(base64.b64decode(answer.epochs[0].images[1]))) as picture:
        assert picture.size == (24, 24)
    assert refused.status_code == 422 and "at most 2 per epoch" in refused.json()["detail"]


def test_an_aligned_bundle_needs_several_epochs_of_a_person(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_out = ("--leave-out", "sub-04", "--recordings", tmp_path)
    assert main(arguments(study, tmp_path / "bundle", study / "aligned.yaml", *left_out)) == 0
    answer = decoded(tmp_path / "bundle", tmp_path / "sub-04.npz", tmp_path / "out")
    assert any("all 5 epochs of the recording together" in one for one in answer["report"]["warnings"])
    SignalEpochs.load(tmp_path / "sub-04.npz").select([0]).save(tmp_path / "one.npz")
    capsys.readouterr()
    assert main(["decode", str(tmp_path / "one.npz"), "--bundle", str(tmp_path / "bundle"), "--out", "o"]) == 2
    assert "the recording has 1 epoch" in capsys.readouterr().err


def test_few_presentations_are_warned_of(bundle: Bundle, study: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    recording = SignalEpochs.load(study / "left_out" / "sub-02.npz")
    replace(recording, n_averaged=(1,) * 5).save(tmp_path / "single.npz")
    answer = decoded(bundle.folder, tmp_path / "single.npz", tmp_path / "out")
    assert any("nothing is known about its answers" in one for one in answer["report"]["warnings"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--leave-out", "sub-99"], "no people ['sub-99'] in things_eeg1"),
        (["--recordings", "somewhere"], "add --leave-out"),
        (["--generator", "none"], "--generator has no effect with --study"),
    ],
)
def test_wrong_options_are_refused(
    study: Path, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(study, tmp_path / "bundle", study / "plain.yaml", *more)) == 2
    assert said in capsys.readouterr().err


def test_pictures_of_real_categories_are_of_those_categories(shared_data: Path) -> None:
    import csv

    patterns = yaml.safe_load((CONFIGS / "gallery_things_eeg1.yaml").read_text())
    with (shared_data / "gallery" / "labels.csv").open(newline="") as file:
        concept_of = {row["file"].removeprefix("gallery/"): row["things_concept"] for row in csv.DictReader(file)}
    with (shared_data / "metadata" / "things_concepts.tsv").open(newline="", encoding="utf-8-sig") as file:
        rows = {row["uniqueID"]: row for row in csv.DictReader(file, delimiter="\t")}
    checked = 0
    for category, some in patterns.items():
        for pattern in some:
            files = sorted((shared_data / "gallery").glob(pattern))
            assert len(files) == 3, pattern
            concept = concept_of[files[0].relative_to(shared_data / "gallery").as_posix()]
            if concept:
                columns = ("Top-down Category (WordNet)", "Top-down Category (manual selection)")
                told = {one.strip() for column in columns for one in rows[concept][column].split(",")}
                assert category in told and not told & (set(CLASSES) - {category}), (pattern, told)
                checked += 1
    assert checked >= 20  # all but the brain


@pytest.mark.parametrize(
    ("name", "lowest"),
    [
        ("real_things_eeg1", 0.7),
        pytest.param("real_things_eeg1_aligned", 0.8, marks=pytest.mark.slow),
    ],
)
def test_real_people_left_out_are_decoded_at_the_rate_of_the_evaluation(
    name: str, lowest: float, shared_data: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    config["settings"] = config["settings"][1:2]  # one setting, so that the folds take seconds
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    people = ("sub-03", "sub-13", "sub-24", "sub-34", "sub-44", "sub-50")
    command: list[object] = ["bundle", "--study", tmp_path / "study.yaml", "--data", shared_data]
    command += ["--gallery", shared_data / "gallery"]
    command += ["--pictures", CONFIGS / "gallery_things_eeg1.yaml", "--out", tmp_path / "bundle"]
    command += ["--recordings", tmp_path / "people", *(one for person in people for one in ("--leave-out", person))]
    assert main([str(one) for one in command]) == 0
    manifest = Bundle.load(tmp_path / "bundle").manifest
    figure: Any = manifest.scores["people_left_out"]["balanced_accuracy"]  # type: ignore[index, call-overload]
    assert figure["value"] > lowest and figure["interval"][0] > 0.6 and figure["n"] == 150
    right, sure = [], []
    for person in people:
        answer = decoded(tmp_path / "bundle", tmp_path / "people" / f"{person}.npz", tmp_path / person)
        right += [name == epoch["stimulus"] for name, epoch in zip(found(answer), answer["epochs"], strict=True)]
        sure += [epoch["confidence"] for epoch in answer["epochs"]]
    error = 2 * float(np.sqrt(figure["value"] * (1 - figure["value"]) / len(right)))
    print(name, figure["value"], figure["interval"], np.mean(right), np.mean(sure))
    assert len(right) == 30 and abs(np.mean(right) - figure["value"]) < error
    assert abs(np.mean(sure) - np.mean(right)) < 0.2
