"""Preprocessing of a running recording: recursive filters with state, then the statistics of a fitted `Preprocessor`.

Training data is filtered by symmetric kernels (`encoders.resample`), which look ahead: 16 s for a 0.1 Hz high-pass.
On-line there are Butterworth filters of the same -6 dB points instead, and a wait for the low-pass's delay. What
that costs is measured by `filter_mismatch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from encoders.epochs import SignalEpochs
from encoders.preprocess import Preprocessor
from encoders.resample import band_pass, transition_width
from encoders.running_filter import RunningFilter, high_pass_sections
from encoders.sensors import match_channels

Array = NDArray[np.float64]

LOW_PASS_ORDER = 4


class CausalBandPass(RunningFilter):
    """Butterworth high-pass and low-pass that keep their state from chunk to chunk.

    Parameters
    ----------
    sfreq : float
        Hz.
    l_freq : float or None
        Lower edge of the zero-phase filter of the training data in Hz; the -6 dB points agree. None: no high-pass.
    h_freq : float
        Upper edge, likewise.
    out_sfreq : float
        Rate at which the networks see the signal, in Hz; it limits the transition band.

    Raises
    ------
    ValueError
        If the recording's rate does not allow the upper edge.
    """

    def __init__(self, sfreq: float, l_freq: float | None, h_freq: float, out_sfreq: float) -> None:
        stop = h_freq + transition_width(h_freq, out_sfreq) / 2.0
        if stop >= sfreq / 2.0:
            raise ValueError(
                f"a low-pass at {stop:g} Hz is impossible at a sampling rate of {sfreq:g} Hz, expected more than "
                f"{2 * stop:g} Hz; record faster"
            )
        # A Butterworth filter is at -3 dB where its design says; of order n it is at -6 dB 3 ** (1 / 2n) times further.
        sections = [signal.butter(LOW_PASS_ORDER, stop / 3 ** (0.5 / LOW_PASS_ORDER), fs=sfreq, output="sos")]
        if l_freq is not None:
            sections.append(high_pass_sections(sfreq, l_freq))
        super().__init__(np.concatenate(sections))
        self.sfreq = sfreq
        # the low-pass alone: the high-pass has a large delay, but only where it lets nothing through
        slow = np.array([0.25 * h_freq])
        response = signal.freqz_sos(sections[0], slow, fs=sfreq)[1]
        self.delay = float(-np.angle(response[0]) / (2 * np.pi * slow[0]))
        """Delay in s of the middle of the pass band."""


class StreamingPreprocessor:
    """Turn the samples of an amplifier into the window that a network reads, while they arrive.

    Filters run all the time. `mark_onset` says that the next sample pushed is the first of a stimulus; the window that
    follows is sampled from there, referenced, baseline-corrected by the samples before the onset, scaled and whitened
    with the training statistics, and clamped. The one step of `Preprocessor` that is missing is the gain for recordings
    far off the training spread, since it is estimated from whole epochs.

    Parameters
    ----------
    preprocessor : Preprocessor
        Fitted.
    template : SignalEpochs
        Any epochs of the same amplifier: its sampling rate, names, types and positions are used, its data is not.
    l_freq : float or None
        High-pass of the continuous training data in Hz; None if it had none.
    delay : float, optional
        How long an output waits for later samples, in s; default: the low-pass's delay, so that latencies agree with
        those of training. 0 answers at once, with latencies that much later.

    Raises
    ------
    ValueError
        If the preprocessor is not fitted, the rate is not a multiple of the model's, or the baseline ends after the
        onset.
    EpochsMismatch
        If the channels do not fit: see `match_channels`.
    """

    def __init__(
        self,
        preprocessor: Preprocessor,
        template: SignalEpochs,
        l_freq: float | None = None,
        delay: float | None = None,
    ) -> None:
        config = preprocessor.config
        if not preprocessor.fitted:
            raise ValueError("this Preprocessor has no statistics; call fit with training epochs, or from_state")
        if config.baseline is not None and config.baseline[1] > 0.0:
            raise ValueError(
                f"baseline {config.baseline} s ends after the onset, expected an end of at most 0 for use while a "
                "recording runs; preprocess and train with an earlier baseline"
            )
        self.factor = round(template.sfreq / config.sfreq)
        if abs(self.factor * config.sfreq - template.sfreq) > 1e-6:
            raise ValueError(
                f"the amplifier runs at {template.sfreq:g} Hz, expected a multiple of the model's {config.sfreq:g} Hz; "
                "set it to one"
            )
        self.config = config
        self._arrays = {name: array.astype(np.float64) for name, array in preprocessor.state()[1].items()}
        self._mixing = _sensor_matrix(preprocessor, template)
        self.filter = CausalBandPass(template.sfreq, l_freq, config.h_freq, config.sfreq)
        self._wait = round((self.filter.delay if delay is None else delay) * template.sfreq)
        first = min(config.tmin, config.baseline[0] if config.baseline is not None else config.tmin)
        self._n_before = max(round(-first * template.sfreq) - self._wait, 0)
        self._history: Array = np.zeros((len(self._mixing), 0))
        self._in_window = False
        self._n_out = 0
        self._offset: Array | None = None

    def mark_onset(self) -> None:
        """Say that the next sample pushed is the first of a stimulus.

        Raises
        ------
        ValueError
            If too little was recorded before it.
        """
        if self._history.shape[1] < self._n_before:
            raise ValueError(
                f"the stimulus comes after {self._history.shape[1]} samples, expected at least {self._n_before} before "
                "it for baseline and window; wait longer after the start"
            )
        self._history = self._history[:, self._history.shape[1] - self._n_before :]
        self._in_window, self._n_out, self._offset = True, 0, None

    def push(self, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next samples of the amplifier.

        Parameters
        ----------
        chunk : ndarray, (n_channels, n), float32 or float64
            SI units, the template's channels in its order.

        Returns
        -------
        ndarray, (n_layout_channels, n_new), float32
            The samples of the window that are complete now, unitless; none outside a window.

        Raises
        ------
        ValueError
            If the chunk has other channels, or values that are not finite.
        """
        if chunk.ndim != 2 or chunk.shape[0] != self._mixing.shape[1]:
            raise ValueError(
                f"chunk has shape {chunk.shape}, expected ({self._mixing.shape[1]}, n_samples); push all channels of "
                "the template, in its order"
            )
        if not np.isfinite(chunk).all():
            raise ValueError(
                "chunk has NaN or infinite values, expected finite ones; leave the channel out and restart"
            )
        filtered = self.filter.push(self._mixing @ chunk.astype(np.float64))
        self._history = np.concatenate([self._history, filtered], axis=1)
        if not self._in_window:
            self._history = self._history[:, max(self._history.shape[1] - self._n_before, 0) :]
            return np.zeros((len(self._mixing), 0), dtype=np.float32)
        return self._due()

    def _due(self) -> NDArray[np.float32]:
        """Return the samples of the window that can be computed now and have not been returned."""
        config = self.config
        if config.baseline is not None and self._offset is None:
            n = round((config.baseline[1] - config.baseline[0]) * config.sfreq) + 1
            columns = self._columns(config.baseline[0], 0, n)
            if columns[-1] >= self._history.shape[1]:
                return np.zeros((len(self._mixing), 0), dtype=np.float32)
            self._offset = self._history[:, columns].mean(axis=1, keepdims=True)
        columns = self._columns(config.tmin, self._n_out, config.n_times - self._n_out)
        columns = columns[columns < self._history.shape[1]]
        self._n_out += len(columns)
        data = self._history[:, columns] - (0.0 if self._offset is None else self._offset)
        if self._n_out == config.n_times:
            self._in_window = False
        return self._unitless(data)

    def _columns(self, start: float, skip: int, n: int) -> NDArray[np.int64]:
        """Columns of the history that stand for ``n`` samples of the model's grid from ``start`` s plus ``skip`` on."""
        first = self._n_before + self._wait + round(start * self.filter.sfreq) + skip * self.factor
        return first + self.factor * np.arange(n)

    def _unitless(self, data: Array) -> NDArray[np.float32]:
        scaled = (data - self._arrays["centre"][:, None]) / self._arrays["scale"][:, None]
        if "whitener" in self._arrays:
            scaled = self._arrays["whitener"] @ scaled
        return np.clip(scaled, -self.config.clamp, self.config.clamp).astype(np.float32)


