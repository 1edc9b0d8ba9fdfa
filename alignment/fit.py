"""The one training loop of the project: CLIP, VAE, diffusion U-Net and brain alignment all run through `fit`.

Everything a step needs follows from its number (batch, random numbers, learning rate), so a run that was killed and
started again repeats the uninterrupted run bit for bit on a CPU.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from tqdm import tqdm

from alignment.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
    write_atomic,
)
from alignment.optim import Schedule, lr_factor, parameter_groups, update_average
from alignment.runtime import Runtime
from encoders.layers.constraints import apply_constraints

LossFn = Callable[[nn.Module, Any], "Tensor | tuple[Tensor, Mapping[str, Any]]"]
BatchAt = Callable[[int, int, int], Any]
Validate = Callable[[nn.Module], Mapping[str, float]]

MAX_NON_FINITE = 3
FREE_TO_CHANGE = {"max_steps", "max_seconds", "validate_every", "checkpoint_every", "log_every"}


class FitConfig(BaseModel):
    """Settings of one training run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_steps: int = Field(gt=0)
    max_seconds: float = Field(default=0, ge=0, description="training time over all resumed parts; 0: no limit")
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Schedule = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    validate_every: int = Field(default=500, gt=0)
    checkpoint_every: int = Field(default=500, gt=0)
    log_every: int = Field(default=20, gt=0)


@dataclass(frozen=True)
class FitResult:
    """What a run ended with; ``weights`` is the state to use.

    ``weights`` holds the best validated state when ``validate`` gave a score, else the averaged (EMA) state, else the
    last one. ``average`` is the last EMA state (empty without EMA). The module that was passed in holds the last,
    un-averaged weights.
    """

    step: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    last_loss: float
    best_score: float
    best_step: int
    n_skipped: int
    seconds: float
    finished: bool


@dataclass
class _Progress:
    """What changes from step to step besides weights."""

    step: int = 0
    seconds: float = 0.0
    n_skipped: int = 0
    n_skipped_in_row: int = 0
    best_score: float = -math.inf
    best_step: int = -1
    last_loss: float = math.nan
    started: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.started


