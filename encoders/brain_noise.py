"""Noise of a simulated recording: 1/f background and alpha rhythm seen through the lead field, plus the sensors' own.

The covariance over space and time is the sum of two Kronecker products, (background + sensors) x 1/f and alpha x
10 Hz. Two such terms diagonalise together, so the exact inverse of a matrix with 20,000 rows costs two small
eigendecompositions; a third term would not. Hence the sensors' own noise has the 1/f spectrum with a white floor too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular, toeplitz

from encoders.lead_fields import brain_grid, lead_field
from encoders.sensors import standard_layout

Array = NDArray[np.float64]

BACKGROUND_MOMENT = 6e-9
"""Strength in A m of each background dipole: three at every grid point, about 11 uV and 350 fT in all."""
SENSOR_SHARE = 0.3
"""Power of the sensors' own noise over the mean background power of the same kind of channel."""
N_ALPHA = 12
ALPHA_MOMENT = 40e-9
ALPHA_SEED = 20
CORNER_HZ = 0.5
WHITE_SHARE = 0.15
ALPHA_HZ = (10.0, 1.0)
"""Centre and spread of the alpha band."""
_CHUNK = 256


@dataclass(frozen=True)
class BrainNoise:
    """Gaussian noise, stationary in time, with a known covariance.

    Attributes
    ----------
    background, alpha : ndarray, (n_channels, n_channels) and (n_channels, n_alpha), float64
        Cholesky factor of the background's spatial covariance; field patterns of the alpha sources. SI units.
    background_times, alpha_times : ndarray, (n_times, n_times), float64
        Square roots of the temporal correlations.
    space, time : ndarray, (n_channels, n_channels) and (n_times, n_times), float64
        Together ``space @ data @ time.T`` makes the covariance diagonal, with entries `variance`.
    variance : ndarray, (n_channels, n_times), float64
        At least 1 (background) plus what alpha adds.
    """

    background: Array
    alpha: Array
    background_times: Array
    alpha_times: Array
    space: Array
    time: Array
    variance: Array

    def add_to(self, data: NDArray[np.float32], scale: float, generator: np.random.Generator) -> None:
        """Add noise times ``scale`` to ``data`` (n_epochs, n_channels, n_times) in place."""
        n_channels, n_times = self.variance.shape
        n_alpha = self.alpha.shape[1]
        mixing = (scale * self.background).astype(np.float32)
        alpha_mixing = (scale * self.alpha).astype(np.float32)
        times, alpha_times = self.background_times.T.astype(np.float32), self.alpha_times.T.astype(np.float32)
        for start in range(0, len(data), _CHUNK):
            chunk = data[start : start + _CHUNK]
            white = generator.standard_normal((len(chunk) * n_channels, n_times), dtype=np.float32)
            chunk += mixing @ (white @ times).reshape(len(chunk), n_channels, n_times)
            white = generator.standard_normal((len(chunk) * n_alpha, n_times), dtype=np.float32)
            chunk += alpha_mixing @ (white @ alpha_times).reshape(len(chunk), n_alpha, n_times)

    def whiten(self, data: Array) -> Array:
        """Return ``data`` (..., n_channels, n_times) in coordinates where the noise is white with unit variance."""
        white: Array = self.space @ data @ self.time.T / np.sqrt(self.variance)
        return white

    def whiten_adjoint(self, data: Array) -> Array:
        """Apply the transpose of `whiten`, so that ``sum(a * whiten(b)) == sum(whiten_adjoint(a) * b)``."""
        adjoint: Array = self.space.T @ (data / np.sqrt(self.variance)) @ self.time
        return adjoint

    def covariance(self) -> Array:
        """Return the full covariance, (n_channels * n_times) squared; for tests on small arrays."""
        background = self.background @ self.background.T
        alpha = self.alpha @ self.alpha.T
        pink = np.kron(background, self.background_times @ self.background_times.T)
        return np.asarray(pink + np.kron(alpha, self.alpha_times @ self.alpha_times.T), dtype=np.float64)


