"""A continuous file as plain numbers: samples, stimuli, places."""

from pathlib import Path

import mne
import numpy as np
import pytest

from encoders.continuous import read_recording
from encoders.epochs import EpochsMismatch, SignalEpochs

NAMES = ("Cz", "Pz", "Oz")


def continuous_file(folder: Path) -> tuple[Path, np.ndarray]:
    """Write 5 s of noise with two events, a bad and an EOG channel."""
    data = 1e-5 * np.random.default_rng(0).standard_normal((5, 500))
    info = mne.create_info([*NAMES, "Fz", "EOG"], 100.0, ["eeg"] * 4 + ["eog"])
    raw = mne.io.RawArray(data, info, first_samp=50, verbose="error")
    raw.info["bads"] = ["Fz"]
    raw.set_annotations(mne.Annotations([1.0, 2.5], 0.0, ["Stimulus/cat", "Stimulus/dog"]))
    path = folder / "run_raw.fif"
    raw.save(path, verbose="error")
    return path, data


def test_samples_events_and_channels_are_those_of_the_file(tmp_path: Path) -> None:
    path, data = continuous_file(tmp_path)
    found = read_recording(path)
    assert found.ch_names == NAMES and found.ch_types == ("eeg",) * 3 and found.sfreq == 100.0
    np.testing.assert_allclose(found.data, data[:3], atol=1e-11)
    assert found.stimuli == ((100, "Stimulus/cat"), (250, "Stimulus/dog"))
    assert read_recording(path, [3.0, 0.5]).stimuli == ((50, ""), (300, ""))


def test_what_cannot_be_replayed_is_refused(tmp_path: Path) -> None:
    path, _ = continuous_file(tmp_path)
    with pytest.raises(EpochsMismatch, match="outside"):
        read_recording(path, [7.0])
    epochs = SignalEpochs(
        np.random.default_rng(0).normal(scale=1e-5, size=(2, 3, 100)), 100.0, -0.2, NAMES, ("eeg",) * 3,
        np.full((3, 3), np.nan),
    )  # fmt: skip
    epochs.save(tmp_path / "cut.npz")
    with pytest.raises(EpochsMismatch, match="holds epochs"):
        read_recording(tmp_path / "cut.npz")
