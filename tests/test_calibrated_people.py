"""A person's calibration through the service is what `alignment` makes of it; one for another model is refused."""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_service import fake_service

from alignment.brain_model import BrainModel
from alignment.few_shot import FewShotConfig
from alignment.person_calibration import calibrate_label_free, calibrated_similarity, gallery_vectors
from alignment.person_map import PersonMap, fit_labelled, save_person
from alignment.runtime import Runtime
from encoders.epochs import SignalEpochs
from generation.bundle import Bundle, BundleError
from generation.calibrated_people import check_people
from serving.cli import DEMO_BUNDLE, DEMO_DATA, main
from serving.client import PhospheneClient, problem_of
from serving.local_backend import LocalBackend
from serving.settings import ServingSettings
from serving.simulated import show_scenes
from serving.stream_client import StreamClient
from serving.stream_schema import StreamEpoch, StreamOptions, StreamStart


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(DEMO_BUNDLE)


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> BrainModel:
    return BrainModel.load(bundle.brain_folder, Runtime(device="cpu"))


def recordings(seed: int, n_scenes: int) -> dict[str, SignalEpochs]:
    """Show scenes to one simulated person, who does not say who that is."""
    shown = show_scenes(DEMO_BUNDLE, DEMO_DATA, n_scenes=n_scenes, n_repetitions=1, subject=1, seed=seed)
    return {kind: replace(one, subject="") for kind, one in shown.recordings.items()}


@pytest.fixture(scope="module")
def first_session() -> dict[str, SignalEpochs]:
    return recordings(0, 60)


@pytest.fixture(scope="module")
def later() -> dict[str, SignalEpochs]:
    return recordings(1, 5)


@pytest.fixture(scope="module")
def people(bundle: Bundle, model: BrainModel, first_session: dict[str, SignalEpochs]) -> dict[str, PersonMap]:
    """Two calibrations for EEG: of the epochs alone, and of what was shown."""
    epochs, gallery = first_session["eeg"], bundle.gallery()
    rows = [gallery.names.index(name) for name in epochs.stimulus]
    shown = gallery_vectors(model, gallery.image_embeds[rows], ("eeg",))
    few_shot = fit_labelled(model.embed([epochs]).brain_embeds, shown, epochs.stimulus, "eeg", FewShotConfig())
    return {"anna": calibrate_label_free(model, epochs), "ben": few_shot}


@pytest.fixture(scope="module")
def folder(bundle: Bundle, people: dict[str, PersonMap], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("people")
    for subject, person in people.items():
        save_person(place / bundle.id / "lab", subject, person, bundle.brain_folder)
    # a person with both kinds is decoded with the labelled one
    save_person(place / bundle.id / "lab", "ben", people["anna"], bundle.brain_folder)
    return place


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    settings = ServingSettings(bundle=DEMO_BUNDLE, people_folder=str(folder))
    with fake_service(settings, LocalBackend(settings)) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[PhospheneClient]:
    with PhospheneClient(url) as connected:
        yield connected


@pytest.mark.parametrize("subject", ["anna", "ben"])
def test_served_embeddings_are_those_of_the_map_itself(
    client: PhospheneClient,
    bundle: Bundle,
    model: BrainModel,
    people: dict[str, PersonMap],
    later: dict[str, SignalEpochs],
    subject: str,
) -> None:
    person, gallery = people[subject], bundle.gallery()
    answer = model.embed([later["eeg"]])
    expected = model.projector(person.transform(answer.brain_embeds), "eeg")
    scores = calibrated_similarity(model, person, answer, gallery.image_embeds)
    served = client.embed(later["eeg"].to_bytes(), subject=subject)
    plain = client.embed(later["eeg"].to_bytes())
    found = np.array([epoch.embedding for epoch in served.epochs], dtype=np.float32)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-5 * scale)
    assert not np.allclose(found, np.array([epoch.embedding for epoch in plain.epochs]), atol=1e-2 * scale)
    best = [gallery.names[row] for row in scores.argmax(axis=1)]
    assert [epoch.neighbours[0].name for epoch in served.epochs] == best
    assert all(-1.001 <= near.similarity <= 1.001 for epoch in served.epochs for near in epoch.neighbours)
    # what surrogates were scored for is said of the answer without calibration
    assert [epoch.confidence for epoch in served.epochs] == [epoch.confidence for epoch in plain.epochs]
    assert served.noise_floor == plain.noise_floor and all(epoch.probability is None for epoch in served.epochs)


def test_the_answer_says_what_it_was_calibrated_with(
    client: PhospheneClient, people: dict[str, PersonMap], later: dict[str, SignalEpochs]
) -> None:
    content = later["eeg"].to_bytes()
    for subject, kind in (("anna", "label-free"), ("ben", "few-shot")):
        made = client.generate(content, subject=subject, num_inference_steps=1, average=True)
        assert made.report.calibration == kind and people[subject].provenance in made.report.calibration_words
    plain = client.generate(content, num_inference_steps=1)
    assert (plain.report.calibration, plain.report.calibration_words) == ("", "")
    (listed,) = client.bundles()
    assert listed.calibrated == ("anna", "ben")


def test_a_recording_of_another_modality_is_decoded_without_and_told(
    client: PhospheneClient, later: dict[str, SignalEpochs]
) -> None:
    answer, plain = (client.embed(later["meg"].to_bytes(), subject=subject) for subject in ("anna", ""))
    assert answer.report.calibration == "" and any("calibrated for eeg" in one for one in answer.report.warnings)
    assert answer.epochs == plain.epochs


