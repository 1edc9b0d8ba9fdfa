"""Covariances as points on a curved space: their mean, their coordinates around it, and a classifier of these.

A distance between covariances that no linear mixing of the channels can change makes a decoder robust to where the
electrodes sit. Everything is float64.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.linear_classifiers import LinearClassifier, fit_logistic

Float = NDArray[np.float64]
Labels = NDArray[Any]

MEAN_TOLERANCE = 1e-10
MOST_ITERATIONS = 100


@dataclass(frozen=True)
class TangentDecoder:
    """A reference covariance and the classifier of coordinates around it.

    Attributes
    ----------
    reference : ndarray, (n_channels, n_channels), float64
        Riemannian mean of the training covariances.
    classifier : LinearClassifier
    shrinkage : float
    """

    reference: Float
    classifier: LinearClassifier
    shrinkage: float

    def features(self, data: NDArray[Any]) -> Float:
        """Map ``(n_epochs, n_channels, n_times)`` to tangent vectors, (n_epochs, c * (c + 1) / 2)."""
        return tangent_vectors(covariances(data, self.shrinkage), self.reference)

    def probabilities(self, data: NDArray[Any]) -> Float:
        """Map ``(n_epochs, n_channels, n_times)`` to class probabilities, (n_epochs, k)."""
        return self.classifier.probabilities(self.features(data))

    def predict(self, data: NDArray[Any]) -> Labels:
        """Map ``(n_epochs, n_channels, n_times)`` to labels, (n_epochs,)."""
        return self.classifier.predict(self.features(data))


def covariances(data: NDArray[Any], shrinkage: float = 0.05) -> Float:
    """Compute each epoch's channel covariance, shrunk so that it is positive definite.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times)
    shrinkage : float
        0 to 1; share that is replaced by the mean variance times the identity. Needed when an epoch has fewer samples
        than channels, or channels determine one another.

    Returns
    -------
    ndarray, (n_epochs, n_channels, n_channels), float64
    """
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage is {shrinkage}, expected 0 to 1; 0.05 is usual")
    centred = np.asarray(data, dtype=np.float64)
    centred = centred - centred.mean(axis=2, keepdims=True)
    found = centred @ centred.transpose(0, 2, 1) / data.shape[2]
    n_channels = data.shape[1]
    mean_variance = np.trace(found, axis1=1, axis2=2) / n_channels
    blended: Float = (1 - shrinkage) * found + shrinkage * mean_variance[:, None, None] * np.eye(n_channels)
    return blended


def riemannian_mean(matrices: Float) -> Float:
    """Find the matrix with the smallest sum of squared affine-invariant distances to all.

    Parameters
    ----------
    matrices : ndarray, (n, c, c), float64
        Symmetric, positive definite.

    Returns
    -------
    ndarray, (c, c), float64

    Raises
    ------
    ValueError
        If a matrix is not positive definite, or the iteration does not settle.

    References
    ----------
    Pennec et al. 2006, "A Riemannian framework for tensor computing", Int. J. Comput. Vis. 66:41-66.
    """
    lowest = float(np.linalg.eigvalsh(matrices).min())
    if not lowest > 0:
        raise ValueError(
            f"riemannian_mean got a matrix with eigenvalue {lowest:.3g}, expected positive ones; use more shrinkage"
        )
    mean: Float = matrices.mean(axis=0)
    step, last = 1.0, np.inf
    for _ in range(MOST_ITERATIONS):
        root, inverse_root = _power(mean, 0.5), _power(mean, -0.5)
        direction = _log(inverse_root @ matrices @ inverse_root).mean(axis=0)
        size = float(np.linalg.norm(direction))
        if size < MEAN_TOLERANCE * len(mean):
            return mean
        step, last = (step if size < last else step / 2), size
        values, vectors = np.linalg.eigh(step * direction)
        mean = root @ (vectors * np.exp(values)) @ vectors.T @ root
        mean = (mean + mean.T) / 2
    raise ValueError(
        f"riemannian_mean of {len(matrices)} matrices did not settle in {MOST_ITERATIONS} iterations, {size:.3g} left, "
        "expected less than 1e-10 per row; use more shrinkage"
    )


def tangent_vectors(matrices: Float, reference: Float) -> Float:
    """Give each matrix's coordinates around the reference; their length is the Riemannian distance to it.

    Parameters
    ----------
    matrices : ndarray, (n, c, c), float64
    reference : ndarray, (c, c), float64

    Returns
    -------
    ndarray, (n, c * (c + 1) / 2), float64
        Upper triangle of the whitened matrix's logarithm, entries off the diagonal times the square root of 2.
    """
    inverse_root = _power(reference, -0.5)
    logs = _log(inverse_root @ matrices @ inverse_root)
    rows, columns = np.triu_indices(len(reference))
    coordinates: Float = logs[:, rows, columns] * np.where(rows == columns, 1.0, np.sqrt(2.0))
    return coordinates


def fit_tangent_decoder(
    data: NDArray[Any], labels: Labels, C: float = 1.0, shrinkage: float = 0.05
) -> TangentDecoder:
    """Fit the mean of all epochs' covariances and a logistic regression of tangent vectors.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times)
        Filtered to the band in question.
    labels : ndarray, (n_epochs,)
    C, shrinkage : float
        See `fit_logistic` and `covariances`.

    References
    ----------
    Barachant et al. 2012, "Multiclass brain-computer interface classification by Riemannian geometry", IEEE TBME.
    """
    matrices = covariances(data, shrinkage)
    reference = riemannian_mean(matrices)
    return TangentDecoder(reference, fit_logistic(tangent_vectors(matrices, reference), labels, C), shrinkage)


def _power(matrix: Float, exponent: float) -> Float:
    values, vectors = np.linalg.eigh(matrix)
    result: Float = (vectors * values**exponent) @ vectors.T
    return result


def _log(matrices: Float) -> Float:
    values, vectors = np.linalg.eigh((matrices + matrices.transpose(0, 2, 1)) / 2)
    result: Float = (vectors * np.log(values)[:, None, :]) @ vectors.transpose(0, 2, 1)
    return result
