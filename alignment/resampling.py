"""Intervals and p values of averages over rows that belong to groups: pictures, runs or people, never single trials."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_PERMUTATIONS = 1000

Ints = NDArray[np.int64]
Float64 = NDArray[np.float64]


def bootstrap_means(
    values: NDArray[Any], groups: NDArray[Any], n_bootstrap: int = 1000, seed: int = 0
) -> list[tuple[float, float]]:
    """Give a 95 % percentile interval of the mean of every column, resampling whole groups of rows.

    Parameters
    ----------
    values : ndarray, (n, k)
    groups : ndarray, (n,)
        Rows of one group (a picture, a person) are drawn together, so repeated rows do not narrow the interval.
    n_bootstrap, seed : int

    Returns
    -------
    list of (float, float)
        One pair per column.
    """
    _, group = np.unique(groups, return_inverse=True)
    size = np.bincount(group).astype(float)
    total = np.stack([np.bincount(group, weights=column) for column in values.T.astype(float)], axis=1)
    drawn = np.random.default_rng(seed).integers(len(size), size=(n_bootstrap, len(size)))
    means = total[drawn].sum(axis=1) / size[drawn].sum(axis=1)[:, None]
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def bootstrap_score(
    score: Callable[[Ints], float], groups: NDArray[Any], n_bootstrap: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Give a 95 % percentile interval of any score of rows, resampling whole groups.

    Parameters
    ----------
    score : callable
        ``score(rows) -> float``; rows repeat. NaN (a class did not occur) is left out.
    groups : ndarray, (n,)
    n_bootstrap, seed : int

    Raises
    ------
    ValueError
        If there is one group only: nothing is known then of how groups differ.
    """
    names = np.unique(groups)
    if len(names) < 2:
        raise ValueError(f"bootstrap_score got {len(names)} group, expected at least 2; give finer groups")
    members = [np.flatnonzero(groups == name) for name in names]
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(n_bootstrap):
        drawn = generator.integers(len(members), size=len(members))
        found.append(score(np.concatenate([members[one] for one in drawn])))
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)


def image_permutation_p(
    credit: NDArray[Any],
    target: Ints,
    blocks: NDArray[Any] | None = None,
    *,
    statistic: Callable[[NDArray[Any]], Any] = np.mean,
    n_permutations: int = MIN_PERMUTATIONS,
    seed: int = 0,
) -> float:
    """Give the share of random assignments of pictures to recordings that score as well as the true one.

    All recordings of a picture move together: they are not independent, so shuffling them one by one would call
    small effects significant.

    Parameters
    ----------
    credit : ndarray, (n, m)
        What row i would earn if column j were its picture, for example whether j is first.
    target : ndarray, (n,), int64
        Column of each row's own picture.
    blocks : ndarray, (m,), optional
        Pictures are exchanged within blocks only: the folds of a cross-validation, whose held-out pictures differ
        from those trained on.
    statistic : callable
        Of the n rows' credits; higher must be better.
    n_permutations, seed : int
        At least 1,000 permutations.

    Returns
    -------
    float
        From ``1 / (n_permutations + 1)`` to 1, the true assignment counted in.
    """
    if n_permutations < MIN_PERMUTATIONS:
        raise ValueError(
            f"n_permutations is {n_permutations}, expected at least {MIN_PERMUTATIONS}; fewer give a coarse p value"
        )
    if credit.ndim != 2 or target.shape != (len(credit),) or (blocks is not None and len(blocks) != credit.shape[1]):
        raise ValueError(
            f"credit {np.shape(credit)}, target {np.shape(target)} and blocks "
            f"{None if blocks is None else np.shape(blocks)} must be (n, m), (n,) and (m,)"
        )
    shown, row_of = np.unique(target, return_inverse=True)
    places, rows = np.arange(len(shown)), np.arange(len(target))
    parts = [places] if blocks is None else [np.flatnonzero(blocks[shown] == name) for name in np.unique(blocks[shown])]
    observed = float(statistic(credit[rows, target]))
    # sums in another order differ by rounding
    threshold = observed - 1e-9 * max(abs(observed), 1.0)
    generator = np.random.default_rng(seed)
    n_as_good = 0
    for _ in range(n_permutations):
        moved = places.copy()
        for part in parts:
            moved[part] = generator.permutation(part)
        n_as_good += bool(statistic(credit[rows, shown[moved][row_of]]) >= threshold)
    return (1 + n_as_good) / (1 + n_permutations)
