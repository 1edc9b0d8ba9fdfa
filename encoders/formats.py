"""The formats of recordings: how each looks, how it is sent, what is checked before its reader runs, and its reader.

One row per format, found by the first bytes of a file; a recording that is a folder is found by its files instead
(`encoders.folder_input`). A row without a reader is known and refused with advice: formats that are in no row are never
handed to MNE, because one of its readers (Neuroscan) can end the process.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mne

from encoders.binary_headers import read_egi_raw, read_kit
from encoders.companion_input import read_brainvision, read_eeglab
from encoders.edf_header import check_edf
from encoders.epochs import SignalEpochs
from encoders.fif_input import FIF_MAGIC, read_fif
from encoders.folder_input import read_bti, read_ctf, read_mff
from encoders.xdf_input import read_xdf

_NEVER = rb"(?!)"


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes
    ----------
    name : str
        As messages and `phosphene formats` call it.
    magic : pattern
        How its first bytes look; matches nothing where the format is found by its files.
    suffix : str
        What MNE wants the file to be called.
    read : callable or None
        Its reader; None for a format that is known and not supported.
    send : str
        What to send.
    checks : str
        What is checked before its reader runs, beside what holds for every format.
    advice : str
        What to do instead, if there is no reader.
    tested : str
        What it was tested with; empty if with nothing real.
    """

    name: str
    magic: re.Pattern[bytes]
    suffix: str = ""
    read: "Callable[[Path], SignalEpochs | mne.io.BaseRaw] | None" = None
    send: str = "the file"
    checks: str = ""
    advice: str = ""
    tested: str = ""


def _read_edf(path: Path) -> "mne.io.BaseRaw":
    check_edf(path, 2)
    return mne.io.read_raw_edf(path, infer_types=True, verbose="warning")


def _read_bdf(path: Path) -> "mne.io.BaseRaw":
    check_edf(path, 3)
    return mne.io.read_raw_bdf(path, infer_types=True, verbose="warning")


def _magic(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, flags=re.DOTALL)


_VENDOR, _WRITTEN = "files of the vendor's devices", "files written by MNE-Python"
_EDF_CHECKS = "header length, numbers of signals, records and samples, limits and rates against the file's length"
UNKNOWN = Format("unknown", _magic(b""))
FORMATS: tuple[Format, ...] = (
    Format(
        "FIF",
        _magic(re.escape(FIF_MAGIC)),
        ".fif",
        read_fif,
        send="the file: epochs, averages or continuous, unsplit; also gzipped",
        checks="every tag's place and length, directory, nesting, matrix sizes, channels, rate, references to files",
        tested=f"{_VENDOR}, {_WRITTEN}",
    ),
    Format("EDF", _magic(rb"0 {7}"), ".edf", _read_edf, "the file: EDF or EDF+", _EDF_CHECKS, tested=_VENDOR),
    Format("BDF", _magic(rb"\xffBIOSEMI"), ".bdf", _read_bdf, "the file: BDF or BDF+", _EDF_CHECKS, tested=_VENDOR),
    Format(
        "BrainVision",
        _magic(rb"(\xef\xbb\xbf)?Brain ?Vision (Data Exchange|Core Data Format) ?Header File"),
        ".vhdr",
        read_brainvision,
        send="a zip of .vhdr, .vmrk and .eeg or .dat",
        checks="names of companions, numbers of channels, rate, sample format, length of the data",
        tested=f"{_VENDOR}, {_WRITTEN}",
    ),
    Format(
        "EEGLAB",
        _magic(rb"MATLAB (5\.0|7\.3) MAT-file|\x89HDF\r\n"),
        ".set",
        read_eeglab,
        send="the .set file, or a zip of .set and .fdt; MATLAB 5 to 7 and 7.3",
        checks="every element's size, depth and class; HDF5 links, outside data, references; counts and rate",
        tested=f"files of EEGLAB (MATLAB 5 to 7), {_WRITTEN}; 7.3 with simulated files only",
    ),
    Format(
        "npz",
        _magic(rb"PK"),
        ".npz",
        SignalEpochs.load,
        send="the file: data, sfreq, ch_names, tmin as numpy.savez writes them",
        checks="names, packing, header, type and size of every array; no objects",
        tested="files written by numpy",
    ),
    Format(
        "KIT",
        _magic(rb"\x00{4}\x10\x00{3}\x20\x00{3}\x20\x00{3}"),
        ".sqd",
        read_kit,
        send="the .sqd or .con file; marker and digitiser files in a zip with it are left out",
        checks="every entry of the directory against the file's length",
        tested=_VENDOR,
    ),
    Format(
        "EGI .raw",
        _magic(rb"\x00{3}[\x02-\x07]\x07[\xc0-\xff]"),
        ".raw",
        read_egi_raw,
        send="the continuous simple binary file",
        checks="numbers of channels, events and samples against the file's length, rate",
        tested=_VENDOR,
    ),
    Format(
        "EGI .mff",
        _magic(_NEVER),
        ".bin",
        read_mff,
        send="a zip of the .mff folder",
        checks="every block of the signal file; no entities in XML",
        tested=_VENDOR,
    ),
    Format(
        "CTF",
        _magic(rb"MEG4[0-9]RS"),
        ".res4",
        read_ctf,
        send="a zip of the .ds folder",
        checks="numbers of channels and samples against the length of the data, rate",
        tested="a header of the vendor's devices with simulated samples",
    ),
    Format(
        "4D BTi",
        _magic(_NEVER),
        "",
        read_bti,
        send="a zip of the data file, config and hs_file",
        checks="that the data file ends in a header",
        tested=_VENDOR,
    ),
    Format(
        "XDF",
        _magic(rb"XDF:"),
        ".xdf",
        read_xdf,
        send="the file, with one EEG stream whose channels have labels",
        checks="every chunk's length, stream headers, units; no entities in XML",
        tested="simulated files",
    ),
    Format("SNIRF", _magic(_NEVER), advice="it holds optical signals (fNIRS), too slow for this; send EEG or MEG"),
    Format(
        "a BrainVision marker file",
        _magic(rb"(\xef\xbb\xbf)?Brain ?Vision (Data Exchange|Core Data Format) ?Marker File"),
        advice="send a zip of the .vhdr, .vmrk and .eeg files",
    ),
    Format("a CTF data file", _magic(rb"MEG4[0-9]CP"), advice="send a zip of the whole .ds folder"),
    Format("a bare .npy", _magic(rb"\x93NUMPY"), advice="save data, sfreq, ch_names, tmin with numpy.savez"),
    Format("Neuroscan .cnt", _magic(rb"Version [23]\.\d\x00"), advice="export to EDF, BrainVision or FIF"),
    Format("a text table", _magic(rb"(\xef\xbb\xbf)?[\t\r\n\x20-\x7e]{40}"), advice="convert it to npz, EDF or FIF"),
)