def _sensor_matrix(preprocessor: Preprocessor, template: SignalEpochs) -> Array:
    """Return matching, interpolation and reference of channels as one matrix, (n_layout_channels, n_channels)."""
    impulses = SignalEpochs(
        np.eye(template.n_channels, dtype=np.float32)[None], template.sfreq, 0.0, template.ch_names, template.ch_types,
        template.positions,
    )  # fmt: skip
    match = match_channels(impulses, preprocessor.layout, min_fraction=preprocessor.config.min_fraction)
    matrix = match.epochs.data[0].astype(np.float64)
    if preprocessor.config.reference == "average":
        matrix -= matrix.mean(axis=0, keepdims=True)
    return np.asarray(matrix, dtype=np.float64)


@dataclass(frozen=True)
class Mismatch:
    """How one response differs from another of the same channels and times.

    Attributes
    ----------
    correlation
        Pearson's, over all channels and times.
    relative_rms
        Root mean square of the difference over that of the reference.
    lag_ms
        How much later the other one is, at the maximum of the cross-correlation summed over channels.
    """

    correlation: float
    relative_rms: float
    lag_ms: float


def compare_responses(reference: Array, other: Array, sfreq: float, max_lag: float = 0.1) -> Mismatch:
    """Compare two evoked responses, both (n_channels, n_times), at ``sfreq`` Hz; lags of up to ``max_lag`` s count.

    Raises
    ------
    ValueError
        If the shapes differ, or the lag would be longer than the response.
    """
    n_lags, n_times = round(max_lag * sfreq), reference.shape[1]
    if reference.shape != other.shape or n_lags >= n_times:
        raise ValueError(
            f"responses have shapes {reference.shape} and {other.shape}, expected equal ones longer than {n_lags} "
            "samples; compare the same channels and window"
        )
    lags = np.arange(-n_lags, n_lags + 1)
    one, two = (response - response.mean() for response in (reference, other))
    scores = []
    for lag in lags:
        early, late = one[:, max(-lag, 0) : n_times - max(lag, 0)], two[:, max(lag, 0) : n_times - max(-lag, 0)]
        scores.append(float((early * late).sum() / np.sqrt((early**2).sum() * (late**2).sum())))
    peak = int(np.argmax(scores))
    shift = 0.0
    if 0 < peak < len(lags) - 1:
        before, at, after = scores[peak - 1 : peak + 2]
        shift = 0.5 * (before - after) / (before - 2 * at + after)
    return Mismatch(
        float(np.corrcoef(reference.ravel(), other.ravel())[0, 1]),
        float(np.sqrt(((other - reference) ** 2).mean() / (reference**2).mean())),
        1000.0 * (float(lags[peak]) + shift) / sfreq,
    )


