"""Whether confidence means what it says: calibration error, reliability, and what refusing the unsure answers gains."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.evaluation_report import ReliabilityBin
from alignment.resampling import intervals, resampled_sums

N_BINS = 10
COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))
Float64 = NDArray[np.float64]


def reliability_table(confidence: NDArray[Any], correct: NDArray[Any], n_bins: int = N_BINS) -> list[ReliabilityBin]:
    """Sort answers into bins of equal width.

    Parameters
    ----------
    confidence : ndarray, (n,)
        In [0, 1].
    correct : ndarray, (n,), bool
    n_bins : int
        Bin i holds ``(i / n_bins, (i + 1) / n_bins]``, the first one 0 as well.

    Returns
    -------
    list of ReliabilityBin
        An empty bin has confidence and accuracy 0.
    """
    confidence, correct = _checked(confidence, correct)
    place = _bin_of(confidence, n_bins)
    table = []
    for index in range(n_bins):
        rows = place == index
        n = int(rows.sum())
        table.append(
            ReliabilityBin(
                low=index / n_bins, high=(index + 1) / n_bins, n=n,
                mean_confidence=float(confidence[rows].mean()) if n else 0.0,
                accuracy=float(correct[rows].mean()) if n else 0.0,
            )  # fmt: skip
        )
    return table


def expected_calibration_error(confidence: NDArray[Any], correct: NDArray[Any], n_bins: int = N_BINS) -> float:
    """Average the distance of confidence and accuracy over the bins of `reliability_table`, weighted by their size.

    References
    ----------
    Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning", AAAI.
    """
    confidence, correct = _checked(confidence, correct)
    gap = np.bincount(_bin_of(confidence, n_bins), weights=confidence - correct, minlength=n_bins)
    return float(np.abs(gap).sum() / len(confidence))


def calibration_error_interval(
    confidence: NDArray[Any],
    correct: NDArray[Any],
    groups: NDArray[Any],
    n_bins: int = N_BINS,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Give a 95 % percentile interval of `expected_calibration_error`, resampling whole groups (n,) of answers.

    The error of few answers is biased upwards, in resamples more than in the data, so the interval may lie above the
    error itself.
    """
    confidence, correct = _checked(confidence, correct)
    gap = np.zeros((len(confidence), n_bins))
    gap[np.arange(len(confidence)), _bin_of(confidence, n_bins)] = confidence - correct
    total, size = resampled_sums(gap, groups, n_bootstrap, seed)
    return intervals((np.abs(total).sum(axis=1) / size)[:, None])[0]


def selective_accuracy(
    confidence: NDArray[Any], correct: NDArray[Any], coverages: Sequence[float] = COVERAGES
) -> Float64:
    """Give the accuracy among the most confident share of the answers; one minus it is the risk.

    Parameters
    ----------
    confidence, correct : ndarray, (n,)
    coverages : sequence of float
        Shares to keep, in (0, 1].

    Returns
    -------
    ndarray, (len(coverages),), float64
        Equally confident answers enter together, in the mean over their orders, so the order of rows is free.
    """
    confidence, correct = _checked(confidence, correct)
    if min(coverages) <= 0 or max(coverages) > 1:
        raise ValueError(f"coverages run from {min(coverages)} to {max(coverages)}, expected shares above 0, at most 1")
    values, which = np.unique(-confidence, return_inverse=True)
    n_kept = np.concatenate([[0], np.cumsum(np.bincount(which, minlength=len(values)))])
    n_right = np.concatenate([[0.0], np.cumsum(np.bincount(which, weights=correct, minlength=len(values)))])
    kept = np.asarray(coverages) * len(confidence)
    accuracy: Float64 = np.interp(kept, n_kept, n_right) / kept
    return accuracy


def _bin_of(confidence: Float64, n_bins: int) -> NDArray[np.int64]:
    return np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)


def _checked(confidence: NDArray[Any], correct: NDArray[Any]) -> tuple[Float64, Float64]:
    one, other = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if one.ndim != 1 or one.shape != other.shape or len(one) == 0 or not ((one >= 0) & (one <= 1)).all():
        raise ValueError(
            f"got confidence {one.shape} and correct {other.shape}, expected two (n,) of the same n > 0, confidence "
            "in [0, 1]; give one confidence per answer"
        )
    return one, other
