"""Ray workers share the trials of one search."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.recorded_sources import prepare
from alignment.train_config import TrainConfig
from serving.tune import tune
from tests.test_search import SETTINGS
from tests.toy_lab import build_lab


def lab(folder: Path) -> dict[str, Any]:
    settings = build_lab(folder)
    stores = {"eeg": settings["data"]["stores"]["eeg"]}
    return {
        **settings,
        "modalities": {"eeg": settings["modalities"]["eeg"]},
        "fusion": {"name": "single"},
        "data": {**settings["data"], "stores": stores},
    }


@pytest.mark.slow
def test_two_ray_workers_do_the_trials_of_one_search(tmp_path: Path) -> None:
    settings = lab(tmp_path)
    prepare(TrainConfig.model_validate(settings))
    report = tune(settings, SETTINGS, tmp_path / "run", 6, n_workers=2)
    assert 6 <= report["n_trials"] <= 7 and report["best"]["score"] > 2 * report["chance"]
    rows = json.loads((tmp_path / "run" / "trials.json").read_text())
    assert sorted(row["number"] for row in rows) == list(range(len(rows)))
    assert (tmp_path / "run" / "best.yaml").exists()
    again = tune(settings, SETTINGS, tmp_path / "run", 6, n_workers=1)  # nothing is left to do
    assert again == report


def test_mistakes_are_named_before_ray_starts(tmp_path: Path) -> None:
    settings = lab(tmp_path)
    with pytest.raises(ValueError, match="run `phosphene prepare`"):
        tune(settings, SETTINGS, tmp_path / "run", 2, n_workers=1)