def filter_mismatch(
    preprocessor: Preprocessor,
    recording: Array,
    template: SignalEpochs,
    onsets: Sequence[int],
    *,
    l_freq: float | None,
    delay: float | None = None,
) -> Mismatch:
    """Compare the evoked response of one recording after on-line and after training preprocessing.

    Parameters
    ----------
    preprocessor : Preprocessor
        Fitted.
    recording : ndarray, (n_channels, n_times), float64
        Continuous, SI units, in the template's channels and rate.
    template : SignalEpochs
        As for `StreamingPreprocessor`.
    onsets : sequence of int
        Samples at which stimuli start.
    l_freq : float or None
        High-pass in Hz of both, zero-phase in training.
    delay : float, optional
        As for `StreamingPreprocessor`.

    Returns
    -------
    Mismatch
        Of the averages over all onsets in unitless values, before any network.
    """
    config, sfreq = preprocessor.config, template.sfreq
    stream = StreamingPreprocessor(preprocessor, template, l_freq, delay)
    windows, done = [], 0
    length = round((config.tmax + 0.1) * sfreq)
    for onset in onsets:
        stream.push(recording[:, done:onset].astype(np.float32))
        stream.mark_onset()
        windows.append(stream.push(recording[:, onset : onset + length].astype(np.float32)))
        done = onset + length
    filtered = recording if l_freq is None else band_pass(recording, sfreq, l_freq, None)
    before = round(0.2 * sfreq)
    cut = np.stack([filtered[:, onset - before : onset + length] for onset in onsets]).astype(np.float32)
    epochs = SignalEpochs(cut, sfreq, -before / sfreq, template.ch_names, template.ch_types, template.positions)
    reference = preprocessor(epochs).data.mean(axis=0, dtype=np.float64)
    return compare_responses(reference, np.stack(windows).mean(axis=0, dtype=np.float64), config.sfreq)
