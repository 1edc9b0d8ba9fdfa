"""Epochs cut while a recording runs: the same whatever the chunks, and those of a file but for the high-pass."""

import mne
import numpy as np
import pytest

from encoders.cutting import cut_epochs
from encoders.epochs import EpochsMismatch
from encoders.live_cutting import LATE_S, LiveChannels, LiveCutter, TriggerChannel

SFREQ = 250.0
NAMES = ("Cz", "Pz", "Oz", "Fz")
WINDOW = {"tmin": -0.3, "tmax": 0.83, "l_freq": 0.1, "h_freq": 40.0}


def channels(per_unit: float = 1e-6) -> LiveChannels:
    n = len(NAMES)
    return LiveChannels(SFREQ, NAMES, ("eeg",) * n, np.full((n, 3), np.nan, np.float32), np.full(n, per_unit))


def recording(seconds: float = 20.0, seed: int = 0) -> np.ndarray:
    """Pink-like noise of some microvolts on a large offset, in microvolts."""
    rng = np.random.default_rng(seed)
    n = round(seconds * SFREQ)
    gain = 1.0 / np.sqrt(np.maximum(np.fft.rfftfreq(n, 1 / SFREQ), 0.5))
    pink = np.fft.irfft(np.fft.rfft(rng.standard_normal((len(NAMES), n))) * gain, n)
    return (10.0 * pink / pink.std() + 300.0).astype(np.float32)


def cuts(data: np.ndarray, marks: list[int], size: int, window: dict = WINDOW) -> dict[int, np.ndarray]:
    cutter = LiveCutter(channels(), **window)
    for number, sample in enumerate(marks):
        assert cutter.mark(sample, f"s{number}") == number
    found = []
    for start in range(0, data.shape[1], size):
        found += cutter.push(data[:, start : start + size])
    assert all(cut.stimulus == f"s{cut.number}" and cut.sample == marks[cut.number] for cut in found)
    return {cut.number: cut.epochs().data[0] for cut in found}


@pytest.mark.parametrize("size", [1, 7, 25])
def test_the_chunks_do_not_matter_to_the_last_bit(size):
    data, marks = recording(), [75, 400, 410, 3000, 4700]
    whole, parts = cuts(data, marks, 500), cuts(data, marks, size)
    assert sorted(whole) == sorted(parts) == [0, 1, 2, 3, 4]
    for number in whole:
        np.testing.assert_array_equal(whole[number], parts[number])


def test_without_a_high_pass_the_epochs_are_those_of_the_file():
    data, marks = recording(), [200, 1000, 2000]
    raw = mne.io.RawArray(data * 1e-6, mne.create_info(list(NAMES), SFREQ, "eeg"), verbose="error")
    window = WINDOW | {"l_freq": None}
    filed = cut_epochs(raw, [mark / SFREQ for mark in marks], **window)
    live = cuts(data, marks, 50, window)
    assert filed.tmin == pytest.approx(-0.3, abs=1 / SFREQ)
    for number in range(3):
        assert live[number].shape == filed.data[number].shape
        # the file starts by reflection, so its beginning is left out of the first one's comparison by the margin
        np.testing.assert_allclose(live[number], filed.data[number], atol=2e-9)


def test_with_a_high_pass_they_are_nearly_those_of_a_file():
    data, marks = recording(60.0), [6000, 7000, 8000]
    raw = mne.io.RawArray(data * 1e-6, mne.create_info(list(NAMES), SFREQ, "eeg"), verbose="error")
    filed = cut_epochs(raw, [mark / SFREQ for mark in marks], **WINDOW)
    live = cuts(data, marks, 50)
    for number in range(3):
        one, two = (x - x[:, :75].mean(axis=1, keepdims=True) for x in (live[number], filed.data[number]))
        assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.98
    assert max(abs(one.mean()) for one in live.values()) < 30e-6, "the offset of 300 uV is gone"


def test_an_epoch_comes_as_soon_as_it_is_complete_and_depends_on_nothing_later():
    data = recording()
    cutter = LiveCutter(channels(), **WINDOW)
    cutter.mark(1000)
    came = next(n for n in range(data.shape[1]) if cutter.push(data[:, n : n + 1]))
    assert came - 1000 == round(cutter.latency * SFREQ) and 0.83 <= cutter.latency < 1.1


def test_marks_before_their_samples_after_them_too_soon_and_too_late():
    data = recording()
    cutter = LiveCutter(channels(), **WINDOW)
    with pytest.raises(EpochsMismatch, match="too soon"):
        cutter.mark(10)
    found = []
    for start in range(0, 4000, 250):
        found += cutter.push(data[:, start : start + 250])
    late = 4000 - round(LATE_S * SFREQ)
    assert cutter.mark(late, "late") == 1 and cutter.n_waiting == 1
    (cut,) = cutter.push(data[:, 4000:4001])
    np.testing.assert_array_equal(cut.epochs().data[0], cuts(data, [late], 400)[0])
    for start in range(4001, 5000, 250):
        cutter.push(data[:, start : start + 250])
    with pytest.raises(EpochsMismatch, match="too late"):
        cutter.mark(500)
    cutter.mark(4990, "cut off")
    assert cutter.flush() == [(3, 4990, "cut off")] and cutter.n_waiting == 0 and cutter.n_marks == 4


def test_clipping_is_seen_before_the_filters_hide_it():
    data = np.clip(recording(), 290.0, 305.0)
    with pytest.raises(EpochsMismatch, match="clipped"):
        cuts(data, [1000], 100)


def test_bad_chunks_are_refused_and_change_nothing():
    cutter = LiveCutter(channels(), **WINDOW)
    for chunk, said in (
        (np.zeros((3, 5), np.float32), "4 channels"),
        (np.zeros((4, 501), np.float32), "500 samples"),
        (np.full((4, 1), np.nan, np.float32), "NaN"),
    ):
        with pytest.raises(EpochsMismatch, match=said):
            cutter.push(chunk)
    assert cutter.n_samples == 0


@pytest.mark.parametrize("size", [1, 3, 100])
def test_triggers_are_found_where_they_begin(size):
    codes = np.zeros(100, np.float32)
    codes[10:20], codes[20:25], codes[40] = 5, 6, 5
    trigger = TriggerChannel()
    found = []
    for start in range(0, 100, size):
        found += [(start + index, code) for index, code in trigger.push(codes[start : start + size])]
    assert found == [(10, 5), (20, 6), (40, 5)]
    with pytest.raises(EpochsMismatch, match="whole"):
        trigger.push(np.array([0.5], np.float32))
