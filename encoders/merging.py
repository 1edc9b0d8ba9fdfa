"""Merge networks of one architecture by their weights: interpolation, modality arithmetic and RegMean.

Everything works on state dicts, so any pair of modules will do. ``parts`` says which sub-modules are merged, usually
the trunk; stems and heads that differ between modalities stay with their owners (`encoders.shared_trunk`). Experts
that start from one trained seed network can be merged. Experts from unrelated seeds can not: their hidden units stand
in different orders.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from encoders.layer_inputs import collect_gram, reestimate_statistics
from encoders.weight_parts import EVERYTHING, State, matching_parts, select

__all__ = [
    "WeightDistance",
    "collect_gram",
    "interpolate",
    "modality_arithmetic",
    "reestimate_statistics",
    "regmean",
    "select",
    "weight_distance",
]

_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class WeightDistance:
    """How far apart two networks are, over all merged floating-point entries as one vector.

    ``relative`` is the Euclidean distance over the root of the product of both lengths (0: equal; about 1.4 for
    unrelated vectors of equal length), ``cosine`` the cosine of the angle between them.
    """

    relative: float
    cosine: float


def interpolate(
    a: State, b: State, weight: float = 0.5, third: State | None = None, parts: Sequence[str] = EVERYTHING
) -> dict[str, Tensor]:
    """Average two experts, ``weight * a + (1 - weight) * b``, or three.

    Parameters
    ----------
    a, b : mapping of str to Tensor
        State dicts of the same architecture.
    weight : float
        Share of ``a``, in [0, 1]; 1 and 0 give an expert back bit for bit.
    third : mapping of str to Tensor, optional
        A joint expert; the weights are then ``2/3 weight``, ``2/3 (1 - weight)`` and ``1/3``.
    parts : sequence of str
        What is merged and returned, see `select`.

    Returns
    -------
    dict of str to Tensor
        Merged entries only, dtypes of ``a``; sums are taken in float64. Running statistics of batch norms are averaged
        too, which is only a start: call `reestimate_statistics`.

    Raises
    ------
    ValueError
        If names, shapes or stored indices differ, or ``weight`` lies outside [0, 1].

    References
    ----------
    Sung et al. 2023, "An Empirical Study of Multimodal Model Merging", arXiv:2304.14933.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}, expected the share of the first network in [0, 1]; use 0.5 for the mean")
    if third is None:
        return _weighted_sum([a, b], [weight, 1 - weight], parts)
    return _weighted_sum([a, b, third], [2 / 3 * weight, 2 / 3 * (1 - weight), 1 / 3], parts)


def modality_arithmetic(
    seed: State, experts: Sequence[State], scale: float = 1.0, parts: Sequence[str] = EVERYTHING
) -> dict[str, Tensor]:
    """Add what the experts learned to the network they started from: ``seed + scale * sum(expert - seed)``.

    Parameters
    ----------
    seed : mapping of str to Tensor
        Common start of the experts.
    experts : sequence of mappings of str to Tensor
        At least one.
    scale : float
        1 adds every change in full, ``1 / len(experts)`` is the average of the experts; published 1 and 0.75.
    parts : sequence of str
        See `select`.

    Returns
    -------
    dict of str to Tensor
        As `interpolate`.

    References
    ----------
    Sung et al. 2023, arXiv:2304.14933; Ilharco et al. 2023, arXiv:2212.04089 (task arithmetic).
    """
    if not experts:
        raise ValueError("modality arithmetic got no experts, expected at least one; pass state dicts")
    return _weighted_sum([seed, *experts], [1 - scale * len(experts), *([scale] * len(experts))], parts)


