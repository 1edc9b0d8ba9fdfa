"""Multivariate noise normalisation: whiten channels by the inverse square root of a shrunken covariance."""

import numpy as np
from numpy.typing import NDArray


def ledoit_wolf(samples: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    """Estimate a covariance with Ledoit-Wolf shrinkage towards a scaled identity.

    Parameters
    ----------
    samples : ndarray, (n_samples, n_channels)
        Observations; the mean over samples is removed here.

    Returns
    -------
    covariance : ndarray, (n_channels, n_channels), float64
    shrinkage : float
        Weight of the identity, in [0, 1].

    References
    ----------
    Ledoit and Wolf 2004, J. Multivariate Analysis 88.
    """
    centred = np.asarray(samples, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    n, c = centred.shape
    covariance = centred.T @ centred / n
    mu = np.trace(covariance) / c
    squares = float((covariance**2).sum())
    beta = float(((centred**2).sum(axis=1) ** 2).sum() / n - squares) / (c * n)
    delta = (squares - c * mu**2) / c
    shrinkage = 0.0 if delta <= 0.0 else float(np.clip(beta / delta, 0.0, 1.0))
    shrunk = (1.0 - shrinkage) * covariance
    shrunk.flat[:: c + 1] += shrinkage * mu
    return shrunk, shrinkage


def mvnn(data: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the whitening matrix of training epochs: the mean shrunken covariance to the power -1/2.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times), float32
        Training epochs only: including test epochs leaks.

    Returns
    -------
    ndarray, (n_channels, n_channels), float32
        Symmetric; ``whitener @ epoch`` has unit noise covariance. Channels that were
        average-referenced have rank n - 1: the shrinkage keeps the inverse finite.

    References
    ----------
    Guggenmos, Sterzer and Cichy 2018, NeuroImage 173 ("epoch" variant).
    """
    covariance = np.zeros((data.shape[1], data.shape[1]))
    for epoch in data:
        covariance += ledoit_wolf(epoch.T)[0]
    values, vectors = np.linalg.eigh(covariance / len(data))
    floor = values.max() * 1e-8
    whitener = (vectors / np.sqrt(np.maximum(values, floor))) @ vectors.T
    return np.asarray(whitener, dtype=np.float32)
