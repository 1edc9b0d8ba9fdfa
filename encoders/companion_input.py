"""Recordings whose header names a second file: BrainVision and EEGLAB.

A header can name any file of the machine, so a companion must be a plain name beside the header.
"""

import re
from dataclasses import replace
from pathlib import Path

import mne
import numpy as np
import pymatreader

from encoders.epochs import EpochsMismatch, SignalEpochs


def _check_companion(path: Path, name: str, role: str) -> None:
    """Refuse a companion that does not lie beside ``path`` under a plain name: headers may name any file."""
    if not name or name in (".", "..") or re.search(r"[/\\\x00]|^[A-Za-z]:", name):
        raise EpochsMismatch(f"the header names a {role} in another folder; write a plain file name into the header")
    if not (path.parent / name).is_file():
        raise EpochsMismatch(f"the {role} {name!r} is missing; send a zip with all files of the recording")


def read_brainvision(path: Path) -> "mne.io.BaseRaw":
    """Read a BrainVision header with the data and marker files that it names."""
    content = path.read_bytes()
    try:
        header = content.decode("utf-8")
    except UnicodeDecodeError:
        header = content.decode("latin-1")
    for key, role in (("DataFile", "data file"), ("MarkerFile", "marker file")):
        names = re.findall(rf"(?mi)^\s*{key}\s*[=:]\s*(.*?)\s*$", header)
        if not names and key == "DataFile":
            raise EpochsMismatch("the BrainVision header names no data file; export the recording again")
        for name in names:
            _check_companion(path, name.replace("$b", path.stem), role)
    return mne.io.read_raw_brainvision(path, verbose="warning")


def read_eeglab(path: Path) -> "SignalEpochs | mne.io.BaseRaw":
    """Read an EEGLAB data set, with its ``.fdt`` if the samples are there; epochs are named by their locking event."""
    content = pymatreader.read_mat(str(path), variable_names=["EEG", "data", "trials", "nbchan", "epoch"])
    eeg = content.get("EEG", content)
    eeg = eeg.get("EEG", eeg) if isinstance(eeg, dict) else eeg
    if not isinstance(eeg, dict) or "nbchan" not in eeg or "data" not in eeg:
        raise EpochsMismatch("the MATLAB file holds no EEG structure of EEGLAB; save one dataset with pop_saveset")
    if isinstance(eeg["data"], str):
        _check_companion(path, eeg["data"], "data file")
    if int(eeg.get("trials", 1)) > 1:
        epochs = SignalEpochs.from_mne(mne.read_epochs_eeglab(path, verbose="warning"))
        return replace(epochs, stimulus=_locking_events(eeg.get("epoch"), epochs.n_epochs) or epochs.stimulus)
    return mne.io.read_raw_eeglab(path, verbose="warning")


def _locking_events(table: object, n_epochs: int) -> tuple[str, ...]:
    """Return the event at latency 0 of each epoch; nothing if the table says no such thing.

    MNE joins all events of an epoch into one name, which makes ten pictures of one rapid stream a new stimulus.
    """
    columns = table if isinstance(table, dict) else {}
    types, latencies = columns.get("eventtype"), columns.get("eventlatency")
    if not isinstance(types, list) or not isinstance(latencies, list) or not len(types) == len(latencies) == n_epochs:
        return ()
    names = []
    for of_epoch, at in zip(types, latencies, strict=True):
        times = np.abs(np.ravel(np.asarray(at, dtype=np.float64)))
        events = of_epoch if isinstance(of_epoch, list) else np.ravel(of_epoch).tolist()
        if not times.size or times.size != len(events):
            return ()
        names.append(str(events[int(times.argmin())]))
    return tuple(names)
