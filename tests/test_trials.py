"""Trials find a known optimum, cut most of the bad ones, survive kills, and are shared by processes."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.search_space import SearchConfig
from alignment.trials import Report, open_trials, run_trials, trial_table

BEST_LR, BEST_WIDTH = 0.004, 96
SPACE: dict[str, Any] = {
    "fit.lr": {"name": "float", "low": 1e-5, "high": 1.0, "log": True},
    "fit.weight_decay": {"name": "float", "low": 0.0, "high": 0.1},
    "modalities.eeg.encoder.width": {"name": "int", "low": 16, "high": 256, "log": True},
}


def settings(**changes: Any) -> SearchConfig:
    return SearchConfig.model_validate({"space": SPACE, "heartbeat_seconds": 1, **changes})


def toy(values: Mapping[str, Any], number: int, report: Report) -> float:
    """A learning curve whose height depends on the distance to a known optimum, in factors."""
    distance = (
        math.log10(values["fit.lr"] / BEST_LR) ** 2
        + 0.3 * math.log2(values["modalities.eeg.encoder.width"] / BEST_WIDTH) ** 2
    )
    noise = np.random.default_rng(number)
    score = 0.0
    for step in (10, 20, 30, 60, 90):
        score = math.exp(-distance / 4) * (1 - math.exp(-step / 40)) + 0.01 * noise.standard_normal()
        report(step, score)
    return score


def opened(folder: Path, config: SearchConfig, storage: str = "") -> Any:
    return open_trials(folder, storage, config, "digest", max_steps=90, validate_every=10)


@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2))])
def test_a_known_optimum_is_found_in_thirty_trials_most_of_which_are_cut(seed: int, tmp_path: Path) -> None:
    config = settings(seed=seed)
    study = opened(tmp_path, config)
    run_trials(study, toy, config, 30)
    rows = trial_table(study, config)
    assert len(rows) == 30
    best = rows[0]
    assert best["state"] == "complete" and best["steps"] == 90
    assert BEST_LR / 3 < best["values"]["fit.lr"] < BEST_LR * 3
    cut = [row for row in rows if row["state"] == "pruned"]
    assert len(cut) > 0.4 * 30 and all(row["steps"] in (10, 30) for row in cut)


def test_a_search_goes_on_from_its_database_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    config = settings(seed=3)
    whole = opened(tmp_path / "whole", config)
    run_trials(whole, toy, config, 12)
    for n_trials in (5, 5, 12):  # the second time there is nothing to do
        parts = opened(tmp_path / "parts", config)
        run_trials(parts, toy, config, n_trials)
        assert len(parts.trials) == n_trials
    told = [
        [(row["number"], row["values"], row["score"]) for row in trial_table(one, config)] for one in (whole, parts)
    ]
    assert told[0] == told[1]


def test_another_search_in_the_same_database_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, settings())
    with pytest.raises(ValueError, match="another config or space"):
        open_trials(tmp_path, "", settings(), "other digest", max_steps=90, validate_every=10)


def test_a_diverging_trial_is_the_worst_and_another_error_stops(tmp_path: Path) -> None:
    config = settings()

    def diverging(values: Mapping[str, Any], number: int, report: Report) -> float:
        if number == 1:
            raise FloatingPointError("loss was not finite")
        if number == 3:
            raise ValueError("a mistake")
        return float(number)

    study = opened(tmp_path, config)
    with pytest.raises(ValueError, match="a mistake"):
        run_trials(study, diverging, config, 9)
    rows = trial_table(study, config)
    assert [row["number"] for row in rows] == [2, 0, 1]
    assert rows[-1]["state"] == "pruned" and "not finite" in rows[-1]["note"]


def test_hyperband_and_choices(tmp_path: Path) -> None:
    space = {"loss": {"name": "choice", "values": [{"name": "mse"}, {"name": "cosine"}]}}
    config = settings(space=space, pruner="hyperband")
    seen = []

    def objective(values: Mapping[str, Any], number: int, report: Report) -> float:
        seen.append(values["loss"])
        report(10, 0.0)
        return float(values["loss"] == {"name": "mse"})

    study = opened(tmp_path, config)
    run_trials(study, objective, config, 8)
    assert {"name": "mse"} in seen and {"name": "cosine"} in seen
    assert trial_table(study, config)[0]["values"] == {"loss": {"name": "mse"}}


def test_an_interrupted_trial_is_tried_again_under_its_own_number(tmp_path: Path) -> None:
    config = settings()
    numbers: list[int] = []

    def interrupted(values: Mapping[str, Any], number: int, report: Report) -> float:
        numbers.append(number)
        if numbers == [0, 1]:
            raise KeyboardInterrupt
        return values["fit.lr"]  # type: ignore[no-any-return]

    study = opened(tmp_path, config)
    with pytest.raises(KeyboardInterrupt):
        run_trials(study, interrupted, config, 3)
    run_trials(opened(tmp_path, config), interrupted, config, 3)
    assert numbers == [0, 1, 1, 3] and len(trial_table(study, config)) == 3


WORKER = """
import sys, time
from pathlib import Path
from tests.test_trials import opened, settings, toy
from alignment.trials import run_trials

folder, n_trials, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

def slow(values, number, report):
    with (folder / "log.txt").open("a") as file:
        file.write(f"{number}\\n")
    time.sleep(pause)
    return toy(values, number, report)

run_trials(opened(folder, settings()), slow, settings(), n_trials)
"""


def worker(folder: Path, root: Path, n_trials: int, pause: float) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", WORKER, str(folder), str(n_trials), str(pause)]
    return subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})


@pytest.mark.slow
def test_two_processes_share_one_sqlite_file(tmp_path: Path, project_root: Path) -> None:
    folder = tmp_path / "run"
    both = [worker(folder, project_root, 16, 0.3) for _ in range(2)]
    assert [one.wait(timeout=300) for one in both] == [0, 0]
    rows = trial_table(opened(folder, settings()), settings())
    numbers = [int(line) for line in (folder / "log.txt").read_text().split()]
    assert 16 <= len(rows) <= 17 and sorted(numbers) == list(range(len(rows)))  # nothing twice
    first = json.dumps([row["values"] for row in sorted(rows, key=lambda row: row["number"])][:2])
    assert len(set(first.split("}, {"))) == 2  # the two did not draw the same


@pytest.mark.slow
def test_the_trial_of_a_killed_process_is_done_again(tmp_path: Path, project_root: Path) -> None:
    folder = tmp_path / "run"
    dying = worker(folder, project_root, 4, 600.0)
    log = folder / "log.txt"
    for _ in range(600):
        if log.exists() and log.read_text():
            break
        time.sleep(0.1)
    os.kill(dying.pid, signal.SIGKILL)
    dying.wait()
    assert worker(folder, project_root, 4, 0.0).wait(timeout=300) == 0
    rows = trial_table(opened(folder, settings()), settings())
    assert len(rows) == 4
    (again,) = [row for row in rows if row["retry_of"] is not None]
    assert again["retry_of"] == 0
    dead = opened(folder, settings()).trials[0]
    assert dead.state.name == "FAIL" and dead.params["fit.lr"] == again["values"]["fit.lr"]
    assert [int(line) for line in log.read_text().split()].count(0) == 2
