"""Label-free calibration of brain embeddings: whitening with shrinkage, and similarities corrected for hubs (CSLS).

An encoder that was trained on other people gives a new person's embeddings a common offset and a few loud directions
that say nothing about the picture. Both can be estimated without knowing what was shown.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.whitening import ledoit_wolf

MIN_WINDOW = 8
"""Epochs below which offset and covariance are not estimated."""

Float = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Whitening:
    """A fitted map ``(x - mean) @ matrix``; ``mean`` (d,) and symmetric ``matrix`` (d, d), float64."""

    mean: Float64
    matrix: Float64
    shrinkage: float

    def __call__(self, rows: NDArray[Any]) -> Float:
        """Whiten rows (n, d)."""
        return np.asarray((rows - self.mean) @ self.matrix, dtype=np.float32)


def fit_whitening(rows: NDArray[Any], shrinkage: float | None = None) -> Whitening:
    """Fit a whitening that keeps the mean variance.

    Parameters
    ----------
    rows : ndarray, (n, d)
        Embeddings of one person's epochs, or of a gallery's pictures; what was shown is not asked.
    shrinkage : float, optional
        Weight of the scaled identity in the covariance, in [0, 1]; by default that of Ledoit and Wolf. With 1 rows are
        centred and nothing else; with 0 their covariance becomes the identity times its mean variance.

    Returns
    -------
    Whitening
        The inverse square root of the covariance, the map that whitens and changes the rows least.

    Raises
    ------
    ValueError
        If there are fewer than 8 rows, they are not finite or all equal, or without shrinkage not more than d.
    """
    n, d = rows.shape
    if n < MIN_WINDOW:
        raise ValueError(
            f"a whitening got {n} epochs, expected at least {MIN_WINDOW} (50 are a good window); record more or leave "
            "the person uncalibrated"
        )
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage is {shrinkage}, expected 0 to 1")
    if not np.isfinite(rows).all():
        raise ValueError(f"embeddings {rows.shape} have non-finite values; check the recording")
    covariance, amount = ledoit_wolf(rows)
    if shrinkage is not None:
        if shrinkage == 0 and n <= d:
            raise ValueError(f"{n} epochs span fewer than {d} directions: their covariance has no inverse; shrink it")
        amount = shrinkage
        centred = rows - rows.mean(axis=0, dtype=np.float64)
        covariance = centred.T @ centred / n
        covariance = (1 - amount) * covariance + amount * np.trace(covariance) / d * np.eye(d)
    variance = np.trace(covariance) / d
    if variance <= 0:
        raise ValueError(f"all {n} epochs have the same embedding; check the recording")
    values, vectors = np.linalg.eigh(covariance / variance)
    matrix = (vectors / np.sqrt(np.maximum(values, 1e-12))) @ vectors.T
    return Whitening(rows.mean(axis=0, dtype=np.float64), matrix, amount)


def csls(similarity: NDArray[Any], reference: NDArray[Any], n_neighbours: int) -> Float:
    """Correct cosines for pictures that are near everything, and for epochs that are.

    Parameters
    ----------
    similarity : ndarray, (n, m)
        Cosines of the epochs to be decoded (rows) with the pictures.
    reference : ndarray, (w, m)
        Cosines of other epochs of the same person with the same pictures: how near each picture is to this person's
        epochs, whatever was shown. ``similarity`` itself makes the answers transductive: they depend on each other.
    n_neighbours : int
        Mean over so many nearest ones, on both sides.

    Returns
    -------
    ndarray, (n, m), float32
        ``2 * cosine`` less both means: no cosine any more.

    Raises
    ------
    ValueError
        If there are fewer pictures or reference epochs than neighbours.

    References
    ----------
    Conneau et al. 2018, arXiv:1710.04087, equation 3.
    """
    if reference.shape[1:] != similarity.shape[1:] or not 1 <= n_neighbours <= min(len(reference), similarity.shape[1]):
        raise ValueError(
            f"csls got {n_neighbours} neighbours, similarity {similarity.shape} and reference {reference.shape}, "
            "expected (n, m) and (w, m) with neighbours from 1 to the smaller of w and m; lower n_neighbours"
        )
    of_epoch = np.sort(similarity, axis=1)[:, -n_neighbours:].mean(axis=1, keepdims=True)
    of_picture = np.sort(reference, axis=0)[-n_neighbours:].mean(axis=0, keepdims=True)
    return np.asarray(2 * similarity - of_epoch - of_picture, dtype=np.float32)
