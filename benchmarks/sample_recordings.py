"""Small true recordings of one noise signal in each format, for the fuzzer and for measuring what isolation costs."""

import io
import tempfile
import warnings
import zipfile
from pathlib import Path

import edfio
import h5py
import mne
import numpy as np

from encoders.epochs import SignalEpochs
from encoders.sensors import THINGS_EEG2_CHANNELS

SFREQ = 250.0
ONSETS = (1.0, 2.0)


def sample_recordings(ch_names: tuple[str, ...] = THINGS_EEG2_CHANNELS, seconds: float = 4.0) -> dict[str, bytes]:
    """Return the bytes of one recording in each format: 10 uV of noise, two events named ``dog`` and ``cat``.

    The noise of a channel follows from its name alone, whatever its place.
    """
    n_times = round(seconds * SFREQ)
    noise = np.stack([np.random.default_rng(list(name.encode())).normal(scale=1e-5, size=n_times) for name in ch_names])
    raw = mne.io.RawArray(noise, mne.create_info(list(ch_names), SFREQ, "eeg"), verbose="error")
    raw.set_annotations(mne.Annotations(ONSETS, [0.0, 0.0], ["dog", "cat"]))
    events, event_id = mne.events_from_annotations(raw, verbose="error")
    epochs = mne.Epochs(raw, events, event_id, -0.2, 1.0, baseline=None, preload=True, verbose="error")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work = Path(folder)
        raw.save(work / "x_raw.fif", verbose="error")
        epochs.save(work / "x-epo.fif", verbose="error")
        for name in ("x.edf", "x.set"):
            mne.export.export_raw(work / name, raw, verbose="error")
        (work / "bv").mkdir()
        mne.export.export_raw(work / "bv" / "x.vhdr", raw, verbose="error")
        _write_bdf(raw, work / "x.bdf")
        write_matlab73(raw, work / "h.set")
        return {
            "FIF": (work / "x_raw.fif").read_bytes(),
            "FIF epochs": (work / "x-epo.fif").read_bytes(),
            "EDF": (work / "x.edf").read_bytes(),
            "BDF": (work / "x.bdf").read_bytes(),
            "BrainVision": zipped({file.name: file.read_bytes() for file in sorted((work / "bv").iterdir())}),
            "EEGLAB": (work / "x.set").read_bytes(),
            "EEGLAB 7.3": (work / "h.set").read_bytes(),
            "npz": SignalEpochs.from_mne(epochs).to_bytes(),
        }


def zipped(files: dict[str, bytes]) -> bytes:
    """Return a zip of files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _write_bdf(raw: mne.io.BaseRaw, path: Path) -> None:
    signals = [
        edfio.BdfSignal(row * 1e6, SFREQ, label=name, physical_dimension="uV", physical_range=(-200, 200))
        for row, name in zip(raw.get_data(), raw.ch_names, strict=True)
    ]
    notes = [edfio.EdfAnnotation(note["onset"], None, note["description"]) for note in raw.annotations]
    edfio.Bdf(signals, annotations=notes).write(path)


def write_matlab73(raw: mne.io.BaseRaw, path: Path) -> None:
    """Write what ``save -v7.3`` makes of an EEGLAB structure: HDF5 behind a user block, cells as references."""
    with h5py.File(path, "w", userblock_size=512) as file:
        inside = file.create_group("#refs#")
        eeg = file.create_group("EEG")
        eeg.attrs["MATLAB_class"] = np.bytes_("struct")
        numbers = {
            "nbchan": len(raw.ch_names),
            "pnts": raw.n_times,
            "trials": 1,
            "srate": raw.info["sfreq"],
            "xmin": 0.0,
        }
        for name, value in numbers.items():
            _array(eeg, name, np.asarray([[value]], dtype=np.float64))
        _array(eeg, "data", (raw.get_data().T * 1e6).astype(np.float32))
        for name in ("icawinv", "icasphere", "icaweights", "epoch"):
            _array(eeg, name, np.zeros((0, 0)))
        chanlocs, events = eeg.create_group("chanlocs"), eeg.create_group("event")
        for group in (chanlocs, events):
            group.attrs["MATLAB_class"] = np.bytes_("struct")
        _cells(file, inside, chanlocs, "labels", [_text(name) for name in raw.ch_names])
        _cells(file, inside, events, "type", [_text(text) for text in raw.annotations.description])
        onsets = np.asarray(raw.annotations.onset) * raw.info["sfreq"] + 1
        _cells(file, inside, events, "latency", [np.asarray([[onset]]) for onset in onsets])
    content = bytearray(path.read_bytes())
    content[:128] = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(124) + b"\x00\x02IM"
    path.write_bytes(content)


def _array(group: h5py.Group, name: str, values: np.ndarray, kind: str = "") -> h5py.Dataset:
    data = group.create_dataset(name, data=values)
    data.attrs["MATLAB_class"] = np.bytes_(kind or {"f4": "single", "f8": "double"}[values.dtype.str[1:]])
    return data


def _text(text: str) -> np.ndarray:
    return np.asarray([[ord(letter)] for letter in text], dtype=np.uint16)


def _cells(file: h5py.File, inside: h5py.Group, group: h5py.Group, name: str, values: list[np.ndarray]) -> None:
    references = np.empty((len(values), 1), dtype=h5py.ref_dtype)
    for index, value in enumerate(values):
        kind = "char" if value.dtype == np.uint16 else ""
        held = _array(inside, f"{name}_{len(inside)}", value, kind)
        references[index, 0] = held.ref
    group.create_dataset(name, data=references, dtype=h5py.ref_dtype)
