"""Fusion without learning: means of embeddings, of similarities and of ranks, and canonical correlation in closed form.

The first three join the answers of separately trained models and are fitted to nothing. `fit_canonical` is fitted by
linear algebra alone: the directions of several views of the same stimuli that agree most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.floating]
Float = NDArray[np.float32]


def average_embeddings(embeds: Sequence[Array]) -> Float:
    """Take the mean of L2-normalised embeddings.

    Parameters
    ----------
    embeds : sequence of ndarray, (n, d)
        One per model; row i of each belongs to the same stimulus. All must live in one space.

    Returns
    -------
    ndarray, (n, d), float32
        Shorter than 1 where the models disagree; a zero row counts as zero. Equal unit inputs come back unchanged.

    Raises
    ------
    ValueError
        If there is no input, or shapes differ.
    """
    checked = _same_shape(embeds, "embeddings")
    lengths = [np.linalg.norm(one, axis=1, keepdims=True) for one in checked]
    units = [one / np.where(length > 0, length, 1) for one, length in zip(checked, lengths, strict=True)]
    return _mean(units)


def average_similarities(similarities: Sequence[Array]) -> Float:
    """Take the mean of similarity matrices after z-scoring each row over the gallery.

    Parameters
    ----------
    similarities : sequence of ndarray, (n, m)
        One per model; rows: recordings, columns: gallery pictures, larger is more alike.

    Returns
    -------
    ndarray, (n, m), float32
        Mean 0 in each row; a constant row counts as zero.

    Raises
    ------
    ValueError
        If there is no input, or shapes differ.
    """
    scores = []
    for one in _same_shape(similarities, "similarities"):
        centred = one - one.mean(axis=1, keepdims=True)
        spread = centred.std(axis=1, keepdims=True)
        scores.append(centred / np.where(spread > 0, spread, 1))
    return _mean(scores)


def average_ranks(similarities: Sequence[Array]) -> Float:
    """Take the mean of each row's ranks over the gallery (Borda count, as shares).

    Parameters
    ----------
    similarities : sequence of ndarray, (n, m)
        As in `average_similarities`; only the order within a row counts.

    Returns
    -------
    ndarray, (n, m), float32
        Share of the other pictures that a picture beats, ties counting half: in [0, 1], mean 0.5.

    Raises
    ------
    ValueError
        If there is no input, shapes differ, or the gallery has fewer than two pictures.
    """
    checked = _same_shape(similarities, "similarities")
    n_gallery = checked[0].shape[1]
    if n_gallery < 2:
        raise ValueError(f"ranks need a gallery of at least 2 pictures, got {n_gallery}; pass the whole gallery")
    return _mean([(rankdata(one, axis=1) - 1) / (n_gallery - 1) for one in checked])


@dataclass(frozen=True)
class CanonicalSpace:
    """Directions of several views of the same stimuli that agree most.

    Attributes
    ----------
    means : tuple of ndarray, (d_v,), float64
    weights : tuple of ndarray, (d_v, k), float64
        Variates of the fitted data have variance 1.
    correlations : ndarray, (k,), float64
        Mean correlation over pairs of views, largest first; with two views the canonical correlations.
    """

    means: tuple[NDArray[np.float64], ...]
    weights: tuple[NDArray[np.float64], ...]
    correlations: NDArray[np.float64]

    def project(self, view: int, data: Array) -> Float:
        """Give the canonical variates (n, k), float32, of one view's rows (n, d_v)."""
        variates: Float = ((data - self.means[view]) @ self.weights[view]).astype(np.float32)
        return variates

    def average(self, views: Sequence[Array]) -> Float:
        """Give the mean variates (n, k), float32, of the first ``len(views)`` views, all of the same n stimuli."""
        return _mean([self.project(index, data) for index, data in enumerate(views)])


def fit_canonical(views: Sequence[Array], n_components: int, shrinkage: float = 0.0) -> CanonicalSpace:
    """Fit canonical correlation (two views) or its extension to several (MAXVAR) in closed form.

    Each view is whitened, and the leading eigenvectors of the whitened views' joint covariance are taken.

    Parameters
    ----------
    views : sequence of ndarray, (n, d_v)
        At least two, row i of each of the same stimulus.
    n_components : int
        At most the smallest rank of a view.
    shrinkage : float
        In [0, 1): how far each view's covariance is moved towards a multiple of the identity before whitening; needed
        where n is not much larger than d_v.

    Returns
    -------
    CanonicalSpace

    Raises
    ------
    ValueError
        If there are fewer than two views, their rows differ in number, or there are too many components.

    References
    ----------
    Hotelling 1936, Biometrika 28; Kettenring 1971, Biometrika 58 (several views).
    """
    n_rows = {len(one) for one in views}
    if len(views) < 2 or len(n_rows) != 1 or not 0 <= shrinkage < 1:
        raise ValueError(
            f"canonical correlation got {len(views)} views of {sorted(n_rows)} rows and shrinkage {shrinkage}, "
            "expected at least two views with one row per stimulus and a shrinkage in [0, 1); pair the views first"
        )
    means = [np.asarray(one, dtype=np.float64).mean(axis=0) for one in views]
    centred = [np.asarray(one, dtype=np.float64) - mean for one, mean in zip(views, means, strict=True)]
    whiteners = [_whitener(one, shrinkage) for one in centred]
    rank = min(one.shape[1] for one in whiteners)
    if not 0 < n_components <= rank:
        raise ValueError(f"n_components {n_components} must be in 1 .. {rank}, the smallest rank of a view; take fewer")
    white = np.concatenate([one @ whitener for one, whitener in zip(centred, whiteners, strict=True)], axis=1)
    values, vectors = np.linalg.eigh(white.T @ white / len(white))
    top = np.argsort(values)[::-1][:n_components]
    edges = np.cumsum([one.shape[1] for one in whiteners])[:-1]
    weights = []
    for one, whitener, part in zip(centred, whiteners, np.split(vectors[:, top], edges), strict=True):
        raw = whitener @ part
        spread = (one @ raw).std(axis=0)
        weights.append(raw / np.where(spread > 0, spread, 1))
    variates = [one @ weight for one, weight in zip(centred, weights, strict=True)]
    return CanonicalSpace(tuple(means), tuple(weights), _mean_correlations(variates))


def _whitener(centred: NDArray[np.float64], shrinkage: float) -> NDArray[np.float64]:
    """Return (d, r) that gives rows of unit covariance, without the directions in which nothing varies."""
    covariance = centred.T @ centred / len(centred)
    mean_variance = np.trace(covariance) / len(covariance)
    covariance = (1 - shrinkage) * covariance + shrinkage * mean_variance * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(values[-1], 0) * len(values) * np.finfo(np.float64).eps * 10
    whitener: NDArray[np.float64] = vectors[:, kept] / np.sqrt(values[kept])
    return whitener


def _mean_correlations(variates: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    n = len(variates)
    pairs = [(variates[i] * variates[j]).mean(axis=0) for i in range(n) for j in range(i)]
    mean: NDArray[np.float64] = np.mean(pairs, axis=0)
    return mean


def _same_shape(arrays: Sequence[Array], what: str) -> list[NDArray[np.float64]]:
    shapes = {one.shape for one in arrays}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(
            f"score fusion got {what} of shapes {sorted(shapes)}, expected one or more arrays of one shape (n, m); "
            "pair the models' answers first"
        )
    return [np.asarray(one, dtype=np.float64) for one in arrays]


def _mean(arrays: Sequence[Array]) -> Float:
    mean: Float = np.mean(arrays, axis=0).astype(np.float32)
    return mean
