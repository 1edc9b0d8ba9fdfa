"""Clocks, gaps and windows of continuous signals, against scipy, numpy and a database."""

import sqlite3

import numpy as np
import pytest
from scipy.interpolate import interp1d

from encoders.sample_clock import Gap, SampleClock, fill_gaps, find_gaps, long_table, resample, rolling_windows
from tests.toy_brain import ToyBrain

SFREQ = 250.0


def test_an_event_lands_within_half_a_sample() -> None:
    clock = SampleClock(SFREQ, start=-12.34)
    times = np.random.default_rng(0).uniform(0, 3600, 10_000)
    assert np.abs(clock.time(clock.sample(times)) - times).max() <= 0.5 / SFREQ + 1e-9
    assert np.array_equal(clock.sample(clock.time(np.arange(1000))), np.arange(1000))
    with pytest.raises(ValueError, match="sfreq above 0"):
        SampleClock(0.0)


def test_gaps_are_found_exactly_under_jitter_and_nowhere_else() -> None:
    generator = np.random.default_rng(1)
    kept = np.ones(5000, bool)
    expected = [(100, 1), (1000, 7), (4000, 250)]
    for first, n in expected:
        kept[first : first + n] = False
    times = 17.0 + np.flatnonzero(kept) / SFREQ
    times[1:] += generator.uniform(-0.4, 0.4, len(times) - 1) / SFREQ
    found = find_gaps(times, SFREQ)
    lost = np.cumsum([0, *(n for _, n in expected)])
    assert found == tuple(Gap(first - int(lost[i]), n) for i, (first, n) in enumerate(expected))
    assert find_gaps(np.arange(1000) / SFREQ, SFREQ) == ()
    with pytest.raises(ValueError, match="go back or stand still at sample 3"):
        find_gaps(np.array([0, 1, 2, 2, 3]) / SFREQ, SFREQ)


def test_short_gaps_get_the_line_of_scipy_and_long_ones_stay_unknown() -> None:
    data = np.random.default_rng(2).standard_normal((3, 20))
    gaps = (Gap(5, 2), Gap(12, 6))
    filled, received = fill_gaps(data, gaps, longest=3)
    assert filled.shape == (3, 28) and received.sum() == 20 and np.array_equal(filled[:, received], data)
    place = np.flatnonzero(received)
    line = interp1d(place, data, axis=1)(np.arange(28))
    assert np.allclose(filled[:, 5:7], line[:, 5:7]) and np.isnan(filled[:, 14:20]).all()
    assert not np.isnan(filled[:, np.r_[0:14, 20:28]]).any()


def test_resampling_there_and_back_keeps_a_band_limited_signal() -> None:
    times = np.arange(2000) / 1000.0
    signal = sum(np.sin(2 * np.pi * f * times + f) for f in (3.0, 11.0, 37.0))[None]
    signal = signal * np.hanning(2000)
    again = resample(resample(signal, 1000.0, 250.0), 250.0, 1000.0)
    assert np.abs(again - signal).max() < 1e-3 * np.abs(signal).max()


def test_windows_are_views_in_order() -> None:
    data = np.arange(24.0).reshape(2, 12)
    windows = rolling_windows(data, 5, 3)
    assert windows.shape == (3, 2, 5) and np.shares_memory(windows, data)
    for number in range(3):
        assert np.array_equal(windows[number], data[:, 3 * number : 3 * number + 5])
    with pytest.raises(ValueError, match="do not fit 12 samples"):
        rolling_windows(data, 13, 1)


def test_a_database_gives_back_what_the_table_says() -> None:
    embeds = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    epochs = ToyBrain().record(embeds, modality="eeg", subject=0, stimulus=("a.jpg", "b.jpg"))
    table = long_table(epochs)
    assert table.num_rows == epochs.data.size
    database = sqlite3.connect(":memory:")
    database.execute("create table signal (epoch, stimulus, time_us, channel, value)")
    database.executemany("insert into signal values (?, ?, ?, ?, ?)", zip(*table.to_pydict().values(), strict=True))
    found = database.execute(
        "select time_us, value from signal where stimulus = 'b.jpg' and channel = ? order by time_us",
        (epochs.ch_names[4],),
    ).fetchall()
    assert np.allclose([one[1] for one in found], epochs.data[1, 4])
    assert [one[0] for one in found] == [round(1e6 * one) for one in epochs.times]
