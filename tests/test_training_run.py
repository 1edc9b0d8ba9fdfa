"""One run of `alignment.train` on recorded data, on one process, two, and two with sharded weights."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from alignment.brain_training import BrainTraining
from alignment.checkpoint import Checkpoint, load_checkpoint
from alignment.fit import fit
from alignment.prepared_epochs import open_prepared
from alignment.recorded_sources import prepare
from alignment.runtime import Runtime
from alignment.train import main, train
from alignment.train_config import TrainConfig
from alignment.training_run import RunOptions
from tests.launched import kill_at, launch, losses
from tests.toy_lab import build_lab

STEPS = 12


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = build_lab(tmp_path_factory.mktemp("lab"))
    settings["fit"] |= {"max_steps": STEPS, "ema_decay": 0.9, "validate_every": 6}
    prepare(TrainConfig.model_validate(settings))
    return settings


@pytest.fixture(scope="module")
def config(lab: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "lab.yaml"
    path.write_text(yaml.safe_dump(lab))
    return path


@pytest.fixture(scope="module")
def one(lab: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    train(TrainConfig.model_validate(lab), folder)
    return folder


@pytest.fixture(scope="module")
def two(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    assert launch("cpu2", config, folder).wait(timeout=300) == 0
    return folder


@pytest.fixture(scope="module")
def sharded(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    assert launch("fsdp_cpu2", config, folder).wait(timeout=300) == 0
    return folder


def last(folder: Path) -> Checkpoint:
    found = load_checkpoint(folder / "checkpoints")
    assert found is not None and found.step == STEPS
    return found


def determined(found: Checkpoint) -> dict[str, torch.Tensor]:
    """Tell which entries of each parameter have a gradient above rounding.

    The columns of frequency 0 of the sensor attention's queries add the same number to all logits of a softmax, so its
    gradient is 0 plus rounding (1e-10), which Adam divides by itself: those entries move at random in any two runs
    that add in another order, and change no output.
    """
    masks = {}
    for index, name in enumerate(found.meta["parameters"]):
        masks[name] = found.tensors[f"optimizer.{index}.exp_avg_sq"].sqrt() > 1e-8
    n_queries, n_modalities, sine_and_cosine = 16, 2, 2
    assert sum(int((~mask).sum()) for mask in masks.values()) <= n_queries * n_modalities * sine_and_cosine
    return masks


def assert_equal_runs(first: Path, second: Path, tolerance: float = 1e-5) -> None:
    """Compare losses of all steps and all that the last checkpoint and the best weights hold."""
    assert losses(first) == pytest.approx(losses(second), rel=tolerance)
    masks = determined(last(first))
    pairs = [(last(first), last(second)), (load_checkpoint(first / "best"), load_checkpoint(second / "best"))]
    for a, b in pairs:
        assert a is not None and b is not None and a.step == b.step and set(a.tensors) == set(b.tensors)
        for name, value in a.tensors.items():
            mask = masks.get(name.removeprefix("module.").removeprefix("ema."), torch.tensor(True))
            difference = (value.float() - b.tensors[name].float()).abs() * mask
            assert difference.max() < tolerance, name


def test_two_processes_equal_one_with_the_joint_batch(one: Path, two: Path) -> None:
    assert_equal_runs(one, two)
    assert sorted(losses(two)) == list(range(1, STEPS + 1))
    assert json.loads((two / "environment.json").read_text())[0]["runtime"]["processes"] == 2


def test_sharded_processes_have_the_losses_and_the_checkpoint_of_one(one: Path, two: Path, sharded: Path) -> None:
    assert json.loads((sharded / "environment.json").read_text())[0]["runtime"]["sharded"]
    assert_equal_runs(two, sharded)
    assert_equal_runs(one, sharded)
    reports = [json.loads((folder / "report.json").read_text())["selection"] for folder in (one, sharded)]
    assert reports[0] == pytest.approx(reports[1], abs=1e-6)


def without_the_end(source: Path, folder: Path) -> Path:
    """Copy a finished run as if it had been killed after the checkpoint of step 10."""
    shutil.copytree(source, folder)
    shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:08d}")
    assert {path.name for path in (folder / "checkpoints").glob("step-*")} == {"step-00000010"}
    return folder


def test_a_checkpoint_of_sharded_processes_continues_on_one(
    lab: dict[str, Any], one: Path, sharded: Path, tmp_path: Path
) -> None:
    folder = without_the_end(sharded, tmp_path / "run")
    train(TrainConfig.model_validate(lab), folder)
    assert_equal_runs(one, folder)


@pytest.mark.slow
def test_a_checkpoint_of_one_process_continues_sharded(config: Path, one: Path, tmp_path: Path) -> None:
    folder = without_the_end(one, tmp_path / "run")
    assert launch("fsdp_cpu2", config, folder).wait(timeout=300) == 0
    assert_equal_runs(one, folder)


@pytest.mark.parametrize("n_lines", [4, pytest.param(9, marks=pytest.mark.slow)])
def test_two_killed_processes_resume_to_bit_equal_losses(config: Path, two: Path, n_lines: int, tmp_path: Path) -> None:
    kill_at(launch("cpu2", config, tmp_path), tmp_path / "log.jsonl", n_lines)
    assert not (tmp_path / "report.json").exists()
    assert launch("cpu2", config, tmp_path).wait(timeout=300) == 0
    assert losses(tmp_path) == losses(two)
    for name, value in last(two).tensors.items():
        assert torch.equal(value, last(tmp_path).tensors[name]), name


@pytest.mark.slow
def test_sharded_processes_resume_to_bit_equal_losses(config: Path, sharded: Path, tmp_path: Path) -> None:
    kill_at(launch("fsdp_cpu2", config, tmp_path), tmp_path / "log.jsonl", 8)
    assert launch("fsdp_cpu2", config, tmp_path).wait(timeout=300) == 0
    assert losses(tmp_path) == losses(sharded)


def test_reading_ahead_changes_no_bit(lab: dict[str, Any], tmp_path: Path) -> None:
    settings = copy.deepcopy(lab)
    settings["fit"] |= {"max_steps": 30, "validate_every": 10}  # 30 steps are 6 passes over the pairs
    for one in settings["modalities"].values():
        one["encoder"]["spatial_dropout"] = 0.1  # draws from the global generator
    for n_workers in (0, 1, 4):
        train(TrainConfig.model_validate(settings), tmp_path / str(n_workers), RunOptions(n_workers=n_workers))
    found = [losses(tmp_path / str(n_workers)) for n_workers in (0, 1, 4)]
    assert len(found[0]) == 30 and found[0] == found[1] == found[2]


def run_with(lab: dict[str, Any], precision: Any, folder: Path) -> dict[str, float]:
    """Train 90 steps in one precision; scores of the last weights, computed in float32."""
    chosen = TrainConfig.model_validate({**lab, "fit": {**lab["fit"], "max_steps": 90, "validate_every": 90}})
    training = BrainTraining(chosen, Runtime(mixed_precision=precision, threads=1))
    fit(training.module, training.loss, training.batch_at, chosen.fit, training.runtime, folder, progress=False)
    assert all(value.dtype == torch.float32 for value in training.module.parameters())
    training.runtime = Runtime(mixed_precision="no", threads=1)
    return training.validate(training.module)


def test_half_precision_ends_within_one_point_of_float32(lab: dict[str, Any], tmp_path: Path) -> None:
    exact, *half = (run_with(lab, precision, tmp_path / precision) for precision in ("no", "bf16", "fp16"))
    for one in half:
        two_way = [name for name in exact if name.endswith("two_way")]
        assert exact["eeg+meg_two_way"] > 0.95 and len(two_way) == 3
        for name in two_way:  # top-1 of 48 rows is too coarse for one point
            assert one[name] == pytest.approx(exact[name], abs=0.01), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_losses_are_float32_inside_autocast(lab: dict[str, Any], precision: Any) -> None:
    training = BrainTraining(TrainConfig.model_validate(lab), Runtime(mixed_precision=precision, threads=1))
    batch = training.batch_at(0, 0, 1)
    exact, _ = training.loss(training.module, batch)
    with training.runtime.autocast():
        answers = training.module(
            batch["data"], batch["subject"], batch["target"], batch["stimulus"], batch["available"]
        )[0]
        loss, logs = training.loss(training.module, batch)
    assert any(value.dtype == training.runtime.dtype for value in answers.values())  # autocast is really on
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(value.dtype == torch.float32 for value in logs.values())


def test_a_flipped_byte_in_prepared_data_is_named_and_ends_the_run(lab: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(lab["data"]["folder"], tmp_path / "prepared")
    damaged = sorted((tmp_path / "prepared").glob("*/shards/eeg-train-*.npy"))[0]
    content = bytearray(damaged.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    chosen = TrainConfig.model_validate({**lab, "data": {**lab["data"], "folder": str(tmp_path / "prepared")}})
    for n_workers in (0, 2):
        with pytest.raises(ValueError, match=f"{damaged.name} does not match its sha256"):
            train(chosen, tmp_path / "run", RunOptions(n_workers=n_workers))
    assert not (tmp_path / "run" / "brain").exists()


def test_any_flipped_byte_in_the_index_of_prepared_data_is_named(lab: dict[str, Any], tmp_path: Path) -> None:
    """A digit of the index may say another picture, and would still be valid JSON."""
    shutil.copytree(lab["data"]["folder"], tmp_path / "prepared")
    index = next((tmp_path / "prepared").glob("*/prepared.json"))
    whole, digest = index.read_bytes(), json.loads(index.read_text())["prepared"]["digest"]
    for place in np.random.default_rng(0).integers(len(whole), size=60):
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"prepared\.json .*prepare again"):
            open_prepared(tmp_path / "prepared", digest)
    index.write_bytes(whole)
    open_prepared(tmp_path / "prepared", digest)


def test_a_flipped_byte_in_the_newest_checkpoint_costs_one_interval_and_no_bit(
    lab: dict[str, Any], one: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(one, tmp_path / "run")
    damaged = tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}" / "state.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    train(TrainConfig.model_validate(lab), tmp_path / "run")
    assert f"step-{STEPS:08d} is passed over: state.safetensors does not match its sha256" in caplog.text
    assert losses(tmp_path / "run") == losses(one)
    for name, value in last(one).tensors.items():
        assert torch.equal(value, last(tmp_path / "run").tensors[name]), name


def test_profile_and_environment_are_in_the_run_folder(lab: dict[str, Any], tmp_path: Path) -> None:
    report = train(TrainConfig.model_validate(lab), tmp_path, RunOptions(profile=True, n_workers=1))
    times = json.loads((tmp_path / "report.json").read_text())["step_seconds"]
    assert times == report["step_seconds"] and times["n_steps"] == STEPS - 2
    assert 0 < times["median_compute"] < 5 and 0 <= times["wait_share"] < 1
    assert len(json.loads((tmp_path / "environment.json").read_text())) == 1
    train(TrainConfig.model_validate(lab), tmp_path, RunOptions())
    assert len(json.loads((tmp_path / "environment.json").read_text())) == 1


def test_command_line_prints_the_profile_and_writes_curves(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "sys.argv",
        ["train", "--config", str(config), "--run-dir", str(tmp_path), "--profile", "--tracker", "tensorboard"],
    )
    main()
    said = capsys.readouterr().out
    assert "ms for its batch and computed" in said and "of the time was waiting" in said
    assert list((tmp_path / "curves").glob("events*"))
