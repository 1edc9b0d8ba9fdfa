"""Recordings whose header names a second file: BrainVision and EEGLAB.

Structure is checked first (`encoders.brainvision_header`, `encoders.matlab_structure`, `encoders.hdf5_structure`): a
header can name any file of the machine.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pymatreader

from encoders.brainvision_header import check_brainvision, check_companion
from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.hdf5_structure import check_hdf5
from encoders.matlab_structure import HDF5_SIGNATURE, VERSION_73, check_matlab5
from encoders.part_bounds import at_most
from encoders.recording_bounds import MAX_CHANNELS, check_rate

MAX_UNNAMED = 3000
# What only MNE's reader looks at: of 7.3 files each value costs a millisecond, so they are not read twice.
_LEFT_TO_READER = ("event", "urevent", "chanlocs", "urchanlocs", "chaninfo", "etc", "history", "reject", "stats")


def read_brainvision(path: Path) -> "mne.io.BaseRaw":
    """Read a BrainVision header with the data and marker files that it names."""
    check_brainvision(path)
    return mne.io.read_raw_brainvision(path, verbose="warning")


def read_eeglab(path: Path) -> "SignalEpochs | mne.io.BaseRaw":
    """Read an EEGLAB data set, with its ``.fdt`` if the samples are there; epochs are named by their locking event."""
    with path.open("rb") as file:
        head = file.read(128)
    # readers go by the version behind the text, whatever the text says
    if head[124:] in VERSION_73 or head.startswith(HDF5_SIGNATURE):
        check_hdf5(path)
    else:
        check_matlab5(path)
    wanted = ["EEG", "data", "trials", "nbchan", "pnts", "srate", "epoch"]
    content = pymatreader.read_mat(str(path), variable_names=wanted, ignore_fields=_LEFT_TO_READER)
    if "EEG" in content and "data" in content:
        raise EpochsMismatch("the MATLAB file holds data beside its EEG structure; save one dataset with pop_saveset")
    eeg = content.get("EEG", content)
    eeg = eeg.get("EEG", eeg) if isinstance(eeg, dict) else eeg
    if not isinstance(eeg, dict) or "nbchan" not in eeg or "data" not in eeg:
        raise EpochsMismatch("the MATLAB file holds no EEG structure of EEGLAB; save one dataset with pop_saveset")
    n_trials = _check_counts(path, eeg)
    if n_trials > 1:
        return _read_epochs(path, n_trials, eeg.get("epoch", ()))
    # without preload the reader reads the whole file four times
    return mne.io.read_raw_eeglab(path, preload=True, verbose="warning")


def _read_epochs(path: Path, n_trials: int, table: object) -> SignalEpochs:
    names = _locking_events(table, n_trials)
    if not names and np.size(np.asarray(table, dtype=object)) and n_trials > (most := at_most(MAX_UNNAMED)):
        raise EpochsMismatch(
            f"the data set has {n_trials} epochs and does not say at which event each is locked, at most "
            f"{most} such are read; save them in several files"
        )
    # with names of its own, the reader is spared its own search, in the square of the number of epochs
    events = np.column_stack([np.arange(n_trials), np.zeros(n_trials, int), np.ones(n_trials, int)])
    own: dict[str, Any] = {"events": events, "event_id": {"epoch": 1}} if names else {}
    epochs = SignalEpochs.from_mne(mne.read_epochs_eeglab(path, **own, verbose="warning"))
    return replace(epochs, stimulus=names or epochs.stimulus)


def _check_counts(path: Path, eeg: dict[str, Any]) -> int:
    """Compare what the structure announces with itself and with its data file; return the number of trials."""
    counts = [_count(eeg.get(name, 1), name) for name in ("nbchan", "pnts", "trials")]
    if counts[0] > MAX_CHANNELS:
        raise EpochsMismatch(f"the data set announces {counts[0]} channels, at most {MAX_CHANNELS} are read")
    check_rate(float(_scalar(eeg.get("srate"), "srate")))
    if isinstance(eeg["data"], str):
        expected = 4 * math.prod(counts)
        n_bytes = check_companion(path, eeg["data"], "data file").stat().st_size
        if n_bytes != expected:
            raise EpochsMismatch(
                f"the data file has {n_bytes} bytes, expected {expected} for {counts[0]} channels, {counts[1]} samples "
                f"and {counts[2]} trials; send the file that belongs to the .set"
            )
    elif np.size(eeg["data"]) != math.prod(counts):
        raise EpochsMismatch(
            f"the data set holds {np.size(eeg['data'])} values, expected {math.prod(counts)} for {counts[0]} channels, "
            f"{counts[1]} samples and {counts[2]} trials; save it again"
        )
    return counts[2]


def _count(value: object, name: str) -> int:
    number = float(_scalar(value, name))
    if not number.is_integer() or not 1 <= number <= 1 << 31:
        raise EpochsMismatch(
            f"the data set gives {number:g} as EEG.{name}, expected a whole number; correct it"
        )
    return int(number)


def _scalar(value: object, name: str) -> float:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.size != 1 or not np.isfinite(array).all():
        raise EpochsMismatch(f"the data set gives no number as EEG.{name}; save one dataset with pop_saveset")
    return float(array.ravel()[0])


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
