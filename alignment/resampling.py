"""Intervals and p values of averages over rows that belong to groups: pictures, runs or people, never single trials."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MIN_PERMUTATIONS = 1000
CELLS = 1 << 22
"""Numbers held at once while draws are made together."""

Ints = NDArray[np.int64]
Float64 = NDArray[np.float64]
Statistic = Literal["mean", "median"]


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
    total, size = resampled_sums(values, groups, n_bootstrap, seed)
    return intervals(total / size[:, None])


def resampled_sums(
    values: NDArray[Any], groups: NDArray[Any], n_bootstrap: int = 1000, seed: int = 0
) -> tuple[Float64, Float64]:
    """Draw groups of rows with replacement and add up their rows, without copying any.

    Parameters
    ----------
    values : ndarray, (n, k)
    groups : ndarray, (n,)
    n_bootstrap, seed : int

    Returns
    -------
    total : ndarray, (n_bootstrap, k), float64
    size : ndarray, (n_bootstrap,), float64
        Rows in each draw.
    """
    _, group = np.unique(groups, return_inverse=True)
    size = np.bincount(group).astype(float)
    total = np.stack([np.bincount(group, weights=column) for column in values.T.astype(float)], axis=1)
    times = _multiplicities(len(size), n_bootstrap, seed).astype(float)
    return times @ total, times @ size


def bootstrap_median(
    values: NDArray[Any], groups: NDArray[Any], n_bootstrap: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Give a 95 % percentile interval of the median of values (n,), resampling whole groups (n,) of rows."""
    _, group = np.unique(groups, return_inverse=True)
    order = np.argsort(values, kind="stable")
    ranked, member = np.asarray(values, dtype=np.float64)[order], group[order]
    times = _multiplicities(int(group.max()) + 1, n_bootstrap, seed)
    medians = []
    for first in range(0, n_bootstrap, _at_once(len(values))):
        n_so_far = np.cumsum(times[first : first + _at_once(len(values))][:, member], axis=1)
        n_rows = n_so_far[:, -1]
        middle = [ranked[(n_so_far <= place[:, None]).sum(axis=1)] for place in ((n_rows - 1) // 2, n_rows // 2)]
        medians.append((middle[0] + middle[1]) / 2)
    return intervals(np.concatenate(medians)[:, None])[0]


def intervals(draws: NDArray[Any]) -> list[tuple[float, float]]:
    """Give the 2.5 and 97.5 % quantiles of every column of draws (n, k)."""
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _multiplicities(n_groups: int, n_bootstrap: int, seed: int) -> Ints:
    """Say how often each group is in each draw, (n_bootstrap, n_groups)."""
    drawn = np.random.default_rng(seed).integers(n_groups, size=(n_bootstrap, n_groups))
    cells = drawn + n_groups * np.arange(n_bootstrap)[:, None]
    times: Ints = np.bincount(cells.ravel(), minlength=n_bootstrap * n_groups).reshape(n_bootstrap, n_groups)
    return times


def _at_once(n_rows: int) -> int:
    return max(CELLS // n_rows, 1)


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
    statistic: Statistic = "mean",
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
    statistic : "mean" or "median"
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
    places = np.arange(len(shown))
    parts = [places] if blocks is None else [np.flatnonzero(blocks[shown] == name) for name in np.unique(blocks[shown])]
    generator = np.random.default_rng(seed)
    moved = np.tile(places, (n_permutations, 1))
    for one in moved:
        for part in parts:
            one[part] = generator.permutation(part)
    found = _mean_credits if statistic == "mean" else _median_credits
    observed, *_ = found(credit, shown, row_of, places[None])
    # sums in another order differ by rounding
    threshold = observed - 1e-9 * max(abs(observed), 1.0)
    return (1 + int((found(credit, shown, row_of, moved) >= threshold).sum())) / (1 + n_permutations)


def _mean_credits(credit: NDArray[Any], shown: Ints, row_of: Ints, moved: Ints) -> Float64:
    """Give the mean credit of each assignment (p, k) of columns to pictures; rows of a picture are added up once."""
    order = np.argsort(row_of, kind="stable")
    starts = np.searchsorted(row_of[order], np.arange(len(shown)))
    total = np.add.reduceat(credit[order][:, shown], starts, axis=0, dtype=np.float64)
    means: Float64 = total[np.arange(len(shown)), moved].sum(axis=1) / len(row_of)
    return means


def _median_credits(credit: NDArray[Any], shown: Ints, row_of: Ints, moved: Ints) -> Float64:
    """Give the median credit of each assignment (p, k) of columns to pictures."""
    rows, step = np.arange(len(row_of)), _at_once(len(row_of))
    parts = [moved[first : first + step] for first in range(0, len(moved), step)]
    return np.concatenate([np.median(credit[rows, shown[part][:, row_of]], axis=1) for part in parts])
