"""The chance that the first picture is the right one, calibrated on validation answers and measured on others.

Two steps, both fitted on validation answers: a temperature turns similarities into a distribution over the gallery, and
a logistic curve turns the log-odds of its largest entry into how often such answers were right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from alignment.calibration_scores import (
    COVERAGES,
    N_BINS,
    calibration_error_interval,
    expected_calibration_error,
    reliability_table,
    selective_accuracy,
)
from alignment.classification_scores import roc_auc
from alignment.evaluation_report import ConfidenceFigures
from alignment.retrieval_metrics import check_similarity, own_ranks
from alignment.temperature import fit_temperature

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredAnswers:
    """Similarities of recordings to a gallery.

    Attributes
    ----------
    similarity : ndarray, (n, m)
    target : ndarray, (n,), int64
    image : tuple of str, (n,)
        Id of each row's own picture, unique over the data set.
    n_averaged : int
    split : str
    group : mapping of str to str
    """

    similarity: NDArray[Any]
    target: NDArray[np.int64]
    image: tuple[str, ...]
    n_averaged: int
    split: str
    group: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check shapes and ids."""
        check_similarity(self.similarity, self.target)
        if len(self.image) != len(self.target) or not all(self.image):
            raise ValueError(f"{len(self.image)} image ids for {len(self.target)} rows; give one id per row, not empty")


@dataclass(frozen=True)
class AnswerCalibration:
    """Temperature, and slope and offset of the curve from log-odds to confidence; for galleries of one size."""

    temperature: float
    slope: float
    offset: float
    gallery_size: int

    def confidence(self, similarity: NDArray[Any]) -> Float64:
        """Give the chance (n,) that each row's first picture is the right one.

        Raises
        ------
        ValueError
            If the gallery has another size than the one calibrated with: being first of fewer is easier.
        """
        if similarity.shape[1] != self.gallery_size:
            raise ValueError(
                f"calibrated for {self.gallery_size} pictures, got {similarity.shape[1]}; calibrate for this gallery"
            )
        sure: Float64 = expit(self.slope * _log_odds(similarity, self.temperature) + self.offset)
        return sure


def fit_answer_calibration(validation: ScoredAnswers) -> AnswerCalibration:
    """Fit both steps on validation answers.

    The slope is positive, with a log-normal prior that weighs as much as one answer, so more log-odds always mean more
    confidence, also where the validation has no mistake to learn a slope from.

    References
    ----------
    Platt 1999, "Probabilistic outputs for support vector machines": its smoothed targets, so that a validation set
    without any wrong (or right) answer does not make the curve a step.
    """
    temperature = fit_temperature(validation.similarity, validation.target)
    odds = _log_odds(validation.similarity, temperature)
    correct = own_ranks(validation.similarity, validation.target) <= 1
    n_right = int(correct.sum())
    wanted = np.where(correct, (n_right + 1) / (n_right + 2), 1 / (len(correct) - n_right + 2))

    def loss(curve: Float64) -> float:
        margin = np.exp(curve[0]) * odds + curve[1]
        held = curve[0] ** 2 / (2 * len(odds))  # keeps the order of answers where all are right, or all wrong
        return float((np.logaddexp(0, margin) - wanted * margin).mean() + held)

    log_slope, offset = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6}).x
    return AnswerCalibration(temperature, float(np.exp(log_slope)), float(offset), validation.similarity.shape[1])


def confidence_figures(
    validation: ScoredAnswers,
    test: ScoredAnswers,
    surrogates: Mapping[str, NDArray[Any]],
    *,
    n_bins: int = N_BINS,
    coverages: Sequence[float] = COVERAGES,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> ConfidenceFigures:
    """Calibrate on validation answers and measure on test answers.

    Parameters
    ----------
    validation, test : ScoredAnswers
        With galleries of the same size and no picture in common; validation averages no more presentations than test.
    surrogates : mapping of str to ndarray, (k, m)
        Similarities of recordings without a stimulus to the test gallery, by kind.
    n_bins, coverages, n_bootstrap, seed
        Bins of the calibration error, shares of the risk-coverage curve, and for the interval.

    Returns
    -------
    ConfidenceFigures

    Raises
    ------
    ValueError
        If a picture is on both sides, or the sides are not alike.
    """
    both = sorted(set(validation.image) & set(test.image))
    if both:
        raise ValueError(
            f"{len(both)} pictures are in validation and test, for example {both[:3]}; calibrate on other pictures"
        )
    if validation.n_averaged > test.n_averaged:
        raise ValueError(
            f"validation averages {validation.n_averaged} presentations and test {test.n_averaged}; calibrate with at "
            "most as many as are measured, or answers are believed too much"
        )
    calibration = fit_answer_calibration(validation)
    sure = calibration.confidence(test.similarity)
    correct = own_ranks(test.similarity, test.target) <= 1

    half, whole = selective_accuracy(sure, correct, (0.5, 1.0))
    return ConfidenceFigures(
        calibration_split=validation.split, split=test.split, n_calibration=len(validation.target),
        calibration_n_averaged=validation.n_averaged, n=len(correct), n_averaged=test.n_averaged,
        gallery_size=test.similarity.shape[1], accuracy=float(whole), mean_confidence=float(sure.mean()),
        expected_calibration_error=expected_calibration_error(sure, correct, n_bins),
        interval=calibration_error_interval(sure, correct, np.asarray(test.image), n_bins, n_bootstrap, seed),
        bins=tuple(reliability_table(sure, correct, n_bins)), coverage=tuple(coverages),
        selective_accuracy=tuple(float(one) for one in selective_accuracy(sure, correct, coverages)),
        accuracy_at_half=float(half), gain_at_half=float(half / whole) if whole > 0 else 1.0,
        surrogate_auroc={kind: surrogate_auroc(calibration, test.similarity, one) for kind, one in surrogates.items()},
        group=dict(test.group),
    )  # fmt: skip


def surrogate_auroc(calibration: AnswerCalibration, real: NDArray[Any], surrogate: NDArray[Any]) -> float:
    """Give the chance that a real recording gets more confidence than one without a stimulus; 0.5 is chance."""
    sure = np.concatenate([calibration.confidence(real), calibration.confidence(surrogate)])
    return roc_auc(np.arange(len(sure)) < len(real), sure)


def _log_odds(similarity: NDArray[Any], temperature: float) -> Float64:
    """Give the log-odds of the largest entry of the softmax, computed without rounding near 0 and 1."""
    scores = np.sort(np.asarray(similarity, dtype=np.float64) / temperature, axis=1)
    odds: Float64 = scores[:, -1] - logsumexp(scores[:, :-1], axis=1)
    return odds