def spoil(file: Path, how: str) -> None:
    meta = json.loads(file.read_text())
    if how == "another model":
        meta["model_sha256"] = "0" * 64
    elif how == "other arrays":
        tensors = file.with_suffix(".safetensors")
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x00")
    elif how == "another name":
        meta["modalities"] = "meg"
    elif how == "no object":
        file.write_text("[]")
        return
    else:
        del meta["kind"]
    file.write_text(json.dumps(meta))


@pytest.mark.parametrize("how", ["another model", "other arrays", "another name", "no object", "no kind"])
def test_a_calibration_that_does_not_belong_is_refused_at_the_start(
    bundle: Bundle, folder: Path, tmp_path: Path, how: str
) -> None:
    shutil.copytree(folder, tmp_path / "people")
    check_people(tmp_path / "people", bundle)
    spoil(tmp_path / "people" / bundle.id / "lab" / "anna.eeg.label-free.json", how)
    with pytest.raises(BundleError, match=r"anna.*calibrate the person again: phosphene calibrate --model"):
        check_people(tmp_path / "people", bundle)


@pytest.mark.parametrize("name", ["mean", "offset", "matrix"])
@pytest.mark.parametrize("how", ["NaN", "float64", "shape"])
def test_arrays_that_cannot_be_applied_are_refused_though_their_hash_is_right(
    bundle: Bundle, people: dict[str, PersonMap], tmp_path: Path, name: str, how: str
) -> None:
    array = getattr(people["ben"], name)
    wrong = {
        "NaN": np.where(np.arange(array.size).reshape(array.shape) == 3, np.float32(np.nan), array),
        "float64": array.astype(np.float64),
        "shape": array[:-1] if name == "matrix" else array[None],
    }[how]
    save_person(tmp_path / bundle.id / "lab", "ben", replace(people["ben"], **{name: wrong}), bundle.brain_folder)
    with pytest.raises(BundleError, match=f"its {name} is .*expected finite float32"):
        check_people(tmp_path, bundle)


def test_a_folder_that_is_not_there_is_refused_at_the_start(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no folder .*peeple of calibrations"):
        check_people(tmp_path / "peeple", bundle)


def test_one_that_is_spoilt_later_is_refused_without_its_name(
    bundle: Bundle,
    folder: Path,
    later: dict[str, SignalEpochs],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(folder, tmp_path / "people")
    settings = ServingSettings(bundle=DEMO_BUNDLE, people_folder=str(tmp_path / "people"))
    backend: Any = LocalBackend(settings)
    content = later["eeg"].to_bytes()
    with fake_service(settings, backend) as url, PhospheneClient(url) as client, caplog.at_level(logging.INFO):
        assert client.embed(content, subject="anna").report.calibration == "label-free"
        spoil(tmp_path / "people" / bundle.id / "lab" / "anna.eeg.label-free.json", "another model")
        with pytest.raises(Exception, match="made for another model") as caught:
            client.embed(content, subject="anna")
        problem = problem_of(caught.value)  # type: ignore[arg-type]
        assert problem is not None and problem.status == 422 and str(tmp_path) not in problem.detail
        assert client.embed(content).report.calibration == ""
    assert "anna" not in caplog.text
    with pytest.raises(BundleError, match="anna"):
        LocalBackend(settings)


def test_the_command_decodes_as_the_service_does(
    client: PhospheneClient,
    folder: Path,
    later: dict[str, SignalEpochs],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recording, out = tmp_path / "later.npz", str(tmp_path / "out")
    later["eeg"].save(recording)
    command = ["decode", str(recording), "--bundle", str(DEMO_BUNDLE), "--out", out, "--num-inference-steps", "1"]
    assert main([*command, "--people", str(folder), "--subject", "ben", "--json"]) == 0
    local = json.loads(capsys.readouterr().out)
    served = client.generate(recording.read_bytes(), subject="ben", num_inference_steps=1)
    assert local["report"]["calibration"] == served.report.calibration == "few-shot"
    for mine, other in zip(local["epochs"], served.epochs, strict=True):
        assert [near["name"] for near in mine["neighbours"]] == [near.name for near in other.neighbours]
    refused = (
        (["--subject", "ben"], "'ben' is not known"),
        (["--people", str(folder), "--subject", "zoe"], "'zoe' is not known"),
        (["--people", str(folder)], "no person was named"),
    )
    for more, words in refused:
        assert main([*command, *more]) == 2 and words in capsys.readouterr().err


def test_a_stream_is_calibrated_like_an_upload(url: str, later: dict[str, SignalEpochs]) -> None:
    epochs = later["eeg"]
    found = {}
    for subject in ("", "ben"):
        options = StreamOptions(subject=subject, num_inference_steps=1)
        start = StreamStart(
            modality="eeg", ch_names=epochs.ch_names, sfreq=epochs.sfreq, when_busy="wait", options=options
        )
        with StreamClient(url, start) as stream:
            stream.mark(round(epochs.sfreq), "seen")
            stream.push(np.concatenate(list(epochs.data), axis=1))
            (one,) = stream.finish()
        assert isinstance(one, StreamEpoch)
        found[subject] = one.answer
    assert (found[""].report.calibration, found["ben"].report.calibration) == ("", "few-shot")
    near = [[one.similarity for one in answer.epochs[0].neighbours] for answer in found.values()]
    assert near[0] != near[1]
