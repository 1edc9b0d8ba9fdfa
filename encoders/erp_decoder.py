"""Classify evoked responses: ridge regression on window means, and logistic regression on xDAWN covariances.

The first reads the shape of the response, the second how strongly each epoch follows it; their scores are added, each
divided by its spread on the training epochs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import softmax

from encoders.baselines import RidgeDecoder, fit_ridge
from encoders.erp_features import Alignment, align_groups, window_means
from encoders.linear_classifiers import Labels, LinearClassifier, check_classes, fit_logistic
from encoders.tangent_space import riemannian_mean, tangent_vectors
from encoders.xdawn import Xdawn, fit_xdawn

Float64 = NDArray[np.float64]


class ErpDecoderConfig(BaseModel):
    """Settings of the decoder.

    Attributes
    ----------
    start, stop, width : float
        Windows, seconds from onset.
    penalty : float
        Of the ridge regression, in units of the mean eigenvalue of the training kernel.
    alignment : str
        How people are brought together before both parts; see `align_groups`.
    n_filters : int
        xDAWN filters per class; 0 leaves the second part out.
    C : float
        Inverse penalty of the logistic regression.
    recentre : bool
        Take covariances relative to the mean covariance of the person's own epochs, labels unused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: float = 0.05
    stop: float = 0.6
    width: float = Field(default=0.04, gt=0)
    penalty: float = Field(default=1.0, gt=0)
    alignment: Alignment = "none"
    n_filters: int = Field(default=0, ge=0)
    C: float = Field(default=0.01, gt=0)
    recentre: bool = False


@dataclass(frozen=True)
class TangentPart:
    """xDAWN covariances, the point they are seen from, and their classifier."""

    xdawn: Xdawn
    reference: Float64
    mean: Float64
    scale: float
    classifier: LinearClassifier
    recentre: bool

    def scores(self, data: Float64, groups: NDArray[Any]) -> Float64:
        """Give log probabilities up to a constant, (n, k)."""
        features = _tangent(self.xdawn.covariances(data), groups, None if self.recentre else self.reference)
        found: Float64 = (features - self.mean) / self.scale @ self.classifier.weights + self.classifier.bias
        return found


@dataclass(frozen=True)
class ErpDecoder:
    """A fitted decoder.

    Attributes
    ----------
    classes : ndarray, (k,)
        Sorted labels.
    ridge : RidgeDecoder
    tangent : TangentPart, optional
    spreads : tuple of float
        Training spread of the scores of each part.
    sfreq, tmin : float
        Of the epochs.
    config : ErpDecoderConfig
    temperature : float
        Divides the scores in `probabilities`; fit it with `fit_temperature` on held-out epochs.
    """

    classes: Labels
    ridge: RidgeDecoder
    tangent: TangentPart | None
    spreads: tuple[float, ...]
    sfreq: float
    tmin: float
    config: ErpDecoderConfig
    temperature: float = 1.0

    def scores(self, data: NDArray[Any], groups: NDArray[Any]) -> Float64:
        """Score every class.

        Parameters
        ----------
        data : ndarray, (n_epochs, n_channels, n_times)
        groups : ndarray, (n_epochs,)
            Person of every epoch. With an alignment other than "none", or ``recentre``, a person's answers depend on
            which of the person's epochs are given together.

        Returns
        -------
        ndarray, (n_epochs, k), float64
        """
        aligned = align_groups(data, groups, self.config.alignment)
        found = self.ridge.predict(_windows(aligned, self.sfreq, self.tmin, self.config)) / self.spreads[0]
        if self.tangent is not None:
            found = found + self.tangent.scores(aligned, groups) / self.spreads[1]
        return np.asarray(found, dtype=np.float64)

    def probabilities(self, data: NDArray[Any], groups: NDArray[Any]) -> Float64:
        """Give class probabilities, (n_epochs, k), calibrated as far as ``temperature`` is."""
        found: Float64 = softmax(self.scores(data, groups) / self.temperature, axis=1)
        return found


def fit_erp_decoder(
    data: NDArray[Any], labels: Labels, groups: NDArray[Any], config: ErpDecoderConfig, *, sfreq: float, tmin: float
) -> ErpDecoder:
    """Fit both parts.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times)
        Any one unit; all channels finite.
    labels, groups : ndarray, (n_epochs,)
        Class and person (or run) of every epoch.
    config : ErpDecoderConfig
    sfreq, tmin : float
        Hz and seconds.

    Returns
    -------
    ErpDecoder
    """
    classes, index = check_classes(len(data), labels)
    if config.recentre and config.n_filters == 0:
        raise ValueError("recentre has no effect without n_filters; set n_filters, or recentre to false")
    aligned = align_groups(data, groups, config.alignment)
    windows = _windows(aligned, sfreq, tmin, config)
    ridge = fit_ridge(windows, np.eye(len(classes), dtype=np.float32)[index], penalties=(config.penalty,))
    spreads = [_spread(ridge.predict(windows))]
    tangent = None
    if config.n_filters:
        tangent = _fit_tangent(aligned, labels, groups, config)
        spreads.append(_spread(tangent.scores(aligned, groups)))
    return ErpDecoder(classes, ridge, tangent, tuple(spreads), sfreq, tmin, config)


def _fit_tangent(data: Float64, labels: Labels, groups: NDArray[Any], config: ErpDecoderConfig) -> TangentPart:
    xdawn = fit_xdawn(data, labels, config.n_filters)
    matrices = xdawn.covariances(data)
    reference = riemannian_mean(matrices) if not config.recentre else np.eye(matrices.shape[1])
    features = _tangent(matrices, groups, None if config.recentre else reference)
    mean = features.mean(axis=0)
    scale = float(features.std(axis=0).mean())
    classifier = fit_logistic((features - mean) / scale, labels, config.C)
    return TangentPart(xdawn, reference, mean, scale, classifier, config.recentre)


def _tangent(matrices: Float64, groups: NDArray[Any], reference: Float64 | None) -> Float64:
    """Give tangent vectors at one reference, or at each group's own mean."""
    if reference is not None:
        return tangent_vectors(matrices, reference)
    found = np.empty((len(matrices), matrices.shape[1] * (matrices.shape[1] + 1) // 2))
    for name in np.unique(groups):
        rows = groups == name
        found[rows] = tangent_vectors(matrices[rows], riemannian_mean(matrices[rows]))
    return found


def _windows(data: Float64, sfreq: float, tmin: float, config: ErpDecoderConfig) -> NDArray[np.float32]:
    means = window_means(
        data, sfreq=sfreq, tmin=tmin, start=config.start, stop=config.stop, width=config.width
    )
    return means.reshape(len(means), -1).astype(np.float32)


def _spread(scores: NDArray[Any]) -> float:
    """Return the deviation of scores after each row's mean, which no decision depends on."""
    return float((scores - scores.mean(axis=1, keepdims=True)).std()) or 1.0
