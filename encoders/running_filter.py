"""A recursive filter that keeps its state from chunk to chunk, and the high-pass that running recordings get."""

import numpy as np
from numpy.typing import NDArray
from scipy import signal

Array = NDArray[np.float64]

HIGH_PASS_ORDER = 1


class RunningFilter:
    """Second-order sections with state.

    It starts as if the first sample had always been there, so an offset makes no transient.

    Parameters
    ----------
    sos : ndarray, (n_sections, 6), float64
        As `scipy.signal.butter` gives them.
    """

    def __init__(self, sos: Array) -> None:
        self.sos = sos
        self._state: Array | None = None

    def push(self, chunk: Array) -> Array:
        """Filter the next samples, ``(n_channels, n)`` float64 to the same; chunks may have any length."""
        if chunk.shape[1] == 0:
            return chunk
        if self._state is None:
            self._state = signal.sosfilt_zi(self.sos)[:, None, :] * chunk[None, :, :1]
        filtered, self._state = signal.sosfilt(self.sos, chunk, axis=1, zi=self._state)
        return np.asarray(filtered, dtype=np.float64)

    def reset(self) -> None:
        """Forget the past."""
        self._state = None


def high_pass_sections(sfreq: float, l_freq: float) -> Array:
    """Design a Butterworth high-pass whose -6 dB point is that of the zero-phase filter of recorded data.

    Parameters
    ----------
    sfreq : float
        Hz.
    l_freq : float
        Lower edge of the zero-phase filter's pass band in Hz.

    Returns
    -------
    ndarray, (1, 6), float64
    """
    half = l_freq - min(max(0.25 * l_freq, 2.0), l_freq) / 2.0
    # At -3 dB where its design says; of order n it is at -6 dB 3 ** (1 / 2n) times further.
    edge = half * 3 ** (0.5 / HIGH_PASS_ORDER)
    return np.asarray(signal.butter(HIGH_PASS_ORDER, edge, "highpass", fs=sfreq, output="sos"), dtype=np.float64)
