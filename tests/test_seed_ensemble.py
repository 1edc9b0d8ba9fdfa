"""Several seeds: a model each, and the average of their similarities on validation pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.brain_model import BrainModel
from alignment.brain_training import record_study
from alignment.recorded_sources import prepare
from alignment.runtime import Runtime
from alignment.seed_ensemble import ensemble_text, train_seeds
from alignment.train_config import TrainConfig
from tests.toy_lab import build_lab


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path, dict[str, Any]]:
    settings = build_lab(tmp_path_factory.mktemp("lab"))
    settings["fit"] |= {"max_steps": 10}
    config = TrainConfig.model_validate(settings)
    prepare(config)
    folder = tmp_path_factory.mktemp("run")
    return config, folder, train_seeds(config, (0, 1, 2), folder)


def test_the_average_is_scored_on_validation_pictures_with_chance_and_interval(
    run: tuple[TrainConfig, Path, dict[str, Any]],
) -> None:
    config, folder, report = run
    assert json.loads((folder / "ensemble.json").read_text()) == json.loads(json.dumps(report))
    assert report["split"] == "val"
    assert set(report["scores"]) == {"eeg", "meg", "eeg+meg"}
    study = record_study(config, Runtime(threads=1))
    shown = study.val.view(("eeg",))
    cosines = []
    for seed in (0, 1, 2):
        model = BrainModel.load(folder / f"seed-{seed}" / "brain", Runtime(threads=1))
        cosines.append(
            model.similarity(model.encode({"eeg": shown.data["eeg"]}, shown.subject), study.val_embeds, ("eeg",))
        )
    table = report["scores"]["eeg"]
    top_1 = [float((one.argmax(axis=1) == shown.target).mean()) for one in (*cosines, np.mean(cosines, axis=0))]
    assert [table["seeds"][str(seed)]["top_1"] for seed in (0, 1, 2)] == pytest.approx(top_1[:3])
    assert table["ensemble"]["top_1"] == pytest.approx(top_1[3])
    assert len(set(top_1[:3])) > 1 and table["ensemble"]["chance_top_1"] == pytest.approx(1 / 24)
    low, high = table["ensemble"]["interval_top_1"]
    assert low <= table["ensemble"]["top_1"] <= high and table["n_averaged"] == 2
    assert "selected on these pictures" in ensemble_text(report) and "chance 0.0417" in ensemble_text(report)


def test_averaging_helps_on_the_toy(run: tuple[TrainConfig, Path, dict[str, Any]]) -> None:
    for table in run[2]["scores"].values():
        assert table["ensemble"]["top_1"] >= np.mean([one["top_1"] for one in table["seeds"].values()])


def test_finished_seeds_are_only_read_again(run: tuple[TrainConfig, Path, dict[str, Any]]) -> None:
    config, folder, report = run
    logs = {seed: (folder / f"seed-{seed}" / "log.jsonl").read_bytes() for seed in (0, 1, 2)}
    assert train_seeds(config, (0, 1, 2), folder)["scores"] == report["scores"]
    assert logs == {seed: (folder / f"seed-{seed}" / "log.jsonl").read_bytes() for seed in (0, 1, 2)}


@pytest.mark.parametrize("seeds", [(1,), (1, 1)])
def test_fewer_than_two_seeds_are_refused(
    run: tuple[TrainConfig, Path, dict[str, Any]], seeds: tuple[int, ...], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="two or more different seeds"):
        train_seeds(run[0], seeds, tmp_path)
