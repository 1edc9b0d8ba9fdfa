"""The ideal observer: exact Bayesian identification of the image behind a simulated recording.

Candidates are discrete and equally likely, the response to each is known and the noise is Gaussian with known
covariance, so the log-likelihood is exact and no decoder can do better on average. Responses span at most one
dimension per source, therefore data are projected onto the whitened signal subspace first, which loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.brain_noise import BrainNoise

Array = NDArray[np.float64]


@dataclass(frozen=True)
class IdealObserver:
    """Matched filters for one person and layout.

    Attributes
    ----------
    filters : ndarray, (rank, n_channels * n_times), float64
        Whitening and projection in one: noise of scale 1 leaves with unit variance, uncorrelated.
    responses : ndarray, (n_sources, rank), float64
        Filter outputs for unit amplitude of each source.
    noise_scale : float
        Standard deviation of the noise in multiples of the noise the filters were built for.
    """

    filters: Array
    responses: Array
    noise_scale: float

    def project(self, data: NDArray[np.float32]) -> Array:
        """Return the filter outputs, (n_epochs, rank), of data (n_epochs, n_channels, n_times)."""
        outputs: Array = data.reshape(len(data), -1) @ self.filters.T
        return outputs

    def log_likelihood(
        self, data: NDArray[np.float32], amplitudes: Array, n_averaged: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the log-likelihood of every candidate, up to a constant per epoch.

        Parameters
        ----------
        data : ndarray, (n_epochs, n_channels, n_times), float32
            Recorded signals, SI units.
        amplitudes : ndarray, (n_candidates, n_sources), float64
            Source amplitudes that each candidate evokes.
        n_averaged : ndarray, (n_epochs,), int64
            How many repetitions each epoch averages (the noise variance falls by that factor).

        Returns
        -------
        ndarray, (n_epochs, n_candidates), float64
            In nats. Sum the results of simultaneous or repeated recordings to fuse them.
        """
        seen = self.project(data)
        expected = amplitudes @ self.responses
        distance = (seen**2).sum(axis=1)[:, None] - 2.0 * seen @ expected.T + (expected**2).sum(axis=1)
        # without noise only the order of the distances matters, and any scale keeps it
        precision = n_averaged / max(self.noise_scale, 1e-6) ** 2
        scores: NDArray[np.float64] = -0.5 * precision[:, None] * distance
        return scores


def build_observer(patterns: Array, noise: BrainNoise, noise_scale: float) -> IdealObserver:
    """Build the matched filters.

    Parameters
    ----------
    patterns : ndarray, (n_sources, n_channels, n_times), float64
        Response to unit amplitude of each source, SI units.
    noise : BrainNoise
        Noise at scale 1.
    noise_scale : float
        Multiple of it that recordings hold; 0 is allowed.

    Returns
    -------
    IdealObserver
    """
    n_sources = len(patterns)
    white = noise.whiten(patterns)
    basis, singular, _ = np.linalg.svd(white.reshape(n_sources, -1).T, full_matrices=False)
    basis = basis[:, singular > 1e-9 * singular[0]]
    filters = noise.whiten_adjoint(basis.T.reshape(-1, *patterns.shape[1:])).reshape(basis.shape[1], -1)
    return IdealObserver(filters, white.reshape(n_sources, -1) @ basis, noise_scale)


def posterior_mean(seen: Array, design: Array, covariance: Array, noise_variance: Array) -> Array:
    """Return the mean of the embedding given filter outputs, under a Gaussian prior with mean 0.

    Parameters
    ----------
    seen : ndarray, (n_epochs, rank), float64
        Filter outputs, of one recording or of several side by side.
    design : ndarray, (d, rank), float64
        Filter outputs for unit embeddings.
    covariance : ndarray, (d, d), float64
        Covariance of the embeddings.
    noise_variance : ndarray, (rank,), float64
        Variance of the noise in each filter output.

    Returns
    -------
    ndarray, (n_epochs, d), float64
    """
    gain = design.T @ covariance
    total = gain @ design + np.diag(noise_variance)
    mean: Array = seen @ np.linalg.solve(total, gain)
    return mean
