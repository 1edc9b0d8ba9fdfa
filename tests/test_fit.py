import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignment.checkpoint import load_checkpoint
from alignment.fit import FitConfig, FitResult, fit
from alignment.runtime import Runtime

# What the tests train, also as a program that can be killed.
TASK = """
import sys, time, torch
from pathlib import Path
from torch import nn
from alignment.fit import FitConfig, fit
from alignment.runtime import Runtime

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 1))

def run(folder, pause=0.0, **changes):
    runtime = Runtime(device="cpu", threads=1, seed=3)
    def batch_at(step, rank, world):
        time.sleep(pause)
        data = torch.randn(32, 4, generator=runtime.generator(step, rank))
        return {"data": data, "sum": data.sum(dim=1, keepdim=True)}
    def loss_fn(module, batch):
        return ((module(batch["data"]) - batch["sum"]) ** 2).mean()
    def validate(module):
        return {"score": -float((module(torch.ones(3, 4)) - 4).abs().mean())}
    settings = dict(max_steps=40, lr=0.01, schedule="onecycle", ema_decay=0.9, validate_every=10, checkpoint_every=7,
                    log_every=1) | changes
    module = make()
    return module, fit(module, loss_fn, batch_at, FitConfig(**settings), runtime, Path(folder), validate,
                       progress=False)
"""
NAMES: dict[str, Any] = {}
exec(TASK, NAMES)


def run(folder: Path, **changes: Any) -> tuple[nn.Module, FitResult]:
    answer: tuple[nn.Module, FitResult] = NAMES["run"](folder, **changes)
    return answer


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def simple_fit(folder: Path, loss_fn: Any, module: nn.Module | None = None, **settings: Any) -> FitResult:
    def batch_at(step: int, rank: int, world: int) -> Tensor:
        return torch.full((8, 2), float(step)) + torch.arange(8.0)[:, None]

    config = FitConfig(**({"max_steps": 10, "log_every": 1} | settings))
    runtime = Runtime(device="cpu", threads=1)
    return fit(module or nn.Linear(2, 1), loss_fn, batch_at, config, runtime, folder, progress=False)


def test_killed_and_resumed_repeats_the_uninterrupted_run_bit_for_bit(tmp_path: Path, project_root: Path) -> None:
    module, whole = run(tmp_path / "whole")
    program = TASK + "\nrun(sys.argv[1], pause=0.03)\n"
    folder = tmp_path / "killed"
    log = folder / "log.jsonl"
    for lines in (10, 25):
        command = [sys.executable, "-c", program, str(folder)]
        with subprocess.Popen(command, cwd=project_root) as process:
            while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= lines):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
    found = load_checkpoint(folder / "checkpoints")
    assert found is not None and found.step < 40
    again, resumed = run(folder)
    assert losses(folder) == losses(tmp_path / "whole")
    for one, other in zip(module.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for name, value in whole.weights.items():
        assert torch.equal(value, resumed.weights[name])
    assert (whole.best_score, whole.best_step) == (resumed.best_score, resumed.best_step)
    assert (folder / "log.jsonl").read_text().count('"step": 40') == 2  # one training line, one validation line


def test_finished_run_only_reads_its_result(tmp_path: Path) -> None:
    _, first = run(tmp_path)
    _, second = run(tmp_path)
    assert second.step == first.step == 40 and second.finished
    assert all(torch.equal(value, second.weights[name]) for name, value in first.weights.items())


def test_best_validated_weights_are_the_result(tmp_path: Path) -> None:
    scores = iter([1.0, 3.0, 2.0])
    states = []

    def validate(module: nn.Module) -> dict[str, float]:
        assert not module.training and not torch.is_grad_enabled()
        states.append({name: value.clone() for name, value in module.state_dict().items()})
        return {"score": next(scores)}

    def loss_fn(module: nn.Module, batch: Tensor) -> Tensor:
        return module(batch).square().mean()

    def batch_at(step: int, rank: int, world: int) -> Tensor:
        return torch.ones(4, 2)

    config = FitConfig(max_steps=30, validate_every=10)
    runtime = Runtime(device="cpu")
    result = fit(nn.Linear(2, 1), loss_fn, batch_at, config, runtime, tmp_path, validate, progress=False)
    assert (result.best_score, result.best_step) == (3.0, 20)
    assert all(torch.equal(value, result.weights[name]) for name, value in states[1].items())


def test_average_is_returned_and_stored(tmp_path: Path) -> None:
    module, result = run(tmp_path, validate_every=1000, max_steps=12)
    found = load_checkpoint(tmp_path / "checkpoints")
    assert found is not None and found.step == 12
    assert torch.equal(result.average["0.weight"], found.tensors["ema.0.weight"])
    assert not torch.equal(result.average["0.weight"], module.state_dict()["0.weight"])
    plain = run(tmp_path / "plain", ema_decay=0.0, max_steps=12)[1]
    assert plain.average == {}


def test_single_broken_batches_are_skipped_and_counted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))

    def loss_fn(module: nn.Module, batch: Tensor) -> Tensor:
        if batch[0, 0] in (3, 4, 7):
            batch = batch * math.nan
        return module(batch).square().mean()

    result = simple_fit(tmp_path, loss_fn, module, checkpoint_every=1)
    assert result.n_skipped == 3 and result.finished
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_infinite_gradient_counts_as_broken(tmp_path: Path) -> None:
    module = nn.Linear(2, 1)

    def loss_fn(module: nn.Module, batch: Tensor) -> Tensor:
        return (module(batch) * 0).sum().sqrt()

    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        simple_fit(tmp_path, loss_fn, module)
    assert module.weight.isfinite().all()


