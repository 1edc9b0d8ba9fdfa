"""Figures of greedy retrieval in galleries of any size, exact where others draw random sub-galleries.

Every row picks for itself. `one_to_one_accuracy`, where rows compete for pictures, needs the whole test set at once and
is far higher; it has its own name and is no top-1.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import hypergeom, rankdata

Ints = NDArray[np.int64]
Float64 = NDArray[np.float64]


def check_similarity(similarity: NDArray[Any], target: Ints | None = None) -> Ints:
    """Return the column of each row's own picture, ``0 .. n-1`` by default.

    Raises
    ------
    ValueError
        If a similarity is not finite, or a target lies outside the gallery.
    """
    n, n_gallery = similarity.shape
    columns = np.arange(n) if target is None else np.asarray(target)
    if columns.shape != (n,) or n == 0 or columns.min() < 0 or columns.max() >= n_gallery:
        raise ValueError(
            f"target {columns.shape} must hold one gallery column (0 .. {n_gallery - 1}) for each of {n} rows"
        )
    if not np.isfinite(similarity).all():
        raise ValueError(f"similarity {similarity.shape} has non-finite values; check the encoder's output")
    return columns.astype(np.int64)


@dataclass(frozen=True)
class GalleryRanks:
    """How many of a gallery of ``n_gallery`` pictures were better than each entry, and how many others as good."""

    better: Ints
    equal: Ints
    n_gallery: int

    @property
    def ranks(self) -> Float64:
        """1 is best, ties share their mean rank."""
        found: Float64 = 1 + self.better + self.equal / 2
        return found

    def hits(self, k: int, gallery_size: int) -> Float64:
        """Give the chance that each entry is among the first k of a random sub-gallery; see `expected_hits`."""
        if not (1 <= k < gallery_size <= self.n_gallery):
            raise ValueError(
                f"expected_hits got k={k} and gallery_size={gallery_size} of {self.n_gallery} pictures, expected 1 <= "
                "k < gallery_size <= pictures; ask for a smaller gallery"
            )
        alone = np.arange(self.n_gallery)
        hits: Float64 = _hit_chance(alone, 0 * alone, k, gallery_size, self.n_gallery)[self.better]
        tied = self.equal > 0
        if tied.any():
            pairs, which = np.unique(np.stack([self.better[tied], self.equal[tied]]), axis=1, return_inverse=True)
            hits[tied] = _hit_chance(pairs[0], pairs[1], k, gallery_size, self.n_gallery)[which.ravel()]
        return hits


def gallery_ranks(similarity: NDArray[Any]) -> GalleryRanks:
    """Rank every column of every row, both of shape (n, m)."""
    low, high = (rankdata(-similarity, method=method, axis=1).astype(np.int64) for method in ("min", "max"))
    return GalleryRanks(low - 1, high - low, similarity.shape[1])


def target_ranks(similarity: NDArray[Any], target: Ints | None = None) -> GalleryRanks:
    """Rank each row's own picture only, (n,); see `gallery_ranks`."""
    columns = check_similarity(similarity, target)
    own = similarity[np.arange(len(columns)), columns][:, None]
    better, equal = (similarity > own).sum(axis=1), (similarity == own).sum(axis=1) - 1
    return GalleryRanks(better, equal, similarity.shape[1])


def own_ranks(similarity: NDArray[Any], target: Ints | None = None) -> Float64:
    """Rank each row's own picture, (n,), float64: 1 is best, a tie counts as half a better picture."""
    return target_ranks(similarity, target).ranks


def expected_hits(similarity: NDArray[Any], k: int, gallery_size: int) -> Float64:
    """Give for every row and column the chance that the column is among the first k of a random sub-gallery.

    The sub-gallery holds the column and ``gallery_size - 1`` of the others, all choices equally likely; the mean over
    them is computed, not drawn: the number of better ones in it is hypergeometric.

    Parameters
    ----------
    similarity : ndarray, (n, m)
    k : int
    gallery_size : int
        2 to m; with m, an entry is 1 or 0.

    Returns
    -------
    ndarray, (n, m), float64
        Entry (i, j): expected top-k hit of row i if j were its picture. Ties count as half a better picture.
    """
    return gallery_ranks(similarity).hits(k, gallery_size)


def _hit_chance(better: Ints, equal: Ints, k: int, gallery_size: int, n_gallery: int) -> Float64:
    """Give P(X + Y / 2 <= k - 1) for X better and Y equal ones among ``gallery_size - 1`` drawn from the others."""
    n_others, n_drawn = n_gallery - 1, gallery_size - 1
    chance = np.zeros(len(better))
    for x in range(min(k, n_drawn + 1)):
        here = hypergeom.pmf(x, n_others, better, n_drawn)
        possible = (better >= x) & (n_others - better >= n_drawn - x)
        rest = hypergeom.cdf(
            2 * (k - 1 - x),
            np.where(possible, n_others - better, 1),
            np.where(possible, equal, 0),
            np.where(possible, n_drawn - x, 1),
        )
        chance += np.where(possible, here * rest, 0.0)
    return np.clip(chance, 0.0, 1.0)


def average_precisions(similarity: NDArray[Any], relevant: NDArray[np.bool_]) -> Float64:
    """Give each row's average precision over its relevant columns, as scikit-learn defines it.

    Parameters
    ----------
    similarity : ndarray, (n, m)
    relevant : ndarray, (n, m), bool
        For example pictures of the same concept; with one relevant column and no ties this is ``1 / rank``.

    Returns
    -------
    ndarray, (n,), float64
        Their mean is the mAP.

    Raises
    ------
    ValueError
        If shapes differ or a row has no relevant column.
    """
    if similarity.shape != relevant.shape or not relevant.any(axis=1).all():
        raise ValueError(
            f"similarity {similarity.shape} and relevant {relevant.shape} must agree, with a relevant column in each "
            "row; leave out rows whose picture is not in the gallery"
        )
    order = np.argsort(-similarity, axis=1, kind="stable")
    values = np.take_along_axis(similarity, order, axis=1)
    found = np.cumsum(np.take_along_axis(relevant, order, axis=1), axis=1)
    # ties are one threshold: only the last of equals counts
    last = np.concatenate([values[:, 1:] != values[:, :-1], np.ones((len(values), 1), bool)], axis=1)
    precision = found / np.arange(1, found.shape[1] + 1)
    scores = np.empty(len(values))
    for row, ends in enumerate(last):
        scores[row] = (np.diff(found[row, ends], prepend=0) * precision[row, ends]).sum() / found[row, -1]
    return scores


def expected_reciprocal_rank(n_gallery: int) -> float:
    """Give the chance level of the mAP with one relevant picture: the mean of ``1 / rank`` over all ranks."""
    return float((1 / np.arange(1, n_gallery + 1)).mean())


def one_to_one_accuracy(similarity: NDArray[Any]) -> float:
    """Assign all rows to different columns at once and give the share that got its own.

    Not a top-1: it uses that each picture was shown exactly once in the test set, which no single recording knows. For
    comparison with publications that report it.

    Parameters
    ----------
    similarity : ndarray, (n, n)
        Row i belongs to column i.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"one-to-one needs as many rows as pictures, got {similarity.shape}; average first")
    rows, columns = linear_sum_assignment(-similarity)
    return float((rows == columns).mean())
