"""Cut epochs out of a recording that is still running, as `encoders.cutting` cuts them out of a file.

The high-pass of a file looks seconds ahead, so a recursive one of the same -6 dB point stands in for it; the low-pass
is the file's own, since it waits for half its length only. What goes in decides what comes out, not how it was cut
into chunks. Clipping is looked for before any filter rounds it off.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.resample import band_pass_kernel
from encoders.running_filter import RunningFilter, high_pass_sections
from encoders.signal_faults import check_clipping

Samples = NDArray[np.float32]

LATE_S = 3.0
"""Seconds of signal that are kept for marks that come after their samples."""
CHUNK_S = 2.0
"""Longest chunk in seconds."""
_FLOAT32_IS_INTEGER = 2.0**24


@dataclass(frozen=True)
class LiveChannels:
    """What is known of a running recording.

    Attributes
    ----------
    sfreq : float
        Hz.
    ch_names, ch_types : tuple of str
        Unique names; types are keys of `encoders.modality.CHANNEL_KINDS`.
    positions : ndarray, (n_channels, 3), float32
        Metres in the head frame; NaN where unknown.
    per_unit : ndarray, (n_channels,), float64
        Factor from the values that are pushed to SI units.
    """

    sfreq: float
    ch_names: tuple[str, ...]
    ch_types: tuple[str, ...]
    positions: NDArray[np.float32]
    per_unit: NDArray[np.float64]


@dataclass(frozen=True)
class LiveCut:
    """An epoch whose samples are all there; `epochs` filters them.

    Attributes
    ----------
    number : int
        Of the mark, from 0.
    sample : int
        Of the stimulus, counted from the first one pushed.
    stimulus : str
        As given.
    """

    number: int
    sample: int
    stimulus: str
    raw: Samples = field(repr=False)
    passed: Samples = field(repr=False)
    kernel: NDArray[np.float64] = field(repr=False)
    channels: LiveChannels = field(repr=False)
    tmin: float

    def epochs(self) -> SignalEpochs:
        """Return one epoch in SI units.

        Raises
        ------
        EpochsMismatch
            If it is clipped, or holds values that are not finite.
        """
        check_clipping(self.raw[None])
        low = signal.oaconvolve(self.passed.astype(np.float64), self.kernel[None], mode="valid", axes=1)
        return SignalEpochs(
            low[None].astype(np.float32),
            self.channels.sfreq,
            self.tmin,
            self.channels.ch_names,
            self.channels.ch_types,
            self.channels.positions,
            stimulus=(self.stimulus,),
        )


@dataclass(frozen=True)
class _Mark:
    number: int
    sample: int
    stimulus: str


class LiveCutter:
    """Keep the last seconds of a running recording and cut an epoch at every mark.

    Parameters
    ----------
    channels : LiveChannels
    tmin, tmax : float
        Epoch limits in seconds relative to the onset; tmin below 0.
    l_freq, h_freq : float or None
        Pass band in Hz; None leaves an edge out, and so does a low-pass that the rate makes needless.
    """

    def __init__(
        self, channels: LiveChannels, *, tmin: float, tmax: float, l_freq: float | None, h_freq: float | None
    ) -> None:
        sfreq = channels.sfreq
        self._channels = channels
        self._kernel = np.ones(1) if h_freq is None or h_freq >= sfreq / 2.0 else band_pass_kernel(sfreq, None, h_freq)
        self._half = len(self._kernel) // 2
        self._before, self._after = round(-tmin * sfreq), round(tmax * sfreq)
        self._filter = None if l_freq is None else RunningFilter(high_pass_sections(sfreq, l_freq))
        span = self._before + self._after + 1 + 2 * self._half
        self._keep = span + round((LATE_S + CHUNK_S) * sfreq)
        self._store = np.zeros((2, len(channels.ch_names), 2 * self._keep + round(CHUNK_S * sfreq) + 1), np.float32)
        self._filled = 0
        self._waiting: list[_Mark] = []
        self._n_marks = 0
        self.n_samples = 0
        """Samples pushed so far."""

    @property
    def latency(self) -> float:
        """Seconds from a stimulus until its epoch is complete."""
        return (self._after + self._half) / self._channels.sfreq

    @property
    def n_waiting(self) -> int:
        """Marks whose epochs are not complete."""
        return len(self._waiting)

    def mark(self, sample: int, stimulus: str = "") -> int:
        """Note a stimulus and return the number of its epoch; it is cut by the next `push` that completes it.

        Raises
        ------
        EpochsMismatch
            If its epoch begins before the recording, or its samples are not kept any more. It has its number all the
            same, which is one less than `n_marks`.
        """
        number, self._n_marks = self._n_marks, self._n_marks + 1
        if sample < self._before:
            raise EpochsMismatch(
                f"the stimulus at sample {sample} comes too soon, expected at least {self._before} samples before it; "
                "wait longer after the start"
            )
        if sample - self._before - self._half < self.n_samples - self._filled and self.n_samples > self._filled:
            raise EpochsMismatch(
                f"the stimulus at sample {sample} was marked after {self.n_samples} samples had come, too late; "
                f"send marks within {LATE_S:g} s"
            )
        self._waiting.append(_Mark(number, sample, stimulus))
        return number

    @property
    def n_marks(self) -> int:
        """Marks so far."""
        return self._n_marks

    def push(self, chunk: Samples) -> list[LiveCut]:
        """Take the next samples and return the epochs that are complete now, in the order of their stimuli.

        Parameters
        ----------
        chunk : ndarray, (n_channels, n), float32
            In the units given; at most `CHUNK_S` seconds.

        Raises
        ------
        EpochsMismatch
            If the chunk has other channels, is too long, or holds values that are not finite.
        """
        n_channels, longest = len(self._channels.ch_names), round(CHUNK_S * self._channels.sfreq)
        if chunk.ndim != 2 or len(chunk) != n_channels or chunk.shape[1] > longest:
            raise EpochsMismatch(
                f"a chunk has shape {chunk.shape}, expected {n_channels} channels and at most {longest} samples "
                f"({CHUNK_S:g} s); send all channels, in smaller chunks"
            )
        if not np.isfinite(chunk).all():
            raise EpochsMismatch("a chunk has NaN or infinite values, expected finite ones; leave the channel out")
        self._append(chunk.astype(np.float64) * self._channels.per_unit[:, None])
        due = [one for one in self._waiting if one.sample + self._after + self._half < self.n_samples]
        self._waiting = [one for one in self._waiting if one not in due]
        return [self._cut(one) for one in sorted(due, key=lambda one: (one.sample, one.number))]

    def flush(self) -> list[tuple[int, int, str]]:
        """Return number, sample and stimulus of the marks whose epochs the end of the recording cuts off."""
        waiting, self._waiting = self._waiting, []
        return [(one.number, one.sample, one.stimulus) for one in waiting]

    def _append(self, data: NDArray[np.float64]) -> None:
        n = data.shape[1]
        if self._filled + n > self._store.shape[2]:
            first = self._filled - self._keep
            self._store[:, :, : self._keep] = self._store[:, :, first : self._filled].copy()
            self._filled = self._keep
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is refused with its epoch
            self._store[0, :, self._filled : self._filled + n] = data
            passed = data if self._filter is None else self._filter.push(data)
            self._store[1, :, self._filled : self._filled + n] = passed
        self._filled += n
        self.n_samples += n

    def _cut(self, mark: _Mark) -> LiveCut:
        begin = self.n_samples - self._filled
        first, last = mark.sample - self._before - begin, mark.sample + self._after + 1 - begin
        passed = self._store[1, :, max(first - self._half, 0) : last + self._half]
        missing = max(self._half - first, 0)
        if missing:  # at the very beginning, as if the first sample had always been there
            passed = np.concatenate([np.repeat(passed[:, :1], missing, axis=1), passed], axis=1)
        return LiveCut(
            number=mark.number,
            sample=mark.sample,
            stimulus=mark.stimulus,
            raw=self._store[0, :, first:last].copy(),
            passed=passed.copy(),
            kernel=self._kernel,
            channels=self._channels,
            tmin=-self._before / self._channels.sfreq,
        )


class TriggerChannel:
    """Find stimuli in a channel that is 0 between them and holds a code while one lasts."""

    def __init__(self) -> None:
        self._last = 0

    def push(self, values: Sequence[float] | Samples) -> list[tuple[int, int]]:
        """Return (index in `values`, code) of every sample at which a new code appears; state is kept.

        Raises
        ------
        EpochsMismatch
            If a value is no whole number.
        """
        codes = np.asarray(values, dtype=np.float64)
        if not (np.isfinite(codes).all() and np.abs(codes).max(initial=0.0) < _FLOAT32_IS_INTEGER):
            raise EpochsMismatch("the marker channel has values that are no whole numbers; name another channel")
        whole = np.rint(codes).astype(np.int64)
        if np.abs(whole - codes).max(initial=0.0) > 1e-3:
            raise EpochsMismatch("the marker channel has values that are no whole numbers; name another channel")
        before = np.concatenate([[self._last], whole[:-1]]) if len(whole) else whole
        if len(whole):
            self._last = int(whole[-1])
        return [(int(index), int(whole[index])) for index in np.flatnonzero((whole != before) & (whole != 0))]
