"""Everything a training run carries from step to step, and how it is saved, restored, validated and handed over.

What is saved is whole: a run that was sharded over processes continues on any number of them, and its result loads
anywhere. Gathering is done by all processes together, so all of them must call these functions.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignment.checkpoint import (
    Checkpoint,
    checkpoint_fault,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from alignment.loss_scale import LossScale
from alignment.runtime import Runtime, own_part, sharded_as

logger = logging.getLogger(__name__)

Validate = Callable[[nn.Module], Mapping[str, float]]


@dataclass
class Progress:
    """The numbers of a run that change from step to step."""

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


@dataclass
class TrainingState:
    """Weights, optimizer, average and numbers of a run.

    Attributes
    ----------
    module : nn.Module
        The caller's, whole on every process; validated.
    trained : nn.Module
        What the optimizer changes: ``module`` itself, or a copy that is sharded over processes.
    optimizer : torch.optim.Optimizer
    names : list of str
        Trained parameters, in the order of the checkpoint.
    average : dict of str to Tensor
        EMA of ``trained``; empty without.
    progress : Progress
    loss_scale : LossScale
    runtime : Runtime
    """

    module: nn.Module
    trained: nn.Module
    optimizer: torch.optim.Optimizer
    names: list[str]
    average: dict[str, Tensor]
    progress: Progress
    loss_scale: LossScale
    runtime: Runtime

    @property
    def parameters(self) -> list[nn.Parameter]:
        named = dict(self.trained.named_parameters())
        return [named[name] for name in self.names]

    def weights(self) -> dict[str, Tensor]:
        """Gather the current weights and buffers."""
        return self.runtime.full_state(self.trained.state_dict())


def save_state(state: TrainingState, folder: Path, settings: Mapping[str, Any]) -> None:
    """Write a checkpoint; the first process does."""
    tensors = {f"module.{name}": value for name, value in state.weights().items()}
    tensors |= {f"ema.{name}": value for name, value in state.runtime.full_state(state.average).items()}
    tensors |= flatten_optimizer(state.optimizer, state.parameters)
    if state.runtime.is_main:
        now = state.progress
        meta = {
            "seconds": now.elapsed(), "n_skipped": now.n_skipped, "n_skipped_in_row": now.n_skipped_in_row,
            "best_score": None if now.best_step < 0 else now.best_score, "best_step": now.best_step,
            "last_loss": now.last_loss if math.isfinite(now.last_loss) else None,
            "loss_scale": [state.loss_scale.value, state.loss_scale.n_sound],
            "config": dict(settings), "parameters": state.names,
        }
        save_checkpoint(folder, now.step, tensors, meta)
    state.runtime.wait()


def restore_state(
    state: TrainingState, found: Checkpoint, settings: Mapping[str, Any], free_to_change: set[str]
) -> None:
    """Continue from a checkpoint.

    Raises
    ------
    ValueError
        If it was written with other settings or for other parameters.
    """
    then = found.meta["config"]
    changed = sorted(key for key in settings if key not in free_to_change and settings[key] != then.get(key))
    if changed or state.names != found.meta["parameters"]:
        what = f"settings {changed}" if changed else "another set of parameters"
        raise ValueError(f"{found.path} was written with other {what}; use a new run folder or resume=False")
    _load(state.trained, _with_prefix(found.tensors, "module."))
    restore_optimizer(state.optimizer, found.tensors, state.parameters)
    for name, value in _with_prefix(found.tensors, "ema.").items():
        own_part(state.average[name]).copy_(own_part(sharded_as(value, state.average[name])))
    meta, now = found.meta, state.progress
    now.step, now.seconds = found.step, meta["seconds"]
    now.n_skipped, now.n_skipped_in_row = meta["n_skipped"], meta["n_skipped_in_row"]
    now.best_step = meta["best_step"]
    now.best_score = -math.inf if meta["best_score"] is None else meta["best_score"]
    now.last_loss = math.nan if meta["last_loss"] is None else meta["last_loss"]
    scale = meta.get("loss_scale")  # runs of the time without one had none
    if scale is not None and state.loss_scale.can_shrink:
        state.loss_scale.value, state.loss_scale.n_sound = scale


@torch.no_grad()
def validated(state: TrainingState, validate: Validate) -> dict[str, float]:
    """Score the averaged weights, or the current ones, in eval mode."""
    module, average = state.module, state.runtime.full_state(state.average)
    sharded = module is not state.trained
    current = {name: value.clone() for name, value in module.state_dict().items()} if average and not sharded else {}
    if average or sharded:
        module.load_state_dict(average or state.weights())
    module.eval()
    scores = {name: float(value) for name, value in validate(module).items()}
    if current:
        module.load_state_dict(current)
    return scores


def keep_best(state: TrainingState, scores: Mapping[str, float], folder: Path) -> None:
    """Store the validated weights if their ``score`` is the highest so far."""
    now = state.progress
    if scores.get("score", -math.inf) > now.best_score:
        now.best_score, now.best_step = scores["score"], now.step
        weights = state.runtime.full_state(state.average) or state.weights()
        if state.runtime.is_main:
            save_checkpoint(folder, now.step, weights, {"scores": dict(scores)})
    state.runtime.wait()


def weights_to_use(state: TrainingState, folder: Path) -> dict[str, Tensor]:
    """Give the best validated weights, without validation the averaged or the last ones; on the CPU.

    Where the best ones are damaged, the best before them are used, with their own step and score.
    """
    now = state.progress
    if now.best_step < 0:
        return on_cpu(state.runtime.full_state(state.average) or state.weights())
    sound = checkpoint_fault(folder / f"step-{now.best_step:08d}") is None
    best = load_checkpoint(folder, now.best_step if sound else None)
    if best is None:
        raise ValueError(f"{folder} has no weights of step {now.best_step}, the best one; run with resume=False")
    if best.step != now.best_step:
        logger.warning("weights of step %d are lost, those of step %d are used", now.best_step, best.step)
        now.best_step, now.best_score = best.step, best.meta["scores"]["score"]
    return best.tensors


def hand_over(state: TrainingState) -> None:
    """Put the last weights of a sharded run into the caller's module."""
    if state.module is not state.trained:
        state.module.load_state_dict(state.weights())


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}


@torch.no_grad()
def _load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a module that may be sharded."""
    module.load_state_dict({name: sharded_as(tensors[name], value) for name, value in module.state_dict().items()})


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
