"""Curves are written by Accelerate's tracker and read back with TensorBoard's own reader."""

import json
import socket
from pathlib import Path

import pytest
import torch
from accelerate import tracking as trackers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from alignment.fit import FitConfig, fit
from alignment.runtime import Runtime
from alignment.tracking import tracked


def test_tensorboard_reads_back_what_the_log_says(tmp_path: Path) -> None:
    config = FitConfig(max_steps=20, log_every=5, validate_every=10)
    with tracked("tensorboard", tmp_path) as on_log:
        fit(
            nn.Linear(2, 1), lambda module, batch: module(batch).square().mean(), lambda *_: torch.ones(3, 2), config,
            Runtime(device="cpu"), tmp_path, lambda module: {"score": 0.5}, on_log=on_log, progress=False,
        )  # fmt: skip
    reader = EventAccumulator(str(tmp_path / "curves"))
    reader.Reload()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "lr", "grad_norm", "val_score"):
        expected = {line["step"]: pytest.approx(line[name], rel=1e-6) for line in lines if name in line}
        assert {event.step: event.value for event in reader.Scalars(name)} == expected and expected
    names = [path.name for path in (tmp_path / "curves").iterdir()]
    assert len(names) == 1 and socket.gethostname() not in names[0]


def test_no_tracker_is_the_default(tmp_path: Path) -> None:
    with tracked("", tmp_path) as on_log:
        assert on_log is None
    assert not list(tmp_path.iterdir())


def test_unknown_and_missing_trackers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'tensorbored' is unknown, allowed are .*'tensorboard'"), tracked(
        "tensorbored", tmp_path
    ):
        pass
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [])
    with pytest.raises(ImportError, match=r"'tensorboard' needs a library.*phosphene\[train\]"), tracked(
        "tensorboard", tmp_path
    ):
        pass
    with pytest.raises(ImportError, match="pip install 'wandb'"), tracked("wandb", tmp_path):
        pass
