import mne
import numpy as np
import pytest

from encoders.things_eeg import things_eeg


def recording() -> tuple[mne.io.BaseRaw, np.ndarray]:
    """Two minutes at 1 kHz: noise, and a bump 200 ms after each of 20 events that fall on odd samples."""
    rng = np.random.default_rng(0)
    onsets = 20_001 + 4003 * np.arange(20)
    data = rng.standard_normal((8, 120_000)) * 1e-7
    for onset in onsets:
        data[:4] += 2e-5 * np.exp(-0.5 * ((np.arange(120_000) - onset - 200) / 20) ** 2)
    raw = mne.io.RawArray(data, mne.create_info([f"E{i}" for i in range(8)], 1000.0, "eeg"), verbose="error")
    return raw, np.column_stack([onsets, np.zeros(20, int), np.arange(20) + 1])


def test_shape_reference_and_latency() -> None:
    raw, events = recording()
    epochs = things_eeg(raw, events)
    assert epochs.data.shape == (20, 8, 276)
    assert (epochs.sfreq, epochs.tmin) == (250.0, pytest.approx(-0.1))
    assert epochs.stimulus == tuple(str(i + 1) for i in range(20))
    assert np.abs(epochs.data.mean(axis=1)).max() < 1e-11  # float32 of 1e-5 V
    near = np.abs(epochs.times - 0.2) < 0.08
    for epoch in epochs.data[:, 0, near]:
        centre = (epochs.times[near] * epoch).sum() / epoch.sum()
        assert abs(centre - 0.2) <= 0.5 / 250.0 + 3e-4


def test_last_sample_can_be_dropped_and_the_result_repeats() -> None:
    raw, events = recording()
    whole, cut = things_eeg(raw, events), things_eeg(raw, events, drop_last_sample=True)
    assert cut.n_times == 275
    np.testing.assert_array_equal(cut.data, whole.data[:, :, :275])
    np.testing.assert_array_equal(things_eeg(raw, events).data, whole.data)
    assert raw.info["sfreq"] == 1000.0