def fit(
    module: nn.Module,
    loss_fn: LossFn,
    batch_at: BatchAt,
    config: FitConfig,
    runtime: Runtime,
    run_dir: Path,
    validate: Validate | None = None,
    *,
    resume: bool = True,
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a module until ``max_steps`` or ``max_seconds``, with checkpoints in ``run_dir``.

    Parameters
    ----------
    module : nn.Module
        Trained in place; parameters that need no gradient are left alone.
    loss_fn : callable
        ``loss_fn(module, batch) -> loss`` or ``(loss, logs)``. With several processes it must call ``module(...)``
        itself (once), not a method of it, and average over its own rows.
    batch_at : callable
        ``batch_at(step, rank, world) -> batch``, a pure function of its arguments; tensors are moved to the device.
    config : FitConfig
        A resumed run must have the same values, apart from lengths and cadences.
    runtime : Runtime
    run_dir : Path
        Receives ``checkpoints/``, ``best/`` and ``log.jsonl``.
    validate : callable, optional
        ``validate(module) -> numbers``, called in eval mode without gradients and with averaged weights if there are
        any. If the numbers have a ``score`` (higher is better), the best state is kept.
    resume : bool
        Continue from the newest checkpoint that verifies; False discards what an earlier run left in ``run_dir``.
    on_step : callable, optional
        Called after every step with the step number and its logged numbers.
    progress : bool
        Show a progress bar.

    Returns
    -------
    FitResult

    Raises
    ------
    FloatingPointError
        After 3 steps in a row with a non-finite loss or gradient; single ones are skipped and counted.
    ValueError
        If the checkpoint belongs to another configuration or module.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if not resume:
        _discard(run_dir, runtime)
    prepared = runtime.prepare(module)
    inner = runtime.unwrap(prepared)
    names, groups = parameter_groups(inner, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=runtime.fused_optimizer)
    average = {name: value.detach().clone() for name, value in inner.state_dict().items()} if config.ema_decay else {}
    state = _Progress()
    found = load_checkpoint(run_dir / "checkpoints")
    if found is not None:
        _restore(found, inner, optimizer, average, state, config, names)
    log = _Log(run_dir / "log.jsonl", state.step, runtime.is_main)
    norms = [part for part in inner.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
    limit = config.max_seconds or math.inf
    out_of_time = state.seconds >= limit
    bar = tqdm(total=config.max_steps, initial=state.step, disable=not (progress and runtime.is_main), mininterval=1.0)
    while state.step < config.max_steps and not out_of_time:
        lr = config.lr * lr_factor(state.step, config.schedule, config.warmup_steps, config.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        runtime.seed_step(state.step)
        batch = runtime.to_device(batch_at(state.step, runtime.rank, runtime.world))
        statistics = [{k: v.clone() for k, v in part.named_buffers(recurse=False)} for part in norms]
        prepared.train()
        with runtime.autocast():
            answer = loss_fn(prepared, batch)
        loss, logs = answer if isinstance(answer, tuple) else (answer, {})
        loss.backward()  # type: ignore[no-untyped-call]
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, config.grad_clip)
        state.last_loss, grad_norm = float(loss.detach()), float(norm)
        broken = not (math.isfinite(state.last_loss) and math.isfinite(grad_norm))
        broken, out_of_time = runtime.any_of(broken, state.elapsed() >= limit)
        if broken:
            _undo(norms, statistics)
            state.n_skipped, state.n_skipped_in_row = state.n_skipped + 1, state.n_skipped_in_row + 1
        else:
            optimizer.step()
            apply_constraints(inner)
            update_average(average, inner, config.ema_decay, state.step)
            state.n_skipped_in_row = 0
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        numbers = {"loss": state.last_loss, "lr": lr, "grad_norm": grad_norm}
        numbers |= {name: float(torch.as_tensor(value).detach()) for name, value in logs.items()}
        if broken or state.step % config.log_every == 0 or state.step == config.max_steps:
            log.write({"step": state.step, **numbers, "skipped": state.n_skipped, "seconds": state.elapsed()})
        if state.n_skipped_in_row >= MAX_NON_FINITE:
            raise FloatingPointError(
                f"loss or gradient was not finite in {MAX_NON_FINITE} steps in a row, the last at step {state.step}; "
                f"the newest checkpoint in {run_dir} is sound: lower lr or check the data, then resume"
            )
        last = out_of_time or state.step == config.max_steps
        if validate is not None and (last or state.step % config.validate_every == 0):
            scores = _validated(validate, inner, average)
            log.write({"step": state.step, **{f"val_{name}": value for name, value in scores.items()}})
            _keep_best(scores, inner, average, state, run_dir, runtime)
        if last or state.step % config.checkpoint_every == 0:
            _save(run_dir / "checkpoints", inner, optimizer, average, state, config, names, runtime)
        bar.update()
        bar.set_postfix(loss=f"{state.last_loss:.4g}", refresh=False)
        if on_step is not None:
            on_step(state.step, numbers)
    bar.close()
    return FitResult(
        step=state.step, weights=_weights_to_use(inner, average, state, run_dir), average=_on_cpu(average),
        last_loss=state.last_loss, best_score=state.best_score, best_step=state.best_step,
        n_skipped=state.n_skipped, seconds=state.elapsed(), finished=state.step >= config.max_steps,
    )


class _Log:
    """JSON lines; on resume, lines later than the checkpoint are dropped because they will be written again."""

    def __init__(self, path: Path, step: int, active: bool) -> None:
        self.path, self.active = path, active
        if active and path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            write_atomic(path, "".join(line + "\n" for line in lines).encode())

    def write(self, numbers: Mapping[str, float]) -> None:
        if self.active:
            with self.path.open("a") as file:
                file.write(json.dumps(numbers) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:  # the last line of a killed run may be cut short
        return math.inf


def _undo(norms: Iterable[nn.Module], statistics: Iterable[Mapping[str, Tensor]]) -> None:
    """Put back running statistics that a non-finite batch has spoilt."""
    for part, values in zip(norms, statistics, strict=True):
        for name, value in values.items():
            part.get_buffer(name).copy_(value)


@torch.no_grad()
def _validated(validate: Validate, module: nn.Module, average: Mapping[str, Tensor]) -> dict[str, float]:
    current = {name: value.clone() for name, value in module.state_dict().items()} if average else {}
    if average:
        module.load_state_dict(average)
    module.eval()
    scores = {name: float(value) for name, value in validate(module).items()}
    if average:
        module.load_state_dict(current)
    return scores


def _keep_best(
    scores: Mapping[str, float], module: nn.Module, average: Mapping[str, Tensor], state: _Progress, run_dir: Path,
    runtime: Runtime,
) -> None:
    if scores.get("score", -math.inf) > state.best_score:
        state.best_score, state.best_step = scores["score"], state.step
        if runtime.is_main:
            weights = average or module.state_dict()
            save_checkpoint(run_dir / "best", state.step, weights, {"scores": dict(scores)})
    runtime.wait()


def _save(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: Mapping[str, Tensor],
    state: _Progress, config: FitConfig, names: list[str], runtime: Runtime,
) -> None:
    if runtime.is_main:
        tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in average.items()}
        tensors |= flatten_optimizer(optimizer)
        meta = {
            "seconds": state.elapsed(), "n_skipped": state.n_skipped, "n_skipped_in_row": state.n_skipped_in_row,
            "best_score": None if state.best_step < 0 else state.best_score, "best_step": state.best_step,
            "last_loss": state.last_loss if math.isfinite(state.last_loss) else None,
            "config": config.model_dump(mode="json"), "parameters": names,
        }
        save_checkpoint(folder, state.step, tensors, meta)
    runtime.wait()


def _restore(
    found: Checkpoint, module: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor],
    state: _Progress, config: FitConfig, names: list[str],
) -> None:
    now, then = config.model_dump(mode="json"), found.meta["config"]
    changed = sorted(key for key in now if key not in FREE_TO_CHANGE and now[key] != then.get(key))
    if changed or names != found.meta["parameters"]:
        what = f"settings {changed}" if changed else "another set of parameters"
        raise ValueError(f"{found.path} was written with other {what}; use a new run folder or resume=False")
    module.load_state_dict(_with_prefix(found.tensors, "module."))
    restore_optimizer(optimizer, found.tensors)
    for name, value in _with_prefix(found.tensors, "ema.").items():
        average[name].copy_(value)
    state.step, state.seconds = found.step, found.meta["seconds"]
    state.n_skipped, state.n_skipped_in_row = found.meta["n_skipped"], found.meta["n_skipped_in_row"]
    state.best_step = found.meta["best_step"]
    state.best_score = -math.inf if found.meta["best_score"] is None else found.meta["best_score"]
    state.last_loss = math.nan if found.meta["last_loss"] is None else found.meta["last_loss"]


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _weights_to_use(
    module: nn.Module, average: Mapping[str, Tensor], state: _Progress, run_dir: Path
) -> dict[str, Tensor]:
    best = load_checkpoint(run_dir / "best") if state.best_step >= 0 else None
    if best is not None:
        return best.tensors
    return _on_cpu(average or module.state_dict())


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}


def _discard(run_dir: Path, runtime: Runtime) -> None:
    if runtime.is_main:
        for name in ("checkpoints", "best"):
            shutil.rmtree(run_dir / name, ignore_errors=True)
        (run_dir / "log.jsonl").unlink(missing_ok=True)
    runtime.wait()