def test_three_broken_batches_in_a_row_stop_the_run_before_anything_bad_is_saved(tmp_path: Path) -> None:
    def loss_fn(module: nn.Module, batch: Tensor) -> Tensor:
        loss: Tensor = module(batch).square().mean()
        return loss * math.nan if batch[0, 0] >= 5 else loss

    with pytest.raises(FloatingPointError, match="step 8"):
        simple_fit(tmp_path, loss_fn, checkpoint_every=1)
    found = load_checkpoint(tmp_path / "checkpoints")
    assert found is not None and all(value.isfinite().all() for value in found.tensors.values())


def test_out_of_time_stops_cleanly_and_goes_on_with_more_time(tmp_path: Path) -> None:
    _, first = run(tmp_path, pause=0.02, max_seconds=0.2)
    assert 0 < first.step < 40 and not first.finished
    _, same = run(tmp_path, pause=0.02, max_seconds=0.2)
    assert same.step == first.step
    _, more = run(tmp_path, max_seconds=60)
    assert more.finished


def test_other_settings_or_other_module_are_refused_on_resume(tmp_path: Path) -> None:
    run(tmp_path, max_steps=7)
    with pytest.raises(ValueError, match=r"\['lr'\]"):
        run(tmp_path, lr=0.5)

    def loss_fn(module: nn.Module, batch: Tensor) -> Tensor:
        return module(batch).square().mean()

    simple_fit(tmp_path / "one", loss_fn)
    with pytest.raises(ValueError, match="parameters"):
        simple_fit(tmp_path / "one", loss_fn, nn.Sequential(nn.Linear(2, 1)), max_steps=20)


def test_resume_false_starts_over(tmp_path: Path) -> None:
    run(tmp_path, max_steps=7)
    result = fit(
        nn.Linear(2, 1),
        lambda module, batch: module(batch).square().mean(),
        lambda step, rank, world: torch.ones(3, 2),
        FitConfig(max_steps=3, log_every=1),
        Runtime(device="cpu"),
        tmp_path,
        resume=False,
        progress=False,
    )
    assert result.step == 3 and sorted(losses(tmp_path)) == [1, 2, 3]


