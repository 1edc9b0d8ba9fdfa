"""Spatial filters that make evoked responses stand out, and epochs as covariances with the responses they resemble."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from encoders.linear_classifiers import Labels, check_classes

NOISE_SHRINKAGE = 0.1

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Xdawn:
    """Fitted filters.

    Attributes
    ----------
    filters : ndarray, (n_classes * n_filters, n_channels), float64
        Class by class, strongest first.
    prototypes : ndarray, (n_classes * n_filters, n_times), float64
        Each class's mean epoch through its own filters.
    """

    filters: Float64
    prototypes: Float64

    def covariances(self, data: NDArray[Any], shrinkage: float = 0.02) -> Float64:
        """Give the covariance of prototypes and filtered epoch, stacked.

        Off-diagonal blocks tell how much an epoch follows each class's response, which the covariance of the epoch
        alone cannot.

        Parameters
        ----------
        data : ndarray, (n_epochs, n_channels, n_times)
        shrinkage : float
            Share that is replaced by the mean variance times the identity.

        Returns
        -------
        ndarray, (n_epochs, 2 * k, 2 * k), float64
            ``k`` filters; positive definite.

        References
        ----------
        Congedo et al. 2013, "A new generation of brain-computer interface based on Riemannian geometry",
        arXiv:1310.8115.
        """
        filtered = self.filters @ np.asarray(data, dtype=np.float64)
        shown = np.broadcast_to(self.prototypes, (len(filtered), *self.prototypes.shape))
        stacked = np.concatenate([shown, filtered], axis=1)
        found = stacked @ stacked.transpose(0, 2, 1) / stacked.shape[2]
        n = found.shape[1]
        variance = np.trace(found, axis1=1, axis2=2) / n
        blended: Float64 = (1 - shrinkage) * found + shrinkage * variance[:, None, None] * np.eye(n)
        return blended


def fit_xdawn(data: NDArray[Any], labels: Labels, n_filters: int) -> Xdawn:
    """Find for every class the filters with the largest ratio of evoked to total power.

    Epochs are taken as they are, without the model of overlapping responses of the original.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times)
    labels : ndarray, (n_epochs,)
    n_filters : int
        Per class, 1 to n_channels.

    References
    ----------
    Rivet et al. 2009, "xDAWN algorithm to enhance evoked potentials", IEEE TBME.
    """
    classes, index = check_classes(len(data), labels)
    if not 1 <= n_filters <= data.shape[1]:
        raise ValueError(f"n_filters is {n_filters}, expected 1 to {data.shape[1]}, one per channel; ask for fewer")
    epochs = np.asarray(data, dtype=np.float64)
    samples = np.moveaxis(epochs, 1, 0).reshape(epochs.shape[1], -1)
    total = samples @ samples.T / len(epochs)
    n_channels = len(total)
    total = (1 - NOISE_SHRINKAGE) * total + NOISE_SHRINKAGE * np.trace(total) / n_channels * np.eye(n_channels)
    filters, prototypes = [], []
    for k in range(len(classes)):
        evoked = epochs[index == k].mean(axis=0)
        _, vectors = eigh(evoked @ evoked.T, total)
        best = vectors[:, ::-1][:, :n_filters].T
        filters.append(best)
        prototypes.append(best @ evoked)
    return Xdawn(np.concatenate(filters), np.concatenate(prototypes))
