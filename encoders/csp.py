"""Common spatial patterns and linear discriminant analysis, the classical decoder of band power.

The signal must have been filtered to the band in question: the method compares variances.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from encoders.linear_classifiers import LinearClassifier, check_classes, fit_lda

Labels = NDArray[Any]


@dataclass(frozen=True)
class CSP:
    """Spatial filters whose output differs most in variance between classes.

    Attributes
    ----------
    filters : ndarray, (n_components, n_channels), float64
        Scaled so that the summed class covariances give each output a variance of 1. Best first; with more than two
        classes, those of the first class against all come first.
    patterns : ndarray, (n_channels, n_components), float64
        What each filter looks at, from the inverse of the whole set of filters.
    """

    filters: NDArray[np.float64]
    patterns: NDArray[np.float64]

    def log_power(self, data: NDArray[Any]) -> NDArray[np.float64]:
        """Return the log of every component's mean square over the epoch.

        Parameters
        ----------
        data : ndarray, (n_epochs, n_channels, n_times)

        Returns
        -------
        ndarray, (n_epochs, n_components), float64
        """
        components = self.filters @ data
        power: NDArray[np.float64] = np.log((components**2).mean(axis=2))
        return power


@dataclass(frozen=True)
class CSPDecoder:
    """Fitted spatial filters and the classifier of their log powers."""

    csp: CSP
    classifier: LinearClassifier

    def probabilities(self, data: NDArray[Any]) -> NDArray[np.float64]:
        """Map ``(n_epochs, n_channels, n_times)`` to class probabilities, (n_epochs, k)."""
        return self.classifier.probabilities(self.csp.log_power(data))

    def predict(self, data: NDArray[Any]) -> Labels:
        """Map ``(n_epochs, n_channels, n_times)`` to labels, (n_epochs,)."""
        return self.classifier.predict(self.csp.log_power(data))


def fit_csp(data: NDArray[Any], labels: Labels, n_components: int = 4) -> CSP:
    """Find the spatial filters by joint diagonalisation of class covariances.

    Two classes are compared with each other; more classes each with all of them, ``n_components`` for each class.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times)
        Band-pass filtered.
    labels : ndarray, (n_epochs,)
    n_components : int

    Returns
    -------
    CSP

    Raises
    ------
    ValueError
        If labels do not fit, there are more components than channels, or the channels are linearly dependent (for
        example after an average reference): drop one then.

    References
    ----------
    Blankertz et al. 2008, "Optimizing spatial filters for robust EEG single-trial analysis", IEEE Signal Proc. Mag.
    """
    classes, index = check_classes(len(data), labels)
    n_channels = data.shape[1]
    if not 0 < n_components <= n_channels:
        raise ValueError(
            f"CSP got n_components={n_components} for {n_channels} channels, expected 1 to {n_channels}; ask for fewer"
        )
    samples = np.asarray(data, dtype=np.float64)
    covariances = np.stack([_covariance(samples[index == k]) for k in range(len(classes))])
    whole = covariances.sum(axis=0)
    if np.linalg.matrix_rank(whole, hermitian=True) < n_channels:
        raise ValueError(
            f"CSP got {n_channels} channels of rank {np.linalg.matrix_rank(whole, hermitian=True)}, expected full "
            "rank; drop channels that others determine (one after an average reference)"
        )
    filters, found_patterns = [], []
    for covariance in covariances[:1] if len(classes) == 2 else covariances:
        share, vectors = eigh(covariance, whole)
        centre = 0.5 if len(classes) == 2 else 1 / len(classes)
        best = np.argsort(-np.abs(share - centre))[:n_components]
        filters.append(vectors.T[best])
        found_patterns.append((whole @ vectors)[:, best])
    return CSP(np.concatenate(filters), np.concatenate(found_patterns, axis=1))


def fit_csp_decoder(
    data: NDArray[Any], labels: Labels, n_components: int = 4, shrinkage: float = 0.0
) -> CSPDecoder:
    """Fit spatial filters and a discriminant analysis of their log powers; see `fit_csp` and `fit_lda`."""
    csp = fit_csp(data, labels, n_components)
    return CSPDecoder(csp, fit_lda(csp.log_power(data), labels, shrinkage))


def _covariance(epochs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the covariance of all samples of all epochs, whose mean is taken to be 0, (n_channels, n_channels)."""
    samples = np.moveaxis(epochs, 1, 0).reshape(epochs.shape[1], -1)
    covariance: NDArray[np.float64] = samples @ samples.T / (samples.shape[1] - 1)
    return covariance
