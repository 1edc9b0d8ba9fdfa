"""Linear yardsticks that every network is compared with.

Ridge regression in its dual form: a trial has far more samples (channels x times) than there are trials or as
many, and the dual solves an ``n_epochs`` square system whatever their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

PENALTIES = (1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 30.0)
"""Default penalties, in units of the mean eigenvalue of the training kernel."""


@dataclass(frozen=True)
class RidgeDecoder:
    """A fitted ridge regression from signals to embeddings.

    Attributes
    ----------
    weights : ndarray, (n_channels * n_times, d), float32
        Regression weights.
    data_mean : ndarray, (n_channels * n_times,), float32
        Mean of the training signals.
    embed_mean : ndarray, (d,), float32
        Mean of the training embeddings (the answer to an average signal).
    penalty : float
        The penalty added to the diagonal, absolute (scikit-learn's ``alpha``).
    """

    weights: NDArray[np.float32]
    data_mean: NDArray[np.float32]
    embed_mean: NDArray[np.float32]
    penalty: float

    def predict(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the predicted embeddings.

        Parameters
        ----------
        data : ndarray, (n_epochs, n_channels, n_times), float32
            Signals prepared as in training.

        Returns
        -------
        ndarray, (n_epochs, d), float32
            Predictions; their deviation from ``embed_mean`` is shrunk, so centre both sides on it
            (`centred_cosine`) before comparing directions.

        Raises
        ------
        ValueError
            If the number of channels times samples differs from training.
        """
        flat = data.reshape(len(data), -1)
        if flat.shape[1] != len(self.weights):
            raise ValueError(
                f"ridge expects {len(self.weights)} values per epoch (channels x times), got {flat.shape[1]} from "
                f"shape {data.shape}; prepare the epochs as in training"
            )
        prediction = (flat - self.data_mean) @ self.weights + self.embed_mean
        return np.asarray(prediction, dtype=np.float32)


def fit_ridge(
    data: NDArray[np.float32],
    embeds: NDArray[np.float32],
    validation: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    penalties: Sequence[float] = PENALTIES,
    *,
    relative: bool = True,
) -> RidgeDecoder:
    """Fit ridge regression with an intercept in its dual form; choose the penalty on validation data.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times) or (n_epochs, n_features), float32
        Training signals, scaled so that channels are comparable.
    embeds : ndarray, (n_epochs, d), float32
        Target of every epoch.
    validation : tuple of ndarray, optional
        Signals and targets to choose the penalty on: the largest mean centred cosine wins.
        Needed with more than one penalty.
    penalties : sequence of float
        Candidates.
    relative : bool
        Whether penalties are in units of the mean eigenvalue of the centred kernel (default), or
        absolute as scikit-learn's ``alpha``.

    Returns
    -------
    RidgeDecoder
        float32; the solution itself is computed in float64.

    Raises
    ------
    ValueError
        If lengths differ, or several penalties come without validation data.
    """
    if len(data) != len(embeds):
        raise ValueError(f"ridge expects one target per epoch, got {len(data)} epochs and {len(embeds)} targets")
    if len(penalties) != 1 and validation is None:
        raise ValueError(f"{len(penalties)} penalties need validation data; give it or give one penalty")
    flat = data.reshape(len(data), -1)
    data_mean = flat.mean(axis=0, dtype=np.float64).astype(np.float32)
    embed_mean = embeds.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = flat - data_mean
    targets = (embeds - embed_mean).astype(np.float64)
    kernel = _kernel(centred)
    unit = float(np.trace(kernel)) / len(kernel) if relative else 1.0
    if validation is None:
        dual, penalty = _solve(kernel, targets, penalties[0] * unit), penalties[0] * unit
    else:
        dual, penalty = _choose(kernel, targets, centred, data_mean, embed_mean, validation, penalties, unit)
    weights = _weights(centred, dual)
    return RidgeDecoder(weights, data_mean, embed_mean, float(penalty))


def centred_cosine(
    brain_embeds: NDArray[np.float32], image_embeds: NDArray[np.float32], embed_mean: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the cosine of every pair after both sides are centred on the training mean.

    Parameters
    ----------
    brain_embeds, image_embeds : ndarray, (n, d) and (m, d), float32
        Image embeddings are normalised first and must have been so in training.
    embed_mean : ndarray, (d,), float32
        Mean of the training embeddings.

    Returns
    -------
    ndarray, (n, m), float32
    """
    scores: NDArray[np.float32] = _unit_rows(brain_embeds - embed_mean) @ _unit_rows(image_embeds - embed_mean).T
    return scores


def top_1(scores: NDArray[np.floating[Any]]) -> float:
    """Return the fraction of rows whose own column scores highest, greedy.

    Rows come image by image: with twice as many rows as columns, rows 0 and 1 belong to column 0.
    """
    n_rows, n_columns = scores.shape
    own = np.arange(n_rows) // (n_rows // n_columns)
    return float((scores.argmax(axis=1) == own).mean())


def _unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def _kernel(centred: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the Gram matrix in float64, converting a slice of the features at a time to bound memory."""
    kernel = np.zeros((len(centred), len(centred)))
    for start in range(0, centred.shape[1], 2048):
        block = centred[:, start : start + 2048].astype(np.float64)
        kernel += block @ block.T
    return kernel


def _weights(centred: NDArray[np.float32], dual: NDArray[np.float64]) -> NDArray[np.float32]:
    weights = np.empty((centred.shape[1], dual.shape[1]), dtype=np.float32)
    for start in range(0, centred.shape[1], 2048):
        weights[start : start + 2048] = centred[:, start : start + 2048].T.astype(np.float64) @ dual
    return weights


def _solve(kernel: NDArray[np.float64], targets: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    system = kernel.copy()
    system[np.diag_indices_from(system)] += penalty
    dual: NDArray[np.float64] = cho_solve(cho_factor(system, lower=True, overwrite_a=True, check_finite=False), targets)
    return dual


def _choose(
    kernel: NDArray[np.float64],
    targets: NDArray[np.float64],
    centred: NDArray[np.float32],
    data_mean: NDArray[np.float32],
    embed_mean: NDArray[np.float32],
    validation: tuple[NDArray[np.float32], NDArray[np.float32]],
    penalties: Sequence[float],
    unit: float,
) -> tuple[NDArray[np.float64], float]:
    """Return the dual solution and the absolute penalty with the best validation cosine."""
    held_out = validation[0].reshape(len(validation[0]), -1) - data_mean
    cross = (held_out @ centred.T).astype(np.float64)
    truth = _unit_rows(validation[1] - embed_mean)
    best: tuple[float, NDArray[np.float64], float] | None = None
    for penalty in penalties:
        dual = _solve(kernel, targets, penalty * unit)
        score = float((_unit_rows((cross @ dual).astype(np.float32)) * truth).sum(axis=1).mean())
        if best is None or score > best[0]:
            best = (score, dual, penalty * unit)
    assert best is not None
    return best[1], best[2]
