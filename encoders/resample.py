"""Time-axis operators: the band-pass of continuous data; low-pass, resampling and cropping of epochs as one matrix.

Epochs are far shorter than a 0.1 Hz high-pass filter, so that filter exists for continuous data only.
For epochs, a continuous-time windowed sinc is evaluated exactly at the wanted sample times, so a
latency is not rounded to anybody's sampling grid.
"""

from functools import lru_cache

import mne
import numpy as np
from numpy.typing import NDArray

HAMMING_WIDTH = 3.3
# Matrices of more values are made anew each time: recordings of ever other lengths and rates would fill the memory.
_MAX_KEPT = 1 << 20
FIR = {"method": "fir", "phase": "zero", "fir_window": "hamming", "fir_design": "firwin"}


def band_pass(
    data: NDArray[np.float64], sfreq: float, l_freq: float | None, h_freq: float | None
) -> NDArray[np.float64]:
    """Band-pass continuous data with MNE's zero-phase Hamming FIR.

    Parameters
    ----------
    data : ndarray, (..., n_times), float64
        Continuous signal, any unit.
    sfreq : float
        Hz.
    l_freq, h_freq : float or None
        Edges of the pass band in Hz. A 0.1 Hz high-pass is 33 s long: shorter runs ring.

    Returns
    -------
    ndarray, same shape, float64
    """
    filtered: NDArray[np.float64] = mne.filter.filter_data(data, sfreq, l_freq, h_freq, **FIR, verbose="error")
    return filtered


def band_pass_kernel(sfreq: float, l_freq: float | None, h_freq: float | None) -> NDArray[np.float64]:
    """Return the impulse response that `band_pass` applies."""
    kernel: NDArray[np.float64] = mne.filter.create_filter(None, sfreq, l_freq, h_freq, **FIR, verbose="error")
    return kernel


def transition_width(h_freq: float, sfreq: float) -> float:
    """Return the width in Hz of the low-pass transition above ``h_freq``: MNE's rule, ending below Nyquist."""
    return min(max(0.25 * h_freq, 2.0), sfreq / 2.0 - h_freq)


def window_reach(sfreq: float, out_sfreq: float, h_freq: float) -> int:
    """Return how many samples away from a wanted time `window_matrix` has weights that are not zero, at most."""
    return int(np.ceil(HAMMING_WIDTH / transition_width(h_freq, out_sfreq) / 2.0 * sfreq)) + 1


def window_matrix(
    sfreq: float, tmin: float, n_times: int, out_sfreq: float, out_tmin: float, out_n_times: int, h_freq: float
) -> NDArray[np.float32]:
    """Return the matrix that low-passes, resamples and crops epochs: ``data @ matrix``.

    Parameters
    ----------
    sfreq, tmin, n_times : float, float, int
        Time axis of the recording.
    out_sfreq, out_tmin, out_n_times : float, float, int
        Wanted time axis; must lie inside the recording's.
    h_freq : float
        Upper edge of the pass band in Hz, lowered where the recording's own rate demands it.

    Returns
    -------
    ndarray, (n_times, out_n_times), float32
        Columns sum to one. Ends of the epoch are continued by odd reflection.
    """
    build = _kept_matrix if n_times * out_n_times <= _MAX_KEPT else _kept_matrix.__wrapped__
    return build(sfreq, tmin, n_times, out_sfreq, out_tmin, out_n_times, h_freq)


@lru_cache(maxsize=16)
def _kept_matrix(
    sfreq: float, tmin: float, n_times: int, out_sfreq: float, out_tmin: float, out_n_times: int, h_freq: float
) -> NDArray[np.float32]:
    width = transition_width(h_freq, out_sfreq)
    cutoff = min(h_freq + width / 2.0, (sfreq - width) / 2.0)
    half = HAMMING_WIDTH / width / 2.0
    n_pad = window_reach(sfreq, out_sfreq, h_freq)
    samples = np.arange(-n_pad, n_times + n_pad)
    lag = (out_tmin + np.arange(out_n_times) / out_sfreq)[None, :] - (tmin + samples / sfreq)[:, None]
    taper = np.where(np.abs(lag) <= half, 0.54 + 0.46 * np.cos(np.pi * lag / half), 0.0)
    kernel = np.sinc(2.0 * cutoff * lag) * taper
    kernel /= kernel.sum(axis=0)
    matrix = kernel[n_pad : n_pad + n_times].copy()
    for k in range(1, n_pad + 1):
        mirror = min(k, n_times - 1)
        matrix[0] += 2.0 * kernel[n_pad - k]
        matrix[mirror] -= kernel[n_pad - k]
        matrix[-1] += 2.0 * kernel[n_pad + n_times - 1 + k]
        matrix[-1 - mirror] -= kernel[n_pad + n_times - 1 + k]
    return matrix.astype(np.float32)
