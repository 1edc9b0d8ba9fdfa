"""The preprocessing of THINGS-MEG: sensors, time axis, order of steps, z-scores."""

import mne
import numpy as np
import pytest

from encoders.datasets.standard_unit import standard_unit
from encoders.things_meg import CLAMP, baseline_z_score, continuous_things_meg, cut_things_meg, things_meg

NAMES = ["MLC11-1609", "MRO11-1609", "MZP01-1609"]


def raw(data: np.ndarray, sfreq: float = 1200.0) -> mne.io.RawArray:
    return mne.io.RawArray(data, mne.create_info(NAMES, sfreq, "misc"), verbose="error")


def events(*samples: int) -> np.ndarray:
    return np.column_stack([samples, np.zeros(len(samples), int), np.arange(len(samples)) + 5])


def test_sensors_times_and_repeatability() -> None:
    noise = 1e-13 * np.random.default_rng(0).standard_normal((3, 60_000))
    epochs = things_meg(raw(noise), events(3000, 20_001, 58_000))
    assert epochs.data.shape == (3, 2, 281) and epochs.ch_names == ("MLC11", "MZP01")
    assert (epochs.sfreq, epochs.tmin) == (200.0, pytest.approx(-0.1)) and epochs.times[-1] == pytest.approx(1.3)
    assert epochs.stimulus == ("5", "6", "7") and set(epochs.ch_types) == {"mag"}
    np.testing.assert_array_equal(things_meg(raw(noise), events(3000, 20_001, 58_000)).data, epochs.data)
    continuous = continuous_things_meg(raw(noise))
    np.testing.assert_array_equal(cut_things_meg(continuous, events(20_001)).data[0], epochs.data[1])


def test_before_the_onset_mean_is_0_and_spread_1() -> None:
    data = 3.0 + 7.0 * np.random.default_rng(0).standard_normal((4, 3, 1681))
    times = np.linspace(-0.1, 1.3, 1681)
    before = baseline_z_score(data, times, NAMES)[:, :, :121]
    assert np.abs(before.mean(axis=2)).max() < 1e-12 and np.abs(before.std(axis=2) - 1.0).max() < 1e-12
    assert times[120] == pytest.approx(0.0, abs=1e-12)
    expected = mne.baseline.rescale(data, times, (None, 1e-9), "zscore", copy=True, verbose="error")
    np.testing.assert_allclose(baseline_z_score(data, times, NAMES), expected, rtol=1e-9)


def test_z_scores_of_the_result_are_written_in_standard_units() -> None:
    noise = 1e-13 * np.random.default_rng(1).standard_normal((3, 60_000))
    epochs = things_meg(raw(noise), events(*range(2000, 50_000, 1700)))
    before = epochs.data[:, :, :21] / standard_unit("mag")
    assert np.abs(before.mean(axis=2)).mean() < 0.05
    assert before.std(axis=2).mean() == pytest.approx(1.0, abs=0.02)


def test_what_is_above_100_hz_does_not_alias() -> None:
    times = np.arange(60_000) / 1200.0
    noise = 1e-14 * np.random.default_rng(1).standard_normal((3, 60_000))
    quiet = things_meg(raw(noise), events(3000, 20_000)).data
    loud = things_meg(raw(noise + 1e-12 * np.sin(2 * np.pi * 190.0 * times)), events(3000, 20_000)).data
    assert np.abs(loud - quiet).max() < 0.05 * standard_unit("mag")


def test_sensors_that_are_quiet_before_the_onset_are_clamped_or_named() -> None:
    noise = 1e-13 * np.random.default_rng(1).standard_normal((3, 60_000))
    noise[2, 20_001:] += 1e-8
    assert np.abs(things_meg(raw(noise), events(20_000)).data).max() == pytest.approx(CLAMP * standard_unit("mag"))
    data = np.ones((1, 3, 20))
    with pytest.raises(ValueError, match="sensor MLC11-1609 is constant before event 0"):
        baseline_z_score(data, np.arange(20.0) - 10, NAMES)


def test_other_recordings_are_refused() -> None:
    eeg = mne.io.RawArray(np.zeros((1, 100)), mne.create_info(["Cz"], 1200.0, "eeg"), verbose="error")
    with pytest.raises(ValueError, match="no sensors with names like MLC11"):
        continuous_things_meg(eeg)
    with pytest.raises(ValueError, match="has 500 Hz, expected a multiple of 200"):
        cut_things_meg(raw(np.zeros((3, 5000)), 500.0), events(1000))
