"""Recordings whose headers say who was recorded, when and by whom, in every format that can be written here."""

import io
import tempfile
import warnings
import zipfile
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import h5py
import mne
import numpy as np
import scipy.io
from hostile_vendors import chunk

from benchmarks.sample_recordings import sample_recordings, write_matlab73, zipped
from encoders.epochs import SignalEpochs

WHO = "Canaria"
DAY = date(1987, 6, 5)
# How the name, the days and the second of the measurement can be written.
TRACES = (WHO, WHO.upper(), WHO.lower(), "1987-06-05", "05.06.87", "05-JUN-1987", "19870605", "549849600")


def identified_recordings(ch_names: tuple[str, ...]) -> dict[str, bytes]:
    """Return the sample recordings with the name of a person wherever a header has room for it."""
    files = sample_recordings(ch_names)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work = Path(folder)
        return {
            "FIF": _fif(work, files["FIF"], "x_raw.fif"),
            "FIF epochs": _fif(work, files["FIF epochs"], "x-epo.fif"),
            "EDF": _edf(files["EDF"]),
            "BDF": _edf(files["BDF"]),
            "BrainVision": _brainvision(files["BrainVision"]),
            "EEGLAB": _eeglab(work, files["EEGLAB"]),
            "EEGLAB 7.3": _eeglab73(files["EEGLAB 7.3"]),
            "npz": replace(SignalEpochs.from_bytes(files["npz"]), subject=WHO).to_bytes(),
            "XDF": _xdf(ch_names),
        }


def annotated_recordings(ch_names: tuple[str, ...], texts: tuple[str, ...], person: str = "") -> dict[str, bytes]:
    """Return recordings with an event every 2 s, named by ``texts``; an EDF header may name the person."""
    n_times = 100 * (2 * len(texts) + 3)
    noise = np.random.default_rng(0).normal(scale=1e-5, size=(len(ch_names), n_times))
    raw = mne.io.RawArray(noise, mne.create_info(list(ch_names), 100.0, "eeg"), verbose="error")
    raw.set_annotations(mne.Annotations(2.0 * np.arange(1, len(texts) + 1), 0.0, list(texts)))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work = Path(folder)
        raw.save(work / "x_raw.fif", verbose="error")
        for name in ("x.edf", "x.set"):
            mne.export.export_raw(work / name, raw, verbose="error")
        write_matlab73(raw, work / "h.set")
        edf = (work / "x.edf").read_bytes()
        if person:
            edf = edf[:8] + f"X-{person} F 05-JUN-1987 {person}".ljust(80).encode() + edf[88:]
        return {
            "FIF": (work / "x_raw.fif").read_bytes(),
            "EDF": edf,
            "EEGLAB": (work / "x.set").read_bytes(),
            "EEGLAB 7.3": (work / "h.set").read_bytes(),
        }


def _fif(work: Path, content: bytes, name: str) -> bytes:
    (work / name).write_bytes(content)
    read: Any = mne.io.read_raw_fif if "raw" in name else mne.read_epochs
    recording = read(work / name, preload=True, verbose="error")
    person = {"his_id": WHO, "last_name": WHO, "first_name": WHO, "middle_name": WHO, "birthday": DAY}
    recording.info["subject_info"] = person | {"sex": 2, "hand": 1}
    recording.set_meas_date(datetime(1987, 6, 5, tzinfo=UTC))
    recording.info["experimenter"] = recording.info["description"] = f"by {WHO}"
    with recording.info._unlock():
        recording.info["proj_name"] = WHO
    recording.save(work / name, overwrite=True, verbose="error")
    return (work / name).read_bytes()


def _edf(content: bytes) -> bytes:
    patient = f"X-{WHO} F 05-JUN-1987 {WHO}".ljust(80).encode()
    session = f"Startdate 05-JUN-1987 {WHO} {WHO} {WHO}".ljust(80).encode()
    return content[:8] + patient + session + b"05.06.87" + content[176:]