@torch.no_grad()
def regmean(
    experts: Sequence[State],
    grams: Sequence[Mapping[str, Tensor]],
    off_diagonal: float = 1.0,
    ridge: float = 0.0,
    parts: Sequence[str] = EVERYTHING,
) -> dict[str, Tensor]:
    """Merge every linear layer so that its outputs on all experts' inputs change least.

    With ``G_i = X_i^T X_i`` the solution of ``min_W sum_i |X_i (W - W_i)^T|^2`` is ``(sum W_i G_i)(sum G_i)^-1``. In
    directions that no input has (average reference, dead units) it is not unique; the one nearest to the plain average
    is returned. Weights without a Gram matrix, biases and norms are averaged.

    Parameters
    ----------
    experts : sequence of mappings of str to Tensor
    grams : sequence of mappings of str to Tensor, (n_in, n_in), float64
        One mapping per expert, from `collect_gram` on that expert's own data. An expert with twice the data counts
        twice.
    off_diagonal : float
        Factor of the off-diagonal elements, in [0, 1]; 1 is the exact solution, 0 weighs input by input.
    ridge : float
        Pull towards the plain average, in units of the mean diagonal element of ``sum G_i``.
    parts : sequence of str
        See `select`; Gram matrices of other layers are ignored.

    Returns
    -------
    dict of str to Tensor
        As `interpolate`.

    Raises
    ------
    ValueError
        If the Gram matrices do not fit the weights or each other.

    References
    ----------
    Jin et al. 2023, "Dataless Knowledge Fusion by Merging Weights of Language Models", arXiv:2212.09849.
    """
    if not 0 <= off_diagonal <= 1 or ridge < 0:
        raise ValueError(
            f"off_diagonal is {off_diagonal} and ridge {ridge}, expected [0, 1] and at least 0; use 1 and 0 for the "
            "exact solution"
        )
    if not experts or len(grams) != len(experts):
        raise ValueError(
            f"RegMean got {len(experts)} experts and {len(grams)} sets of Gram matrices, expected one set per expert; "
            "call collect_gram for each"
        )
    merged = _weighted_sum(experts, [1 / len(experts)] * len(experts), parts)
    for name in sorted({name for one in grams for name in one} & set(merged)):
        if not all(name in one for one in grams):
            raise ValueError(f"only some experts have a Gram matrix of {name!r}; collect all with the same parts")
        weights = [one[name].double().flatten(1) for one in experts]
        squares = [_shrunk(one[name].to(weights[0]), off_diagonal) for one in grams]
        if any(square.shape != (weights[0].shape[1],) * 2 for square in squares):
            raise ValueError(
                f"Gram matrix of {name!r} is {tuple(squares[0].shape)}, expected {weights[0].shape[1]} inputs squared; "
                "collect it with this architecture"
            )
        mean = torch.stack(weights).mean(dim=0)
        change = sum((w - mean) @ g for w, g in zip(weights, squares, strict=True))
        total = torch.stack(squares).sum(dim=0)
        total.diagonal().add_(ridge * total.diagonal().mean())
        solved = mean + change @ torch.linalg.pinv(total, rtol=1e-12, hermitian=True)
        merged[name] = solved.reshape(merged[name].shape).to(merged[name].dtype)
    return merged


def weight_distance(a: State, b: State, parts: Sequence[str] = EVERYTHING) -> WeightDistance:
    """Measure how far two networks are apart; large for networks that can not be merged.

    Raises
    ------
    ValueError
        If names or shapes differ.
    """
    first, second = matching_parts([a, b], parts)
    names = [name for name, value in first.items() if value.is_floating_point()]
    u, v = (torch.cat([one[name].double().flatten() for name in names]) for one in (first, second))
    lengths = math.sqrt(float(u.norm()) * float(v.norm())) or 1.0
    return WeightDistance(
        relative=float((u - v).norm()) / lengths, cosine=float(functional.cosine_similarity(u, v, dim=0))
    )


@torch.no_grad()
def _weighted_sum(states: Sequence[State], weights: Sequence[float], parts: Sequence[str]) -> dict[str, Tensor]:
    """Sum in float64; a weight of exactly 0 drops its state, so that a NaN in it has no influence."""
    chosen = matching_parts(states, parts)
    used = [(state, weight) for state, weight in zip(chosen, weights, strict=True) if weight != 0]
    merged = {}
    for name, value in chosen[0].items():
        if value.is_floating_point() or name.endswith(_COUNTER):
            total = torch.zeros_like(value, dtype=torch.float64)
            for state, weight in used:
                total += weight * state[name].double().to(total.device)
            merged[name] = (total if value.is_floating_point() else total.round().clamp(min=0)).to(value.dtype)
            continue
        if any(not torch.equal(value, state[name].to(value.device)) for state in chosen[1:]):
            raise ValueError(
                f"{name!r} holds {value.dtype} and differs between the networks, expected equal indices; build both "
                "for the same montage"
            )
        merged[name] = value.clone()
    return merged


def _shrunk(gram: Tensor, off_diagonal: float) -> Tensor:
    return off_diagonal * gram + torch.diag((1 - off_diagonal) * gram.diagonal())
