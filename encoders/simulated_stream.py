"""A continuous recording of a simulated person, to try what runs on-line: 1/f noise and repeated responses."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from encoders.brain_noise import CORNER_HZ
from encoders.epochs import SignalEpochs
from encoders.simulate import SFREQ, TMIN, BrainSimulator, SimulationConfig


@dataclass(frozen=True)
class SimulatedStream:
    """Continuous signal.

    Attributes
    ----------
    data : ndarray, (n_channels, n_times), float64
        SI units.
    onsets : tuple of int
        Samples at which the average image appears.
    template : SignalEpochs
        The epochs around the onsets, from -0.2 to 0.8 s: sampling rate, names and places of the sensors.
    """

    data: NDArray[np.float64]
    onsets: tuple[int, ...]
    template: SignalEpochs


def simulate_stream(
    modality: str, *, n_onsets: int, sfreq: float = 1000.0, noise_scale: float = 1.0, seed: int = 0
) -> SimulatedStream:
    """Record one person who sees the average image again and again, every 1.1 s.

    Parameters
    ----------
    modality : str
        A key of `encoders.simulate.DEFAULT_LAYOUTS`.
    n_onsets : int
    sfreq : float
        A multiple of 100 Hz.
    noise_scale : float
        Multiple of the background noise of `encoders.simulate`; its 1/f spectrum is flat below 0.5 Hz.
    seed : int
        Decides the noise.

    Returns
    -------
    SimulatedStream
        Begins 2 s before the first onset and ends 2 s after the last.

    Raises
    ------
    ValueError
        If the rate is not a multiple of 100 Hz.
    """
    factor = round(sfreq / SFREQ)
    if factor < 1 or factor * SFREQ != sfreq:
        raise ValueError(f"sfreq is {sfreq:g} Hz, expected a multiple of {SFREQ:g} Hz; use 1000")
    head = BrainSimulator(SimulationConfig(n_subjects=1), embed_dim=32).head(modality, "", 0)
    n_times = round((2.0 + 1.1 * n_onsets + 2.0) * sfreq)
    white = np.random.default_rng(seed).standard_normal((len(head.evoked), n_times))
    frequencies = np.fft.rfftfreq(n_times, 1.0 / sfreq)
    gain = 1.0 / np.sqrt(np.maximum(frequencies, CORNER_HZ))
    pink = np.fft.irfft(np.fft.rfft(white) * gain, n_times)
    data = noise_scale * head.noise.background @ (pink / pink.std())
    response = signal.resample_poly(head.evoked, factor, 1, axis=1)
    onsets = tuple(round((2.0 + 1.1 * index) * sfreq) for index in range(n_onsets))
    before, after, lead = round(0.2 * sfreq), round(0.8 * sfreq), round(-TMIN * sfreq)
    for onset in onsets:
        data[:, onset - lead : onset - lead + response.shape[1]] += response
    epochs = np.stack([data[:, onset - before : onset + after] for onset in onsets])
    layout = head.layout
    template = SignalEpochs(
        epochs.astype(np.float32), sfreq, -before / sfreq, layout.ch_names, layout.ch_types, layout.positions
    )
    return SimulatedStream(data, onsets, template)