def _brainvision(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for name in files:
        if name.endswith(".vhdr"):
            said = f"[Comment]\r\nPatient: {WHO}, 05.06.87\r\nOperator: {WHO}\r\n"
            head = files[name].decode().split("[Comment]")
            files[name] = (head[0] + said + "".join(head[1:]).lstrip()).encode()
        if name.endswith(".vmrk"):
            text = files[name].decode().rstrip().replace("=Comment,", "=Trigger,")
            n_marks = text.count("\nMk")
            text += f"\r\nMk{n_marks + 1}=Comment,{WHO} moved,600,1,0"
            text += f"\r\nMk{n_marks + 2}=New Segment,,1,1,0,19870605000000000000\r\n"
            files[name] = text.encode()
    return zipped(files)


def _eeglab(work: Path, content: bytes) -> bytes:
    (work / "e.set").write_bytes(content)
    stored = scipy.io.loadmat(work / "e.set", squeeze_me=False)
    fields = {name: value for name, value in stored.items() if not name.startswith("__")}
    inside = fields.get("EEG")
    names = ("subject", "comments", "setname", "group", "condition", "filename", "history")
    if inside is None:
        fields |= dict.fromkeys(names, WHO)
    else:
        kept = {name: inside[0, 0][name] for name in inside.dtype.names}
        fields = {"EEG": kept | dict.fromkeys(names, WHO)}
    scipy.io.savemat(work / "e.set", fields, appendmat=False)
    return (work / "e.set").read_bytes()


def _eeglab73(content: bytes) -> bytes:
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        for name in ("subject", "comments", "setname", "group"):
            letters = np.asarray([[ord(letter)] for letter in WHO], dtype=np.uint16)
            file["EEG"].create_dataset(name, data=letters).attrs["MATLAB_class"] = np.bytes_("char")
    made = bytearray(buffer.getvalue())
    made[:512] = content[:512]
    return bytes(made)


def _xdf(ch_names: tuple[str, ...]) -> bytes:
    channels = "".join(f"<channel><label>{name}</label><unit>microvolts</unit></channel>" for name in ch_names)
    person = f"<subject><id>{WHO}</id><name>{WHO}</name></subject>"
    top = f'<?xml version="1.0"?><info><name>{WHO}</name><hostname>{WHO}</hostname><source_id>{WHO}</source_id>'
    eeg = f"{top}<type>EEG</type><channel_count>{len(ch_names)}</channel_count><nominal_srate>100</nominal_srate>"
    eeg += f"<channel_format>float32</channel_format><desc>{person}<channels>{channels}</channels></desc></info>"
    marks = f"{top}<type>Markers</type><channel_count>1</channel_count><nominal_srate>0</nominal_srate>"
    marks += f"<channel_format>string</channel_format><desc>{person}</desc></info>"
    one, two = (number.to_bytes(4, "little") for number in (1, 2))
    start = f'<?xml version="1.0"?><info><version>1.0</version><datetime>1987-06-05</datetime>{person}</info>'
    content = b"XDF:" + chunk(1, start.encode()) + chunk(2, one + eeg.encode()) + chunk(2, two + marks.encode())
    waves = np.random.default_rng(0).normal(scale=10.0, size=(400, len(ch_names))).astype("<f4")
    times = np.float64(10) + np.arange(400) / 100
    samples = b"".join(
        b"\x08" + time.tobytes() + wave.tobytes() for time, wave in zip(times.astype("<f8"), waves, strict=True)
    )
    content += chunk(3, one + b"\x04" + (400).to_bytes(4, "little") + samples)
    events = ((11.0, b"dog"), (12.0, b"cat"))
    texts = b"".join(b"\x08" + np.float64(at).tobytes() + b"\x01\x03" + text for at, text in events)
    return content + chunk(3, two + b"\x01\x02" + texts)
