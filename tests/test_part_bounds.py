"""One's own files may have many more parts than uploads, whatever the format."""

import zipfile
from pathlib import Path

import pytest

from encoders.continuous import read_recording
from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.part_bounds import OWN_FACTOR, at_most, own_files
from encoders.readers import read_epochs

HEADER = """Brain Vision Data Exchange Header File Version 1.0
[Common Infos]
DataFile=x.eeg
MarkerFile=x.vmrk
DataFormat=BINARY
DataOrientation=MULTIPLEXED
NumberOfChannels=1
SamplingInterval=1000
[Binary Infos]
BinaryFormat=INT_16
[Channel Infos]
Ch1=Cz,,0.1
"""
# as many as a session of rapid pictures has, with a marker for each beginning and each end
N_MARKERS = 31_000


def rapid_session(folder: Path) -> Path:
    """Write a recording with one marker at every millisecond, as a zip."""
    path = folder / "session.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.vhdr", HEADER)
        archive.writestr("x.eeg", bytes(2 * (N_MARKERS + 10)))
        lines = "".join(f"Mk{i}=Stimulus,S{1 + i % 2:3},{i},1,0\n" for i in range(1, N_MARKERS + 1))
        archive.writestr("x.vmrk", "Brain Vision Data Exchange Marker File, Version 1.0\n[Marker Infos]\n" + lines)
    return path


def test_within_own_files_a_bound_is_so_many_times_as_large_and_outside_again_as_it_was() -> None:
    assert at_most(10) == 10
    with pytest.raises(ValueError, match="planted"), own_files():
        assert at_most(10) == 10 * OWN_FACTOR
        with own_files():
            assert at_most(10) == 10 * OWN_FACTOR
        assert at_most(10) == 10 * OWN_FACTOR
        raise ValueError("planted")
    assert at_most(10) == 10


def test_a_long_session_is_refused_as_an_upload_and_read_as_an_own_file(tmp_path: Path) -> None:
    session = rapid_session(tmp_path)
    with pytest.raises(EpochsMismatch, match="more than 30000 lines"):
        read_epochs(session, onsets=[1.0], tmin=0.0, tmax=0.5)
    with own_files():
        epochs = read_epochs(session, onsets=[1.0], tmin=0.0, tmax=0.5)
    assert isinstance(epochs, SignalEpochs) and epochs.n_epochs == 1
    recording = read_recording(session)
    assert len(recording.stimuli) == N_MARKERS
