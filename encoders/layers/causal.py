"""Layers that see the past only, each also as a step over a chunk with an explicit state.

``step(chunk, state) -> (out, state)`` continues where the last call ended; ``state=None`` is the beginning. States are
plain values and never change in place, so a caller can keep one and branch from it. What stands before the first
sample counts as zero in convolutions and does not exist in attention and averages.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CausalConv1d(nn.Conv1d):
    """A convolution padded on the left only, so that an output depends on its own time and on earlier ones.

    Parameters
    ----------
    n_in, n_out, kernel : int
    dilation : int
        Distance of the taps in samples. The layer looks back ``(kernel - 1) * dilation`` samples.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, dilation: int = 1) -> None:
        super().__init__(n_in, n_out, kernel, dilation=dilation)
        self.reach = (kernel - 1) * dilation

    def forward(self, data: Tensor) -> Tensor:
        """Map ``(b, n_in, t)`` to ``(b, n_out, t)``."""
        return super().forward(F.pad(data, (self.reach, 0)))

    def step(self, chunk: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map ``(b, n_in, n)`` to ``(b, n_out, n)``; the state is the last ``reach`` inputs, ``(b, n_in, reach)``."""
        n = chunk.shape[2]
        seen = F.pad(chunk, (self.reach, 0)) if tail is None else torch.cat([tail, chunk], dim=2)
        taps = torch.stack([seen[:, :, i : i + n] for i in range(0, self.reach + 1, self.dilation[0])], dim=2)
        return mix_few(taps.flatten(1, 2), self.weight, self.bias), seen[:, :, n:]


def mix_few(data: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Mix the channels of a few samples, ``(b, n_in, n)`` to ``(b, n_out, n)``; weight (n_out, ...), n_in in all.

    Samples are the rows of the product: seven times faster than with samples as columns, or as a convolution, when
    there are two of them, because the weights are then read once and in order.
    """
    # (b, n_in, n) -> (b, n, n_in), laid out anew: the product of a transposed view is the slow one
    return F.linear(data.transpose(1, 2).contiguous(), weight.flatten(1), bias).transpose(1, 2)


@dataclass(frozen=True)
class KeysAndValues:
    """What causal attention remembers: keys and values of earlier steps, each (b, n_heads, n_seen, width / n_heads)."""

    keys: Tensor
    values: Tensor


def attend_to_past(
    query: Tensor, key: Tensor, value: Tensor, cache: KeysAndValues | None = None, window: int = 0
) -> tuple[Tensor, KeysAndValues]:
    """Let the next steps attend to themselves and to earlier ones.

    Parameters
    ----------
    query, key, value : Tensor, (b, n_heads, n, f)
        Of the next ``n`` steps.
    cache : KeysAndValues, optional
        Of the steps before; none at the beginning.
    window : int
        Steps that a step sees, itself included, which also bounds the cache; 0 for all of the past.

    Returns
    -------
    Tensor, (b, n_heads, n, f)
    KeysAndValues

    References
    ----------
    Vaswani et al. 2017, arXiv:1706.03762 (masked attention).
    """
    if cache is not None:
        key, value = torch.cat([cache.keys, key], dim=2), torch.cat([cache.values, value], dim=2)
    n, n_seen = query.shape[2], key.shape[2]
    age = torch.arange(n_seen - n, n_seen, device=query.device)[:, None] - torch.arange(n_seen, device=query.device)
    hidden = age < 0 if window == 0 else (age < 0) | (age >= window)
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
    weights = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
    first = max(n_seen - window + 1, 0) if window else 0
    return weights @ value, KeysAndValues(key[:, :, first:], value[:, :, first:])


@dataclass(frozen=True)
class RunningSum:
    """Sum over the ``n_seen`` steps so far."""

    total: Tensor
    n_seen: int


def running_mean(data: Tensor, state: RunningSum | None = None) -> tuple[Tensor, RunningSum]:
    """Average ``(b, f, n)`` over all steps so far; returns ``(b, n, f)``."""
    if state is None:
        state = RunningSum(data.new_zeros(data.shape[:2]), 0)
    sums = torch.cat([state.total[:, :, None], data], dim=2).cumsum(dim=2)
    n_seen = state.n_seen + data.shape[2]
    count = torch.arange(state.n_seen + 1, n_seen + 1, dtype=data.dtype, device=data.device)
    # (b, f, n) -> (b, n, f)
    return (sums[:, :, 1:] / count).transpose(1, 2), RunningSum(sums[:, :, -1], n_seen)


def running_courses(data: Tensor, course: Tensor, state: RunningSum | None = None) -> tuple[Tensor, RunningSum]:
    """Project on learned time courses, with zero for what has not happened yet.

    Parameters
    ----------
    data : Tensor, (b, f, n)
    course : Tensor, (k, t)
        Weights of all steps of the epoch.
    state : RunningSum, optional
        ``total`` (b, f, k).

    Returns
    -------
    Tensor, (b, n, f, k)
    RunningSum

    Raises
    ------
    ValueError
        If the epoch would be longer than the courses.
    """
    if state is None:
        state = RunningSum(data.new_zeros(*data.shape[:2], len(course)), 0)
    end = state.n_seen + data.shape[2]
    if end > course.shape[1]:
        raise ValueError(
            f"learned time courses cover {course.shape[1]} steps, got {end}; end the epoch there and reset"
        )
    # (b, f, n) and (k, n) -> (b, n, f, k)
    products = data.transpose(1, 2)[..., None] * course[:, state.n_seen : end].T[:, None]
    sums = torch.cat([state.total[:, None], products], dim=1).cumsum(dim=1)
    return sums[:, 1:], RunningSum(sums[:, -1], end)


def running_dense(tokens: Tensor, weight: Tensor, state: RunningSum | None = None) -> tuple[Tensor, RunningSum]:
    """Apply a dense layer over all steps of an epoch after each of them, with zero for those to come; without bias.

    Parameters
    ----------
    tokens : Tensor, (b, s, f)
        The next steps.
    weight : Tensor, (d, n_steps, f)
        Of the whole epoch.
    state : RunningSum, optional
        ``total`` (b, d).

    Returns
    -------
    Tensor, (b, s, d)
    RunningSum

    Raises
    ------
    ValueError
        If the epoch would have more steps than the layer.
    """
    if state is None:
        state = RunningSum(tokens.new_zeros(len(tokens), len(weight)), 0)
    end = state.n_seen + tokens.shape[1]
    if end > weight.shape[1]:
        raise ValueError(
            f"the dense layer reads epochs of {weight.shape[1]} steps, got {end}; end the epoch there and reset"
        )
    products = torch.einsum("bsf,dsf->bsd", tokens, weight[:, state.n_seen : end])
    sums = torch.cat([state.total[:, None], products], dim=1).cumsum(dim=1)
    return sums[:, 1:], RunningSum(sums[:, -1], end)


@dataclass(frozen=True)
class RunningSoftmax:
    """Weighted sum (b, f), sum of weights (b, 1), and the highest score so far (b, 1) that both are relative to."""

    total: Tensor
    weight: Tensor
    highest: Tensor


def running_softmax(data: Tensor, score: Tensor, state: RunningSoftmax | None = None) -> tuple[Tensor, RunningSoftmax]:
    """Average over all steps so far with softmax weights; ``(b, f, n)`` and ``(b, 1, n)`` give ``(b, n, f)``.

    Scores are taken relative to the highest one so far, so that none overflows and none in the future matters.
    """
    if state is None:
        n_epochs, n_features, _ = data.shape
        state = RunningSoftmax(
            data.new_zeros(n_epochs, n_features), data.new_zeros(n_epochs, 1), data.new_full((n_epochs, 1), -math.inf)
        )
    n = data.shape[2]
    # the highest score before the chunk, then at each of its steps
    highest = torch.cat([state.highest[:, :, None], score], dim=2).cummax(dim=2).values
    last, highest = highest[:, :, -1], highest[:, :, 1:]
    future = torch.ones(n, n, dtype=torch.bool, device=data.device).triu(1)
    # (b, n, n): row = step, column = what it looks at
    weights = (score - highest.transpose(1, 2)).masked_fill(future, -math.inf).exp()
    kept = (state.highest[:, :, None] - highest).exp().transpose(1, 2)
    total = torch.cat([state.total[:, None], weights @ data.transpose(1, 2) + kept * state.total[:, None]], dim=1)
    weight = torch.cat([state.weight[:, None], weights.sum(dim=2, keepdim=True) + kept * state.weight[:, None]], dim=1)
    return total[:, 1:] / weight[:, 1:], RunningSoftmax(total[:, -1], weight[:, -1], last)


def refuse_unless_causal(network: nn.Module, name: str) -> None:
    """Raise ValueError for a network that was built without ``causal=True``."""
    if not getattr(network, "causal", False):
        raise ValueError(
            f"{name} was built with causal=False and looks ahead, expected a causal network; build and train it with "
            f"causal=True, for example the preset {name}_causal"
        )
