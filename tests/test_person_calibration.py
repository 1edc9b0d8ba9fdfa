"""A person left out of the training is calibrated from a store; labels and test epochs are read only where said."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.brain_model import BrainModel
from alignment.person_calibration import (
    calibrate_label_free,
    calibrate_labelled,
    calibrated_similarity,
    compare_person,
    person_epochs,
)
from alignment.person_map import LabelFreeConfig, load_person
from alignment.recorded_sources import prepare
from alignment.runtime import Runtime
from alignment.target_table import read_target_table
from alignment.train import train
from alignment.train_config import TrainConfig
from encoders.store import EpochStore
from tests.toy_lab import build_lab

NEW = "sim-02"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """EEG of one person is trained on; the other person is new."""
    folder = tmp_path_factory.mktemp("lab")
    settings = build_lab(folder)
    config = TrainConfig.model_validate(
        {
            **settings,
            "modalities": {"eeg": settings["modalities"]["eeg"]},
            "fusion": {"name": "single"},
            "fit": {**settings["fit"], "max_steps": 60},
            "data": {
                **settings["data"],
                "stores": {"eeg": settings["data"]["stores"]["eeg"]},
                "held_out_subjects": [NEW],
            },
        }
    )
    prepare(config)
    train(config, folder / "run")
    return {
        "folder": folder,
        "model": BrainModel.load(folder / "run" / "brain", Runtime(device="cpu")),
        "store": EpochStore.open(folder / "eeg.store"),
        "table": read_target_table(folder / "targets.safetensors"),
    }


def test_figures_of_a_person_left_out_stand_apart(lab: dict[str, Any]) -> None:
    figures = compare_person(lab["model"], lab["store"], lab["table"], NEW)
    by_name = {one.name: one.report for one in figures}
    assert list(by_name) == ["inductive", "label_free", "label_free_transductive", "few_shot"]
    # people of this toy share nothing but the pictures, so only labels can help
    assert by_name["few_shot"].top_1 > 0.5 > 0.35 > by_name["inductive"].top_1
    assert all(one.n_gallery == 10 and one.chance_top_1 == pytest.approx(0.1) for one in by_name.values())
    few = compare_person(lab["model"], lab["store"], lab["table"], NEW, n_epochs=60)
    assert "60 labelled trials" in few[-1].uses and "60 epochs without labels" in few[1].uses


def test_somebody_trained_on_is_no_new_person(lab: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="was trained on 'sim-01'"):
        compare_person(lab["model"], lab["store"], lab["table"], "sim-01")


def test_label_free_calibration_does_not_see_what_was_shown(lab: dict[str, Any]) -> None:
    epochs = person_epochs(lab["store"], NEW, "train", 50)
    found = calibrate_label_free(lab["model"], epochs)
    shuffled = replace(epochs, stimulus=tuple(reversed(epochs.stimulus)))
    without = replace(epochs, stimulus=())
    for other in (shuffled, without):
        assert np.array_equal(calibrate_label_free(lab["model"], other).matrix, found.matrix)
    assert found.n_epochs == 50 and found.modalities == "eeg"
    with pytest.raises(ValueError, match="epochs without a stimulus id"):
        calibrate_labelled(lab["model"], without, lab["table"])


def test_a_calibration_is_for_its_modalities(lab: dict[str, Any]) -> None:
    model, table = lab["model"], lab["table"]
    epochs = person_epochs(lab["store"], NEW, "train", 50)
    person = calibrate_label_free(model, epochs, LabelFreeConfig(n_neighbours=3))
    answer = model.embed([epochs.select(range(5))])
    assert calibrated_similarity(model, person, answer, table.embeds[:12]).shape == (5, 12)
    with pytest.raises(ValueError, match=r"for 'eeg\+meg', the recording holds 'eeg'"):
        calibrated_similarity(model, replace(person, modalities="eeg+meg"), answer, table.embeds[:12])


def test_epochs_that_are_not_there_are_named(lab: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="'sim-09' has 0 epochs"):
        person_epochs(lab["store"], "sim-09", "train")
    with pytest.raises(ValueError, match="expected at least 9999"):
        person_epochs(lab["store"], NEW, "train", 9999)


def test_the_command_writes_calibration_and_figures(lab: dict[str, Any], project_root: Path, tmp_path: Path) -> None:
    folder = lab["folder"]
    command = [
        *(sys.executable, "-m", "alignment.person_calibration", "--model", str(folder / "run" / "brain")),
        *("--store", str(folder / "eeg.store"), "--targets", str(folder / "targets.safetensors")),
        *("--subject", NEW, "--out", str(tmp_path), "--labelled", "--epochs", "100", "--compare"),
    ]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    person = load_person(tmp_path / f"{NEW}.eeg.few-shot.json", folder / "run" / "brain")
    assert person.n_epochs == 100 and person.facts["source"] == str(folder / "eeg.store")
    assert len(person.facts["images"]) <= 100 and not any(name.startswith("t") for name in person.facts["images"])
    content = json.loads((tmp_path / f"{NEW}.comparison.json").read_text())
    assert set(content["figures"]) == {"inductive", "label_free", "label_free_transductive", "few_shot"}
    assert content["split"] == "test" and "100 labelled trials" in done.stdout