def test_loss_falls_and_logs_are_json_lines_with_extra_numbers(tmp_path: Path) -> None:
    seen: list[int] = []

    def loss_fn(module: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss: Tensor = (module(torch.ones(2, 2)) - 3).square().mean()
        return loss, {"extra": loss * 2}

    config = FitConfig(max_steps=50, lr=0.1, log_every=10)
    fit(
        nn.Linear(2, 1), loss_fn, lambda step, rank, world: torch.zeros(1), config, Runtime(device="cpu"), tmp_path,
        on_step=lambda step, numbers: seen.append(step), progress=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50] and seen == list(range(1, 51))
    assert lines[-1]["loss"] < 0.1 * lines[0]["loss"]
    assert lines[0]["extra"] == pytest.approx(2 * lines[0]["loss"])


def half_precision_fit(folder: Path, loss_fn: Any, module: nn.Module, **settings: Any) -> FitResult:
    config = FitConfig(**({"max_steps": 40, "log_every": 1, "lr": 0.05, "schedule": "constant"} | settings))

    def batch_at(step: int, rank: int, world: int) -> Tensor:
        return torch.randn(32, 4, generator=torch.Generator().manual_seed(step))

    runtime = Runtime(device="cpu", threads=1, mixed_precision="fp16")
    return fit(module, loss_fn, batch_at, config, runtime, folder, progress=False)


def sum_loss(module: nn.Module, batch: Tensor) -> Tensor:
    loss: Tensor = (module(batch).float() - batch.sum(dim=1, keepdim=True)).square().mean()
    return loss


def test_float16_scales_the_loss_and_learns_what_float32_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Linear(4, 1)
    result = half_precision_fit(tmp_path, sum_loss, module, max_steps=120)
    assert result.n_skipped < 10 and result.last_loss < 1e-3  # the first scale is too large for this loss
    assert module.weight.dtype == torch.float32 and torch.allclose(module.weight, torch.ones(1, 4), atol=0.02)


def test_small_gradients_survive_float16(tmp_path: Path) -> None:
    """A gradient of 1e-9 per row is 0 in float16 (smallest 6e-8); scaled by 65,536 it moves the weights."""

    def loss_fn(module: nn.Module, batch: Tensor) -> Tensor:
        return (module(batch).half() * 1e-6).float().sum() * 1e-3

    module = nn.Linear(4, 1)
    before = module.bias.item()
    half_precision_fit(tmp_path, loss_fn, module, max_steps=1, lr=0.1)
    gradient, adams_eps = 32e-9, 1e-8
    assert module.bias.item() == pytest.approx(before - 0.1 * gradient / (gradient + adams_eps), abs=2e-3)


def test_float16_overflow_lowers_the_scale_and_skips_without_stopping(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Linear(4, 1)
    scales = []

    class Overflowing(torch.autograd.Function):
        """The gradient of a loss times 1,000, as float16 would hold it."""

        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            scales.append(float(grads[0]))
            return grads[0] * (1.0 if float(grads[0]) * 1000 < 65504 else math.inf)

    def loss_fn(module: nn.Module, batch: Tensor) -> Tensor:
        answer: Tensor = Overflowing.apply(sum_loss(module, batch))  # type: ignore[no-untyped-call]
        return answer

    result = half_precision_fit(tmp_path, loss_fn, module, max_steps=30, checkpoint_every=10)
    assert scales[:12] == [2.0**k for k in (16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 6)]
    assert result.n_skipped == 10 and result.finished and module.weight.isfinite().all()
    found = load_checkpoint(tmp_path / "checkpoints")
    assert found is not None and found.meta["loss_scale"] == [64.0, 20]
    half_precision_fit(tmp_path, loss_fn, module, max_steps=31)
    assert scales[-1] == 64.0  # a resumed run goes on with it


def test_float16_stops_when_gradients_stay_infinite_at_scale_one(tmp_path: Path) -> None:
    def loss_fn(module: nn.Module, batch: Tensor) -> Tensor:
        return (module(batch).float() * 0).sum().sqrt()

    with pytest.raises(FloatingPointError, match="step 19"):  # 16 halvings, then three in a row
        half_precision_fit(tmp_path, loss_fn, nn.Linear(4, 1))


def test_onecycle_reaches_a_loss_in_fewer_steps_than_a_constant_rate(tmp_path: Path) -> None:
    """In 200 steps on a noisy task; the constant rate may choose among four, and the step at which it stops."""
    weights = torch.randn(8, generator=torch.Generator().manual_seed(1))
    held_out = torch.randn(512, 8, generator=torch.Generator().manual_seed(10**6))

    def errors(schedule: str, lr: float) -> list[float]:
        seen: list[float] = []
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))

        def batch_at(step: int, rank: int, world: int) -> Tensor:
            return torch.randn(16, 8, generator=torch.Generator().manual_seed(step))

        def loss_fn(module: nn.Module, batch: Tensor) -> Tensor:
            return (module(batch)[:, 0] - torch.sin(batch @ weights) - 0.5 * torch.randn(len(batch))).square().mean()

        @torch.no_grad()
        def note(step: int, numbers: Any) -> None:
            seen.append(float((module(held_out)[:, 0] - torch.sin(held_out @ weights)).square().mean()))

        settings: dict[str, Any] = {"max_steps": 200, "lr": lr, "schedule": schedule, "weight_decay": 0}
        fit(
            module, loss_fn, batch_at, FitConfig(**settings), Runtime(device="cpu", threads=1),
            tmp_path / f"{schedule}-{lr}", on_step=note, progress=False,
        )  # fmt: skip
        return seen

    target = 0.08
    assert errors("onecycle", 0.03)[-1] < target
    assert min(min(errors("constant", lr)) for lr in (0.003, 0.01, 0.03, 0.1)) > target


def test_the_best_weights_are_those_of_the_best_step_or_say_which(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scores = iter([1.0, 2.0])

    def again() -> FitResult:
        return fit(
            nn.Linear(2, 1), lambda module, batch: module(batch).square().mean(), lambda *_: torch.ones(3, 2),
            FitConfig(max_steps=20, validate_every=10), Runtime(device="cpu"), tmp_path,
            lambda module: {"score": next(scores)}, progress=False,
        )  # fmt: skip

    assert (again().best_step, caplog.text) == (20, "")
    path = tmp_path / "best" / "step-00000020" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    result = again()
    assert (result.best_step, result.best_score) == (10, 1.0) and "weights of step 20 are lost" in caplog.text
