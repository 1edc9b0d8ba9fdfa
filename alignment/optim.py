"""Optimizer parts that are pure functions: learning-rate schedules, decay groups, averaged weights."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from alignment.runtime import own_part

Schedule = Literal["constant", "cosine", "onecycle"]


@runtime_checkable
class Branched(Protocol):
    """A module whose parts learn from losses of their own; `branch_of` names the part of a parameter."""

    def branch_of(self, name: str) -> str: ...


NO_DECAY = ("logit_scale", "logit_bias", "temperature", "position", "pos_embed", "class_embedding")


def lr_factor(step: int, schedule: Schedule, warmup_steps: int, max_steps: int) -> float:
    """Give the learning rate of a step relative to its peak.

    "constant" and "cosine" rise linearly over ``warmup_steps``; "cosine" then falls to 0 at ``max_steps``. "onecycle"
    is torch's OneCycleLR with its default factors (start 1/25, end 1/250,000), rising over ``warmup_steps`` or, if
    that is 0, over the first 30 %.
    """
    if schedule == "onecycle":
        rise = (warmup_steps or 0.3 * max_steps) - 1
        if step <= rise:
            return _cosine(1 / 25, 1.0, step / max(rise, 1e-9))
        return _cosine(1.0, 1 / 25 / 1e4, (step - rise) / max(max_steps - 1 - rise, 1e-9))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    return _cosine(1.0, 0.0, (step - warmup_steps) / max(max_steps - warmup_steps, 1))


def parameter_groups(module: nn.Module, weight_decay: float) -> tuple[list[str], list[dict[str, Any]]]:
    """Split trainable parameters into decayed and not decayed (biases, norms, scales, positions).

    Returns
    -------
    names : list of str
        In optimizer order.
    groups : list of dict
        For a torch optimizer.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    spared = [(name, p) for name, p in named if p.ndim < 2 or any(word in name for word in NO_DECAY)]
    spared_names = {name for name, _ in spared}
    decayed = [(name, p) for name, p in named if name not in spared_names]
    groups = [
        {"params": [p for _, p in decayed], "weight_decay": weight_decay},
        {"params": [p for _, p in spared], "weight_decay": 0.0},
    ]
    return [name for name, _ in decayed + spared], [group for group in groups if group["params"]]


def clipped_together(module: nn.Module, named: Mapping[str, nn.Parameter]) -> list[list[nn.Parameter]]:
    """Split parameters, in their order, into those whose gradients are clipped by one joint length.

    The branches of a `Branched` module are clipped apart, or a long gradient of one would shorten the steps of all.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in named.items():
        groups.setdefault(module.branch_of(name) if isinstance(module, Branched) else "", []).append(parameter)
    return list(groups.values())


@torch.no_grad()
def update_average(average: Mapping[str, Tensor], module: nn.Module, decay: float, step: int) -> None:
    """Move an averaged state (EMA) towards the module's, in place; an empty one stays empty.

    Early steps use a smaller decay, ``(1 + step) / (10 + step)``. Buffers are copied, not averaged. Of a sharded module
    each process averages what it holds.
    """
    if not average:
        return
    weight = 1 - min(decay, (1 + step) / (10 + step))
    current = module.state_dict()
    learned = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    before, now = ([own_part(state[name]) for name in learned] for state in (average, current))
    torch._foreach_lerp_(before, now, weight)
    for name in average.keys() - set(learned):
        own_part(average[name]).copy_(own_part(current[name]))


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))