def build_noise(background: Array, alpha: Array, n_times: int, sfreq: float) -> BrainNoise:
    """Build the noise of one head and layout.

    Parameters
    ----------
    background : ndarray, (n_channels, n_channels), float64
        Spatial covariance of background and sensor noise, positive definite, SI units squared.
    alpha : ndarray, (n_channels, n_alpha), float64
        Field pattern of each alpha source at one standard deviation of its rhythm.
    n_times : int
        Samples per epoch.
    sfreq : float
        Sampling rate in Hz.

    Returns
    -------
    BrainNoise
    """
    factor: Array = np.linalg.cholesky(background).astype(np.float64)
    pink, rhythm = _correlation(_pink, n_times, sfreq), _correlation(_rhythm, n_times, sfreq)
    pink_factor: Array = np.linalg.cholesky(pink).astype(np.float64)
    patterns = solve_triangular(factor, alpha, lower=True)
    space_values, space_vectors = np.linalg.eigh(patterns @ patterns.T)
    half_white = solve_triangular(pink_factor, rhythm, lower=True)
    time_values, time_vectors = np.linalg.eigh(solve_triangular(pink_factor, half_white.T, lower=True))
    rhythm_values, rhythm_vectors = np.linalg.eigh(rhythm)
    return BrainNoise(
        background=factor,
        alpha=alpha,
        background_times=pink_factor,
        alpha_times=rhythm_vectors * np.sqrt(np.maximum(rhythm_values, 0.0)),
        space=solve_triangular(factor, space_vectors, lower=True, trans="T").T,
        time=solve_triangular(pink_factor, time_vectors, lower=True, trans="T").T,
        variance=1.0 + np.outer(np.maximum(space_values, 0.0), np.maximum(time_values, 0.0)),
    )


@lru_cache(maxsize=8)
def layout_noise(layout_name: str, n_times: int, sfreq: float) -> BrainNoise:
    """Return the noise of a standard layout at scale 1; all people share it.

    Parameters
    ----------
    layout_name : str
        See `encoders.sensors.standard_layout`.
    n_times : int
        Samples per epoch.
    sfreq : float
        Sampling rate in Hz.

    Returns
    -------
    BrainNoise
        Background dipoles fill the brain, alpha dipoles lie at the back.
    """
    layout = standard_layout(layout_name)
    grid = brain_grid()
    field = lead_field(layout, grid)
    flat = BACKGROUND_MOMENT * field.reshape(layout.n_channels, -1)
    background = flat @ flat.T
    kinds = np.asarray(layout.ch_types)
    power = np.diag(background)
    sensors = np.array([power[kinds == kind].mean() for kind in layout.ch_types])
    generator = np.random.default_rng(ALPHA_SEED)
    posterior = np.flatnonzero((grid[:, 1] < -0.4) & (np.linalg.norm(grid, axis=1) > 0.5))
    chosen = generator.choice(posterior, N_ALPHA, replace=False)
    orientations = generator.standard_normal((N_ALPHA, 3))
    orientations /= np.linalg.norm(orientations, axis=1, keepdims=True)
    alpha = ALPHA_MOMENT * np.einsum("cka,ka->ck", field[:, chosen], orientations)
    return build_noise(background + SENSOR_SHARE * np.diag(sensors), alpha, n_times, sfreq)


def _pink(frequencies: Array) -> Array:
    """Return 1/f power above the corner and a white floor that holds `WHITE_SHARE` of the total."""
    power = 1.0 / np.maximum(frequencies, CORNER_HZ)
    floor: Array = power / power.sum() * (1.0 - WHITE_SHARE) + WHITE_SHARE / len(frequencies)
    return floor


def _rhythm(frequencies: Array) -> Array:
    centre, spread = ALPHA_HZ
    power: Array = np.exp(-0.5 * ((frequencies - centre) / spread) ** 2)
    return power


def _correlation(spectrum: Callable[[Array], Array], n_times: int, sfreq: float) -> Array:
    """Return the Toeplitz correlation matrix that belongs to a power spectrum up to ``sfreq / 2``."""
    frequencies = (np.arange(4000) + 0.5) / 4000 * sfreq / 2.0
    power = spectrum(frequencies)
    lags = np.arange(n_times) / sfreq
    correlation = np.cos(2.0 * np.pi * np.outer(lags, frequencies)) @ (power / power.sum())
    matrix: Array = toeplitz(correlation)
    return matrix
