"""A search trains with the real loop on a small laboratory, sees no test epoch, and its best config trains."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import spearmanr

from alignment import search as module
from alignment.fit import FitResult
from alignment.rank_check import RankCheck, check_top, spearman
from alignment.recorded_sources import prepare
from alignment.runtime import Runtime
from alignment.search import Search, conclude, do_trials, open_search, search, search_text
from alignment.search_space import SearchConfig
from alignment.train import train
from alignment.train_config import TrainConfig
from tests.toy_lab import build_lab

SETTINGS: dict[str, Any] = {
    "space": {
        "fit.lr": {"name": "float", "low": 1e-5, "high": 0.01, "log": True},
        "modalities.eeg.encoder.n_time_weights": {"name": "choice", "values": [4, 8]},
    },
    "subset": {"fraction": 0.5, "seed": 1},
    "max_steps": 8,
    "validate_every": 2,
    "reduction_factor": 2,
    "n_startup": 4,
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """EEG of two people; test epochs, and all others but the prepared ones, are gone."""
    folder = tmp_path_factory.mktemp("lab")
    settings = build_lab(folder)
    chosen = TrainConfig.model_validate(
        {**settings, "modalities": {"eeg": settings["modalities"]["eeg"]}, "fusion": {"name": "single"},
         "fit": {**settings["fit"], "max_steps": 12},
         "data": {**settings["data"], "stores": {"eeg": settings["data"]["stores"]["eeg"]}}}
    )  # fmt: skip
    prepare(chosen)
    for name in ("eeg", "meg"):
        shutil.rmtree(folder / f"{name}.store" / "shards")
    return chosen


@pytest.fixture(scope="module")
def run(lab: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("search") / "run"
    return folder, search(lab, SearchConfig.model_validate(SETTINGS), folder, 8, n_check=3)


def test_the_report_says_what_was_seen_and_what_was_chosen(run: tuple[Path, dict[str, Any]]) -> None:
    folder, report = run
    assert report["n_trials"] == 8 and 2 <= report["n_cut"] <= 5
    subset = report["subset"]
    assert subset["n_concepts"] == subset["n_concepts_full"] == 31  # 39 less 8 of the selection
    assert 0.4 < subset["n_rows"] / subset["n_rows_full"] < 0.6
    assert report["chance"] == pytest.approx(1 / 24) and "selected on these" in report["score"]
    assert json.loads((folder / "search.json").read_text()) == json.loads(json.dumps(report))
    rows = json.loads((folder / "trials.json").read_text())
    assert len(rows) == 8 and {row["state"] for row in rows} == {"complete", "pruned"}
    assert all(row["steps"] == 8 for row in rows if row["state"] == "complete")
    assert all(row["steps"] < 8 for row in rows if row["state"] == "pruned")
    text = search_text(report)
    assert "31 of 31 concepts" in text and "chance 0.0417" in text and "Spearman" in text


def test_the_check_retrains_the_best_on_everything(run: tuple[Path, dict[str, Any]]) -> None:
    folder, report = run
    check = report["check"]
    assert len(check["full"]) == 3 and check["best"] == report["best"]["number"]
    assert check["full"][check["best"]] == max(check["full"].values())
    assert len(list((folder / "check").iterdir())) == 3
    steps = [json.loads(line)["step"] for line in (folder / "check" / f"{check['best']:05d}-0" / "log.jsonl").open()]
    assert max(steps) == 12  # the config's own length


def test_the_best_config_trains(lab: TrainConfig, run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    best = TrainConfig.model_validate(yaml.safe_load((run[0] / "best.yaml").read_text()))
    values = run[1]["best"]["values"]
    assert best.fit.lr == values["fit.lr"] and best.fit.max_steps == lab.fit.max_steps
    assert best.modalities["eeg"].network().n_time_weights == values["modalities.eeg.encoder.n_time_weights"]
    report = train(best, tmp_path)
    assert report["selection"]["score"] == pytest.approx(run[1]["check"]["full"][run[1]["best"]["number"]])


def test_a_killed_search_goes_on_where_it_was(
    lab: TrainConfig, run: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, plain, steps = SearchConfig.model_validate(SETTINGS), module.fit, []

    def dying(*args: Any, on_step: Any, **kwargs: Any) -> FitResult:
        def step_or_die(step: int, numbers: Any) -> None:
            steps.append(step)
            on_step(step, numbers)
            if len(steps) == 7:
                raise KeyboardInterrupt

        return plain(*args, on_step=step_or_die, **kwargs)

    monkeypatch.setattr(module, "fit", dying)
    opened = open_search(lab, settings, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        do_trials(opened, 2)
    again: Search = open_search(lab, settings, tmp_path)
    do_trials(again, 2)
    assert steps[6] == 7 and steps[7] == 6  # trial 0 went on after its checkpoint of step 5
    found, whole = conclude(again), json.loads((run[0] / "trials.json").read_text())
    first = next(row for row in whole if row["number"] == 0)
    rows = {row["number"]: row for row in json.loads((tmp_path / "trials.json").read_text())}
    assert found["n_trials"] == 2 and set(rows) == {1, 2}
    assert rows[1]["retry_of"] == 0 and rows[1]["values"] == first["values"]
    assert rows[1]["score"] == first["score"]  # bit for bit


def test_mistakes_are_named_before_anything_is_trained(lab: TrainConfig, tmp_path: Path) -> None:
    def opened(**changes: Any) -> None:
        open_search(lab, SearchConfig.model_validate({**SETTINGS, **changes}), tmp_path / "new")

    with pytest.raises(ValueError, match="'fit.learning_rate' does not exist"):
        opened(space={"fit.learning_rate": {"name": "int", "low": 1, "high": 2}})
    with pytest.raises(ValueError, match="need width == n_virtual"):
        opened(space={"modalities.eeg.encoder.width": {"name": "int", "low": 8, "high": 32}})
    with pytest.raises(ValueError, match="largest batch is 9999, expected at most the"):
        opened(space={"batch_size": {"name": "int", "low": 8, "high": 9999}})
    with pytest.raises(ValueError, match="0 or at least 3"):
        search(lab, SearchConfig.model_validate(SETTINGS), tmp_path / "new", 1, n_check=2)
    assert not (tmp_path / "new").exists()


def test_rank_agreement() -> None:
    assert spearman([1, 2, 3], [10, 20, 30]) == 1.0 and spearman([1, 2, 3], [3, 2, 1]) == -1.0
    ties = [1.0, 1.0, 2.0, 5.0], [2.0, 2.0, 3.0, 1.0]
    assert spearman(*ties) == pytest.approx(spearmanr(*ties).statistic)
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert "0.6 expected" in RankCheck({1: 0.1}, {1: 0.2}, 0.3, 1, 1).text
    assert "less than" in RankCheck({}, {}, 0.3, 1, 1).text and "less than" not in RankCheck({}, {}, 0.7, 1, 1).text


def test_seeds_are_averaged_and_too_few_are_refused(lab: TrainConfig, tmp_path: Path) -> None:
    def score(config: TrainConfig, folder: Path, runtime: Runtime) -> float:
        return config.fit.lr * (1 + config.seed)

    configs = [lab.model_copy(update={"fit": lab.fit.model_copy(update={"lr": lr})}) for lr in (0.1, 0.3, 0.2)]
    candidates = {i: (float(i), one) for i, one in enumerate(configs)}
    found = check_top(candidates, tmp_path, Runtime(), score, n_seeds=3)
    assert np.allclose(list(found.full.values()), [0.2, 0.6, 0.4]) and found.best == 1 and found.spearman == 0.5
    with pytest.raises(ValueError, match="expected at least 3"):
        check_top({0: candidates[0]}, tmp_path, Runtime(), score, n_seeds=1)
