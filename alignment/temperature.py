"""One number that makes scores into probabilities that are as sure as they should be."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

LOG_RANGE = (-12.0, 12.0)


def fit_temperature(scores: NDArray[Any], target: NDArray[np.int64]) -> float:
    """Find the divisor of the scores with the smallest mean cross-entropy.

    Parameters
    ----------
    scores : ndarray, (n, k)
        Of rows that whatever gave the scores was not fitted on; larger is more likely.
    target : ndarray, (n,), int64
        Right column of every row.

    Returns
    -------
    float
        Temperature for ``softmax(scores / temperature)``; does not change which column is first.

    Raises
    ------
    ValueError
        If shapes disagree or a score is not finite.

    References
    ----------
    Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599.
    """
    if scores.ndim != 2 or target.shape != (len(scores),) or len(scores) == 0 or not np.isfinite(scores).all():
        raise ValueError(
            f"fit_temperature got scores {scores.shape} and target {target.shape}, expected finite (n, k) and (n,); "
            "check the decoder's output"
        )
    rows = np.arange(len(scores))
    values = np.asarray(scores, dtype=np.float64)
    unit = float(values.std()) or 1.0

    def cross_entropy(log_temperature: float) -> float:
        return -float(log_softmax(values / (unit * np.exp(log_temperature)), axis=1)[rows, target].mean())

    found = minimize_scalar(cross_entropy, bounds=LOG_RANGE, method="bounded", options={"xatol": 1e-4})
    return unit * float(np.exp(found.x))
