"""Gaussian-process classification with a linear kernel, by Laplace's approximation.

In dual form, so its cost follows the number of epochs, not channels times samples. More than two classes are decided
one against the rest. Everything is float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.special import expit

from encoders.linear_classifiers import check_classes

Float = NDArray[np.float64]
Labels = NDArray[Any]

NEWTON_TOLERANCE = 1e-10
MOST_ITERATIONS = 200
GRID = np.linspace(-9.0, 9.0, 3001)
"""Standard deviations at which the logistic of a Gaussian is averaged (trapezoid: spectrally accurate)."""


@dataclass(frozen=True)
class Posterior:
    """Laplace's approximation of one yes-or-no decision.

    Attributes
    ----------
    residual : ndarray, (n,), float64
        Label minus probability at the mode: the dual weights of the mean.
    root : ndarray, (n,), float64
        Square root of the likelihood's curvature at the mode.
    factor : ndarray, (n, n), float64
        Lower Cholesky factor of ``1 + root K root``.
    evidence : float
        Approximate log marginal likelihood, nats.
    """

    residual: Float
    root: Float
    factor: Float
    evidence: float


@dataclass(frozen=True)
class LinearGPC:
    """A fitted classifier.

    Attributes
    ----------
    classes : ndarray, (k,)
    rows : ndarray, (n, n_features), float64
        Training epochs, flattened.
    bias_scale : float
        Prior standard deviation of the offset, the kernel's ``sigma_0``.
    weight_scale : float
        Prior standard deviation of each weight.
    posteriors : tuple of Posterior
        One for two classes (the second against the first), else one per class.
    """

    classes: Labels
    rows: Float
    bias_scale: float
    weight_scale: float
    posteriors: tuple[Posterior, ...]

    @property
    def evidence(self) -> float:
        """Log marginal likelihood of the training labels, mean over decisions, nats."""
        return float(np.mean([one.evidence for one in self.posteriors]))

    def latents(self, data: NDArray[Any]) -> tuple[Float, Float]:
        """Return mean and variance of each decision's latent, (n_epochs, n_decisions) both."""
        rows = _flat(data)
        if rows.shape[1] != self.rows.shape[1]:
            raise ValueError(
                f"linear GPC expects {self.rows.shape[1]} values per epoch, got {rows.shape[1]} from {data.shape}; "
                "prepare the epochs as in training"
            )
        cross = _kernel(rows, self.rows, self.bias_scale, self.weight_scale)
        own = self.bias_scale**2 + self.weight_scale**2 * (rows**2).sum(axis=1)
        means, variances = [], []
        for one in self.posteriors:
            means.append(cross @ one.residual)
            half = solve_triangular(one.factor, (cross * one.root).T, lower=True)
            variances.append(np.maximum(own - (half**2).sum(axis=0), 0.0))
        return np.stack(means, axis=1), np.stack(variances, axis=1)

    def probabilities(self, data: NDArray[Any]) -> Float:
        """Map epochs to class probabilities, (n_epochs, k), averaged over the posterior."""
        means, variances = self.latents(data)
        yes = np.stack([_averaged(means[:, i], variances[:, i]) for i in range(means.shape[1])], axis=1)
        if len(self.classes) == 2:
            return np.concatenate([1 - yes, yes], axis=1)
        normalised: Float = yes / yes.sum(axis=1, keepdims=True)
        return normalised

    def predict(self, data: NDArray[Any]) -> Labels:
        """Map epochs to labels, (n_epochs,)."""
        means, _ = self.latents(data)
        index = (means[:, 0] > 0).astype(int) if len(self.classes) == 2 else self.probabilities(data).argmax(axis=1)
        best: Labels = self.classes[index]
        return best


def fit_linear_gpc(
    data: NDArray[Any], labels: Labels, weight_scales: Sequence[float] = (1.0,), bias_scale: float = 1.0
) -> LinearGPC:
    """Fit the classifier; among several weight scales the one with the largest evidence wins.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times) or (n_epochs, n_features)
    labels : ndarray, (n_epochs,)
    weight_scales : sequence of float
        Prior standard deviations of a weight. The kernel is ``bias_scale^2 + weight_scale^2 x.x'``; with many
        features a scale near ``1 / sqrt(n_features)`` of unit variance is a start.
    bias_scale : float
        Prior standard deviation of the offset.

    Returns
    -------
    LinearGPC

    Raises
    ------
    ValueError
        If labels do not fit, or a scale is not positive.

    References
    ----------
    Rasmussen and Williams 2006, "Gaussian processes for machine learning", algorithms 3.1 and 3.2. Used on brain
    activity by Floyd et al. 2017, ICSE.
    """
    if not weight_scales or not all(scale > 0 for scale in (*weight_scales, bias_scale)):
        raise ValueError(
            f"linear GPC got weight_scales={tuple(weight_scales)} and bias_scale={bias_scale}, expected positive "
            "numbers; 1 / sqrt(n_features) is a start for the weights"
        )
    classes, index = check_classes(len(data), labels)
    rows = _flat(data)
    decisions = [1] if len(classes) == 2 else range(len(classes))
    fits = []
    for scale in weight_scales:
        kernel = _kernel(rows, rows, bias_scale, scale)
        posteriors = tuple(_laplace(kernel, (index == k).astype(np.float64)) for k in decisions)
        fits.append(LinearGPC(classes, rows, bias_scale, scale, posteriors))
    return max(fits, key=lambda fit: fit.evidence)


def _laplace(kernel: Float, yes: Float) -> Posterior:
    """Climb to the mode of the latents' posterior by Newton's method."""
    latent, last = np.zeros(len(yes)), -np.inf
    sign = 2 * yes - 1
    for _ in range(MOST_ITERATIONS):
        probability = expit(latent)
        curvature = probability * (1 - probability)
        root = np.sqrt(curvature)
        factor = cholesky(np.eye(len(yes)) + root[:, None] * kernel * root, lower=True)
        target = curvature * latent + yes - probability
        inner = solve_triangular(factor, root * (kernel @ target), lower=True)
        dual = target - root * solve_triangular(factor.T, inner, lower=False)
        latent = kernel @ dual
        height = -0.5 * float(dual @ latent) - float(np.logaddexp(0, -sign * latent).sum())
        if height - last < NEWTON_TOLERANCE:
            break
        last = height
    probability = expit(latent)
    root = np.sqrt(probability * (1 - probability))
    factor = cholesky(np.eye(len(yes)) + root[:, None] * kernel * root, lower=True)
    return Posterior(yes - probability, root, factor, height - float(np.log(np.diag(factor)).sum()))


def _averaged(mean: Float, variance: Float) -> Float:
    """Return the mean of the logistic function of a Gaussian."""
    weight = np.exp(-0.5 * GRID**2)
    values = expit(mean[:, None] + np.sqrt(variance)[:, None] * GRID)
    averaged: Float = values @ weight / weight.sum()
    return averaged


def _kernel(rows: Float, others: Float, bias_scale: float, weight_scale: float) -> Float:
    kernel: Float = bias_scale**2 + weight_scale**2 * (rows @ others.T)
    return kernel


def _flat(data: NDArray[Any]) -> Float:
    return np.asarray(data, dtype=np.float64).reshape(len(data), -1)
