"""Time of continuous recordings and streams: sample clocks, gaps, windows, and a table for a time-series database.

Time is counted in samples of one clock, never in wall-clock time: two clocks drift, time zones change, and a picture's
onset is known best where it was recorded, in the signal's own samples. (R52)
"""

from dataclasses import dataclass

import mne
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.epochs import SignalEpochs

Float = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SampleClock:
    """A clock that ticks once a sample.

    Attributes
    ----------
    sfreq : float
        Hz.
    start : float
        Time of sample 0 in seconds, on whatever axis the events are given.
    """

    sfreq: float
    start: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.sfreq) and self.sfreq > 0 and np.isfinite(self.start)):
            raise ValueError(
                f"sfreq {self.sfreq} and start {self.start} must be finite, sfreq above 0; check the header"
            )

    def sample(self, times: Float) -> Ints:
        """Return the nearest sample of each time in seconds; the error is at most half a sample."""
        return np.rint((np.asarray(times, np.float64) - self.start) * self.sfreq).astype(np.int64)

    def time(self, samples: Ints) -> Float:
        """Return the time in seconds of each sample."""
        return self.start + np.asarray(samples, np.float64) / self.sfreq


@dataclass(frozen=True)
class Gap:
    """Samples that are missing: ``n_missing`` of them in front of row ``row`` of what was received."""

    row: int
    n_missing: int


def find_gaps(timestamps: Float, sfreq: float) -> tuple[Gap, ...]:
    """Find where a stream lost samples.

    Parameters
    ----------
    timestamps : ndarray, (n_times,), float64
        Seconds; jitter of less than half a sample is no gap.
    sfreq : float
        Nominal rate in Hz.

    Returns
    -------
    tuple of Gap

    Raises
    ------
    ValueError
        If timestamps are not finite or go backwards.
    """
    times = np.asarray(timestamps, np.float64)
    if times.ndim != 1 or not np.isfinite(times).all():
        raise ValueError(f"timestamps {times.shape} must be finite and one per sample; repair the stream's clock")
    steps = np.diff(times)
    back = np.flatnonzero(steps <= 0)
    if len(back):
        raise ValueError(
            f"timestamps go back or stand still at sample {back[0] + 1} ({times[back[0]]:.6f} to "
            f"{times[back[0] + 1]:.6f} s); sort the chunks or drop repeated ones"
        )
    # against the grid that the samples so far define: jitter of one sample must not turn into a gap of the next
    position = np.rint((times - times[0]) * sfreq).astype(np.int64)
    missing = np.diff(position) - 1
    return tuple(Gap(int(row) + 1, int(missing[row])) for row in np.flatnonzero(missing > 0))


def fill_gaps(data: Float, gaps: tuple[Gap, ...], longest: int) -> tuple[Float, NDArray[np.bool_]]:
    """Put missing samples back: a straight line over short gaps, NaN over longer ones.

    Parameters
    ----------
    data : ndarray, (n_channels, n_times), float64
        What was received.
    gaps : tuple of Gap
        From `find_gaps`.
    longest : int
        Samples; a line over more would be an invention, so those stay NaN and readers refuse epochs that touch them.

    Returns
    -------
    filled : ndarray, (n_channels, n_times + missing), float64
    received : ndarray, (n_times + missing,), bool
        False for samples that were not measured.
    """
    n_times = data.shape[1]
    shift = np.zeros(n_times, np.int64)
    for gap in gaps:
        shift[gap.row :] += gap.n_missing
    place = np.arange(n_times) + shift
    filled = np.full((len(data), n_times + sum(gap.n_missing for gap in gaps)), np.nan)
    received = np.zeros(filled.shape[1], bool)
    filled[:, place], received[place] = data, True
    for gap in gaps:
        if gap.n_missing <= longest:
            left, right = place[gap.row - 1], place[gap.row]
            weight = np.arange(1, gap.n_missing + 1) / (gap.n_missing + 1)
            first, last = filled[:, left, None], filled[:, right, None]
            filled[:, left + 1 : right] = (1 - weight) * first + weight * last
    return filled, received


def resample(data: Float, sfreq: float, out_sfreq: float) -> Float:
    """Resample continuous data (..., n_times) with MNE's Fourier method; content above the new Nyquist is removed."""
    resampled: Float = mne.filter.resample(np.asarray(data, np.float64), up=out_sfreq, down=sfreq, verbose="error")
    return resampled


def rolling_windows(data: Float, n_times: int, step: int) -> Float:
    """View continuous data as overlapping windows.

    Parameters
    ----------
    data : ndarray, (n_channels, n_samples)
    n_times, step : int
        Samples of a window, and from one to the next.

    Returns
    -------
    ndarray, (n_windows, n_channels, n_times)
        A read-only view.

    Raises
    ------
    ValueError
        If no window fits.
    """
    if not (0 < n_times <= data.shape[1] and step > 0):
        raise ValueError(
            f"windows of {n_times} samples every {step} do not fit {data.shape[1]} samples; use 1 to {data.shape[1]} "
            "samples and a positive step"
        )
    view = np.lib.stride_tricks.sliding_window_view(data, n_times, axis=1)[:, ::step]
    return view.transpose(1, 0, 2)


def long_table(epochs: SignalEpochs) -> pa.Table:
    """Write epochs as one row per epoch, sample and channel, as SQL and time-series databases take them.

    Returns
    -------
    pyarrow.Table
        ``epoch`` (int32), ``stimulus`` (text), ``time_us`` (int64, microseconds from the onset), ``channel`` (text) and
        ``value`` (float32, volt, tesla or tesla per metre).
    """
    n_epochs, n_channels, n_times = epochs.data.shape
    time_us = np.rint(1e6 * np.asarray(epochs.times)).astype(np.int64)
    stimulus = epochs.stimulus or ("",) * n_epochs
    channel = pa.DictionaryArray.from_arrays(
        np.tile(np.repeat(np.arange(n_channels, dtype=np.int32), n_times), n_epochs), list(epochs.ch_names)
    )
    per_epoch = n_channels * n_times
    columns = {
        "epoch": np.repeat(np.arange(n_epochs, dtype=np.int32), per_epoch),
        "stimulus": pa.DictionaryArray.from_arrays(np.repeat(np.arange(n_epochs, dtype=np.int32), per_epoch), stimulus),
        "time_us": np.tile(time_us, n_epochs * n_channels),
        "channel": channel,
        "value": np.asarray(epochs.data, np.float32).reshape(-1),
    }
    return pa.table(columns)
