"""Epochs with the spectra of real ones and none of their time course: Fourier phases drawn anew."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, rfft

BLOCK = 256
"""Epochs whose spectra are held at once."""


def phase_randomised(
    data: NDArray[Any], generator: np.random.Generator, *, shared: bool = True
) -> NDArray[np.float32]:
    """Give every frequency of every epoch a random phase.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times)
    generator : numpy.random.Generator
    shared : bool
        Turn all channels of an epoch by the same phases: spectra, cross-spectra and so the channels' covariance stay,
        only time is lost. Otherwise each channel is turned by itself and keeps its spectrum alone.

    Returns
    -------
    ndarray, (n_epochs, n_channels, n_times), float32
        Same mean and variance over time in every channel.

    References
    ----------
    Theiler et al. 1992, "Testing for nonlinearity in time series: the method of surrogate data", Physica D 58:77-94;
    Prichard and Theiler 1994, "Generating surrogate data for time series with several simultaneously measured
    variables", Phys. Rev. Lett. 73:951-954 (shared phases).
    """
    if data.ndim != 3 or data.shape[2] < 3:
        raise ValueError(
            f"phase_randomised got data {data.shape}, expected (n_epochs, n_channels, n_times), n_times of 3 or more"
        )
    n_epochs, n_channels, n_times = data.shape
    changed = np.empty(data.shape, np.float32)
    for first in range(0, n_epochs, BLOCK):
        block = data[first : first + BLOCK]
        mean = block.mean(axis=2, keepdims=True, dtype=np.float64)
        spectrum = rfft((block - mean).astype(np.float32), axis=2)
        angle = generator.random((len(block), 1 if shared else n_channels, spectrum.shape[2]), dtype=np.float32)
        angle *= np.float32(2 * np.pi)
        turn = np.cos(angle) + 1j * np.sin(angle)
        if n_times % 2 == 0:  # the Nyquist coefficient of a real signal is real
            turn[..., -1] = np.sign(turn[..., -1].real)
        changed[first : first + BLOCK] = irfft(spectrum * turn, n=n_times, axis=2) + mean
    return changed
