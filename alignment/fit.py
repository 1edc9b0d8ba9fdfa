"""The one training loop of the project: CLIP, VAE, diffusion U-Net and brain alignment all run through `fit`.

Everything a step needs follows from its number (batch, random numbers, learning rate), so a run that was killed and
started again repeats the uninterrupted run bit for bit on a CPU.
"""

import copy
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

from alignment.checkpoint import load_checkpoint
from alignment.loss_scale import LossScale
from alignment.optim import Schedule, clipped_together, lr_factor, parameter_groups, update_average
from alignment.prefetch import StepTimes, batches_ahead
from alignment.runtime import Runtime, own_part
from alignment.training_state import (
    Progress,
    TrainingState,
    Validate,
    hand_over,
    keep_best,
    on_cpu,
    restore_state,
    save_state,
    validated,
    weights_to_use,
)
from encoders.durable_files import write_atomic
from encoders.layers.constraints import apply_constraints

LossFn = Callable[[nn.Module, Any], "Tensor | tuple[Tensor, Mapping[str, Any]]"]
BatchAt = Callable[[int, int, int], Any]
OnNumbers = Callable[[int, Mapping[str, float]], None]

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
    un-averaged weights. ``times`` are those of this part of a resumed run, see `StepTimes.summary`.
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
    times: dict[str, float] = field(default_factory=dict)


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
    on_step: OnNumbers | None = None,
    on_log: OnNumbers | None = None,
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
        With ``runtime.n_workers`` it runs in other threads, so it must not draw from global generators.
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
    on_log : callable, optional
        Called on the first process with the step and the numbers of every line of the log.
    progress : bool
        Show a progress bar.

    Returns
    -------
    FitResult

    Raises
    ------
    FloatingPointError
        After 3 steps in a row with a non-finite loss or gradient; single ones are skipped and counted. In float16
        gradients that overflow lower the loss scale first, and do not stop the run while it can be lowered.
    ValueError
        If the checkpoint belongs to another configuration or module.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if not resume:
        _discard(run_dir, runtime)
    state, prepared = _begin(module, config, runtime)
    settings = config.model_dump(mode="json")
    found = load_checkpoint(run_dir / "checkpoints")
    if found is not None:
        restore_state(state, found, settings, FREE_TO_CHANGE)
    now, scale, optimizer = state.progress, state.loss_scale, state.optimizer
    groups = clipped_together(state.trained, dict(zip(state.names, state.parameters, strict=True)))
    log = _Log(run_dir / "log.jsonl", now.step, runtime.is_main, on_log)
    norms = [part for part in state.trained.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
    limit, times = config.max_seconds or math.inf, StepTimes()
    out_of_time = now.seconds >= limit
    bar = tqdm(total=config.max_steps, initial=now.step, disable=not (progress and runtime.is_main), mininterval=1.0)

    def read(step: int) -> Any:
        return runtime.pinned(batch_at(step, runtime.rank, runtime.world))

    with batches_ahead(read, now.step, config.max_steps, runtime.n_workers) as batches:
        while now.step < config.max_steps and not out_of_time:
            lr = config.lr * lr_factor(now.step, config.schedule, config.warmup_steps, config.max_steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            runtime.seed_step(now.step)
            asked = time.monotonic()
            batch = next(batches)
            arrived = time.monotonic()
            batch = runtime.to_device(batch)
            statistics = [{k: v.clone() for k, v in part.named_buffers(recurse=False)} for part in norms]
            prepared.train()
            with runtime.autocast():
                answer = loss_fn(prepared, batch)
            loss, logs = answer if isinstance(answer, tuple) else (answer, {})
            scaled = loss if scale.value == 1 else loss.float() * scale.value
            scaled.backward()  # type: ignore[no-untyped-call]
            norms_of_groups = [runtime.clip_gradients(some, config.grad_clip, scale.value) for some in groups]
            grad_norm = math.hypot(*norms_of_groups)
            now.last_loss = float(loss.detach())
            broken, overflow, out_of_time = runtime.any_of(
                not math.isfinite(now.last_loss), not math.isfinite(grad_norm), now.elapsed() >= limit
            )
            if broken or overflow:
                _undo(norms, statistics)
                now.n_skipped += 1
                if broken or not scale.can_shrink:
                    now.n_skipped_in_row += 1
                else:
                    scale.shrink()
            else:
                optimizer.step()
                apply_constraints(state.trained)
                update_average(state.average, state.trained, config.ema_decay, now.step)
                scale.note_sound_step()
                now.n_skipped_in_row = 0
            optimizer.zero_grad(set_to_none=True)
            now.step += 1
            times.add(arrived - asked, time.monotonic() - arrived)
            numbers = {"loss": now.last_loss, "lr": lr, "grad_norm": grad_norm}
            numbers |= {name: float(torch.as_tensor(value).detach()) for name, value in logs.items()}
            if broken or overflow or now.step % config.log_every == 0 or now.step == config.max_steps:
                log.write(now.step, {**numbers, "skipped": now.n_skipped, "seconds": now.elapsed()})
            if now.n_skipped_in_row >= MAX_NON_FINITE:
                raise FloatingPointError(
                    f"loss or gradient was not finite in {MAX_NON_FINITE} steps in a row, the last at step {now.step}; "
                    f"the newest checkpoint in {run_dir} is sound: lower lr or check the data, then resume"
                )
            last = out_of_time or now.step == config.max_steps
            if validate is not None and (last or now.step % config.validate_every == 0):
                scores = validated(state, validate)
                log.write(now.step, {f"val_{name}": value for name, value in scores.items()})
                keep_best(state, scores, run_dir / "best")
            if last or now.step % config.checkpoint_every == 0:
                save_state(state, run_dir / "checkpoints", settings)
            bar.update()
            bar.set_postfix(loss=f"{now.last_loss:.4g}", refresh=False)
            if on_step is not None:
                on_step(now.step, numbers)
    bar.close()
    hand_over(state)
    weights = weights_to_use(state, run_dir / "best")
    return FitResult(
        step=now.step, weights=weights, average=on_cpu(runtime.full_state(state.average)),
        last_loss=now.last_loss, best_score=now.best_score, best_step=now.best_step, n_skipped=now.n_skipped,
        seconds=now.elapsed(), finished=now.step >= config.max_steps, times=times.summary(),
    )  # fmt: skip


def _begin(module: nn.Module, config: FitConfig, runtime: Runtime) -> tuple[TrainingState, nn.Module]:
    """Set up a run at step 0; also gives what ``loss_fn`` is called with."""
    trained = module
    if runtime.sharded:  # the caller's module stays whole
        module.to(runtime.device)
        trained = copy.deepcopy(module)
    prepared = runtime.prepare(trained)
    trained = runtime.unwrap(prepared)
    names, groups = parameter_groups(trained, config.weight_decay)
    if runtime.sharded:  # one kernel call takes sharded or plain tensors, not both
        groups = [
            {**group, "params": some}
            for group in groups
            for plain in (False, True)
            if (some := [p for p in group["params"] if (own_part(p) is p) == plain])
        ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=runtime.fused_optimizer)
    average = {name: value.detach().clone() for name, value in trained.state_dict().items()} if config.ema_decay else {}
    state = TrainingState(
        module=module if runtime.sharded else trained, trained=trained, optimizer=optimizer, names=names,
        average=average, progress=Progress(), loss_scale=LossScale(runtime.loss_scale), runtime=runtime,
    )  # fmt: skip
    return state, prepared


class _Log:
    """JSON lines; on resume, lines later than the checkpoint are dropped because they will be written again."""

    def __init__(self, path: Path, step: int, active: bool, on_log: OnNumbers | None = None) -> None:
        self.path, self.active, self.on_log = path, active, on_log
        if active and path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            write_atomic(path, "".join(line + "\n" for line in lines).encode())

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.active:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **numbers}) + "\n")
            if self.on_log is not None:
                self.on_log(step, numbers)


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


def _discard(run_dir: Path, runtime: Runtime) -> None:
    if runtime.is_main:
        for name in ("checkpoints", "best"):
            shutil.rmtree(run_dir / name, ignore_errors=True)
        (run_dir / "log.jsonl").unlink(missing_ok=True)
    runtime.wait()
