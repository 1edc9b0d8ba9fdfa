"""Held-out groups, and how often a score as good would come from nothing."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Labels = NDArray[Any]


def leave_one_group_out(groups: Labels) -> Iterator[tuple[Ints, Ints]]:
    """Yield the rows to train on and the rows to test on, one pair for each group.

    Parameters
    ----------
    groups : ndarray, (n,)
        Run, session or person of every row: rows of one group share noise, so they are tested together.

    Yields
    ------
    train, test : ndarray, int64
        Groups are left out in sorted order; every row is tested once.

    Raises
    ------
    ValueError
        If there are fewer than two groups.
    """
    names = np.unique(groups)
    if groups.ndim != 1 or len(names) < 2:
        raise ValueError(
            f"leave_one_group_out got groups {groups.shape} with {len(names)} different ones, expected (n,) with at "
            "least 2; give the run, session or person of every row"
        )
    for name in names:
        yield np.flatnonzero(groups != name), np.flatnonzero(groups == name)


def permutation_p_value(
    score: Callable[[Labels, NDArray[Any]], float],
    labels: Labels,
    predicted: NDArray[Any],
    groups: Labels | None = None,
    *,
    n_permutations: int = 1000,
    seed: int = 0,
) -> float:
    """Give the share of shuffled labels that score as well as the true ones, these included.

    Predictions must come from rows that were held out; they stay, the labels are shuffled. This tests "the answers
    say nothing about the labels".

    Parameters
    ----------
    score : callable
        ``score(labels, predicted) -> float``, higher is better.
    labels : ndarray, (n,)
    predicted : ndarray, (n, ...)
        Labels, probabilities or embeddings: whatever ``score`` takes.
    groups : ndarray, (n,), optional
        Labels are shuffled within groups only, for example runs of different difficulty.
    n_permutations, seed : int

    Returns
    -------
    float
        From ``1 / (n_permutations + 1)`` to 1; uniform if there is nothing to find and scores have no ties, larger
        with ties.
    """
    if len(labels) != len(predicted) or n_permutations < 1:
        raise ValueError(
            f"permutation_p_value got {len(labels)} labels, {len(predicted)} predictions and n_permutations="
            f"{n_permutations}, expected one prediction per label and at least 1 permutation; check both"
        )
    generator = np.random.default_rng(seed)
    blocks = [np.flatnonzero(groups == name) for name in np.unique(groups)] if groups is not None else None
    observed = score(labels, predicted)
    n_as_good = 0
    for _ in range(n_permutations):
        if blocks is None:
            shuffled = generator.permutation(labels)
        else:
            shuffled = labels.copy()
            for rows in blocks:
                shuffled[rows] = generator.permutation(labels[rows])
        n_as_good += score(shuffled, predicted) >= observed
    return (1 + n_as_good) / (1 + n_permutations)
