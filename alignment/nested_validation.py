"""Held-out scores of a decoder whose settings were chosen without the rows they are measured on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from alignment.cross_validation import leave_one_group_out
from alignment.temperature import fit_temperature

Setting = TypeVar("Setting")
Ints = NDArray[np.int64]
Float64 = NDArray[np.float64]
Scorer = Callable[[NDArray[Any], NDArray[Any]], Float64]
"""``scorer(data, groups) -> (n, k)``: scores of every class, of epochs that it was not fitted on."""


@dataclass(frozen=True)
class NestedScores(Generic[Setting]):
    """Scores of every row by a decoder that saw no label of its group.

    Attributes
    ----------
    scores, noise_scores : ndarray, (n, k), float64
        For the rows, and for noise in their place, by the same decoders; divided by the temperature that fits
        held-out rows among the training groups, so that folds with different settings can be pooled.
    probabilities : ndarray, (n, k), float64
        Softmax of the scores.
    settings, temperatures : tuple
        Chosen for each fold, in sorted order.
    """

    scores: Float64
    noise_scores: Float64
    probabilities: Float64
    settings: tuple[Setting, ...]
    temperatures: tuple[float, ...]


def nested_scores(
    fit: Callable[[Setting, Ints], Scorer],
    settings: Sequence[Setting],
    data: NDArray[Any],
    noise: NDArray[Any],
    labels: NDArray[Any],
    groups: NDArray[Any],
    score: Callable[[Ints, Float64], float],
    *,
    folds: NDArray[Any] | None = None,
    n_inner: int = 4,
    seed: int = 0,
) -> NestedScores[Setting]:
    """Leave each group out; folds among the other groups choose the setting and the temperature.

    Parameters
    ----------
    fit : callable
        ``fit(setting, rows) -> scorer``: fits on these rows of ``data``, labels and groups, and nothing else.
    settings : sequence
        Candidates.
    data, noise : ndarray, (n, ...)
        Epochs, and noise in place of each.
    labels, groups : ndarray, (n,)
        Class and person (or run) of every row.
    score : callable
        ``score(class_index, scores) -> float``, higher is better.
    folds : ndarray, (n,), optional
        What is left out at a time, each a union of groups; every group alone by default. `group_folds` deals them.
    n_inner : int
        Folds of whole groups among the training groups; fewer if there are not enough groups.
    seed : int
        Of the inner folds.

    Returns
    -------
    NestedScores
    """
    classes, target = np.unique(labels, return_inverse=True)
    found, empty = np.full((len(labels), len(classes)), np.nan), np.full((len(labels), len(classes)), np.nan)
    chosen, temperatures = [], []
    outer = groups if folds is None else folds
    if any(len(np.unique(outer[groups == name])) > 1 for name in np.unique(groups)):
        raise ValueError("a group is spread over several folds, expected whole groups; deal folds with group_folds")
    generator = np.random.default_rng(seed)
    for train, test in leave_one_group_out(outer):
        inner = group_folds(groups[train], n_inner, generator)
        best, held_out = choose_setting(fit, settings, data, target, groups, train, inner, score)
        temperature = fit_temperature(held_out, target[train])
        scorer = fit(best, train)
        found[test] = scorer(data[test], groups[test]) / temperature
        empty[test] = scorer(noise[test], groups[test]) / temperature
        chosen.append(best)
        temperatures.append(temperature)
    return NestedScores(found, empty, softmax(found, axis=1), tuple(chosen), tuple(temperatures))


def choose_setting(
    fit: Callable[[Setting, Ints], Scorer],
    settings: Sequence[Setting],
    data: NDArray[Any],
    target: Ints,
    groups: NDArray[Any],
    train: Ints,
    fold: Ints,
    score: Callable[[Ints, Float64], float],
) -> tuple[Setting, Float64]:
    """Return the best setting and its held-out scores of the training rows.

    Parameters
    ----------
    fit, settings, data, groups, score
        See `nested_scores`.
    target : ndarray, (n,)
        Class index of every row.
    train : ndarray, (m,)
        Rows to choose on.
    fold : ndarray, (m,)
        Of each of these rows.

    Returns
    -------
    setting
    held_out : ndarray, (m, k), float64
        Scores of each row by a decoder of the other folds.
    """
    best: tuple[float, Setting, Float64] | None = None
    for setting in settings:
        held_out = np.empty((len(train), int(target.max()) + 1))
        for name in np.unique(fold):
            rows = train[fold == name]
            held_out[fold == name] = fit(setting, train[fold != name])(data[rows], groups[rows])
        value = score(target[train], held_out)
        if best is None or value > best[0]:
            best = (value, setting, held_out)
    assert best is not None
    return best[1], best[2]


def group_folds(groups: NDArray[Any], n_folds: int, generator: np.random.Generator) -> Ints:
    """Deal whole groups into folds at random, (n,); at most as many folds as groups."""
    names, index = np.unique(groups, return_inverse=True)
    dealt: Ints = generator.permutation(np.arange(len(names)) % min(n_folds, len(names)))
    return dealt[index]
