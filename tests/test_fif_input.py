import struct
from pathlib import Path

import mne
import numpy as np
import pytest

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.fif_input import FIF_MAGIC, read_fif

INFO = ["Cz", "Pz", "EOG1"], 100.0, ["eeg", "eeg", "eog"]


def data(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape) * 1e-5


def evoked(comment: str, n: int = 50, kind: str = "average") -> mne.EvokedArray:
    return mne.EvokedArray(data(3, n), mne.create_info(*INFO), -0.1, comment, nave=7, kind=kind, verbose="error")


def test_epochs(tmp_path: Path) -> None:
    events = np.column_stack([np.arange(4), np.zeros(4, int), [1, 2, 1, 2]])
    epochs = mne.EpochsArray(data(4, 3, 50), mne.create_info(*INFO), events, event_id={"a": 1, "b": 2}, verbose="error")
    epochs.save(tmp_path / "x-epo.fif", verbose="error")
    signal = read_fif(tmp_path / "x-epo.fif")
    assert isinstance(signal, SignalEpochs)
    assert signal.stimulus == ("a", "b", "a", "b")
    np.testing.assert_allclose(signal.data, epochs.get_data(copy=True)[:, :2], rtol=1e-6)


def test_every_average_is_an_epoch(tmp_path: Path) -> None:
    mne.write_evokeds(tmp_path / "x-ave.fif", [evoked("face"), evoked("house"), evoked("x", kind="standard_error")])
    signal = read_fif(tmp_path / "x-ave.fif")
    assert isinstance(signal, SignalEpochs)
    assert signal.stimulus == ("face", "house")
    assert signal.n_averaged == (7, 7)
    assert signal.tmin == pytest.approx(-0.1)


def test_averages_with_two_time_axes_are_refused(tmp_path: Path) -> None:
    mne.write_evokeds(tmp_path / "x-ave.fif", [evoked("face"), evoked("house", n=60)])
    with pytest.raises(EpochsMismatch, match="channels or times"):
        read_fif(tmp_path / "x-ave.fif")


def test_continuous_data_is_left_for_cutting(tmp_path: Path) -> None:
    mne.io.RawArray(data(3, 500), mne.create_info(*INFO), verbose="error").save(tmp_path / "x_raw.fif", verbose="error")
    assert isinstance(read_fif(tmp_path / "x_raw.fif"), mne.io.BaseRaw)


def test_a_file_without_signal_is_named(tmp_path: Path) -> None:
    mne.make_ad_hoc_cov(mne.create_info(*INFO), verbose="error").save(tmp_path / "x-cov.fif", verbose="error")
    with pytest.raises(EpochsMismatch, match="holds a covariance"):
        read_fif(tmp_path / "x-cov.fif")
    mne.write_events(tmp_path / "x-eve.fif", np.asarray([[1, 0, 1]]), verbose="error")
    with pytest.raises(EpochsMismatch, match="expected epochs, averages or a continuous"):
        read_fif(tmp_path / "x-eve.fif")


def test_split_recordings_are_refused(tmp_path: Path) -> None:
    raw = mne.io.RawArray(data(3, 600_000), mne.create_info(*INFO), verbose="error")
    raw.save(tmp_path / "x_raw.fif", split_size="3MB", buffer_size_sec=10.0, verbose="error")
    assert (tmp_path / "x_raw-1.fif").exists()
    with pytest.raises(EpochsMismatch, match="second FIF file"):
        read_fif(tmp_path / "x_raw.fif")


@pytest.mark.parametrize("length", [-1, 2**31 - 1, 100])
def test_tags_that_leave_the_file_are_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.fif"
    path.write_bytes(FIF_MAGIC + struct.pack(">i", 0) + bytes(20) + struct.pack(">4i", 104, 3, length, 0) + bytes(4))
    with pytest.raises(EpochsMismatch, match="damaged"):
        read_fif(path)
