"""Read a recording of any supported format as `SignalEpochs`.

The format is found in the content: names and suffixes of uploads prove nothing. Formats whose readers
are not in the table are never handed to MNE, because one of them (Neuroscan) can end the process.
Whatever goes wrong inside a reader comes out as `EpochsMismatch` with one plain sentence.
"""

import gzip
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mne

from encoders.companion_input import read_brainvision, read_eeglab
from encoders.cutting import cut_epochs
from encoders.edf_header import check_edf
from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.fif_input import FIF_MAGIC, read_fif
from encoders.recording_bounds import check_bounds, check_rate
from encoders.zip_input import MAX_RATIO, MAX_UNPACKED_BYTES, RATIO_GRACE_BYTES, unpack

_HEAD_BYTES = 4096
_DUPLICATES = re.compile(r"Channel names are not unique, found duplicates for: (\{.*?\})")


@dataclass(frozen=True)
class Format:
    """One format: how its first bytes look, the suffix that MNE wants, and its reader (None: known, not supported)."""

    name: str
    magic: re.Pattern[bytes]
    suffix: str = ""
    read: "Callable[[Path], SignalEpochs | mne.io.BaseRaw] | None" = None
    advice: str = ""


def read_epochs(
    path: Path,
    *,
    onsets: Sequence[float] | None = None,
    tmin: float = -0.2,
    tmax: float = 1.0,
    l_freq: float | None = None,
    h_freq: float | None = None,
) -> SignalEpochs:
    """Read a recording.

    Parameters
    ----------
    path : Path
        FIF (epochs, averages, continuous; also gzipped), EEGLAB .set, EDF, EDF+, BDF, the project's
        .npz, or a zip of a recording with its companions (.set + .fdt, .vhdr + .vmrk + .eeg).
    onsets : sequence of float, optional
        Stimulus onsets in seconds from the start of a continuous file; default: the file's events.
    tmin, tmax : float
        Epoch limits in seconds for continuous files.
    l_freq, h_freq : float, optional
        Pass band in Hz, applied to continuous files before they are cut.

    Returns
    -------
    SignalEpochs
        EEG and MEG channels in SI units at the file's own rate. Bad, EOG, ECG, stimulus and
        miscellaneous channels are left out. Averages count as one epoch per condition.

    Raises
    ------
    EpochsMismatch
        If the recording cannot be used; the message says why and names no path.
    """
    path = Path(path)
    if not path.is_file():
        raise EpochsMismatch("the recording is not a file; send one file, and pack formats made of several into a zip")
    with tempfile.TemporaryDirectory(prefix="phosphene-") as folder:
        main = _main_file(path, Path(folder))
        file_format = _format_of(main)
        if file_format.read is None:
            raise EpochsMismatch(f"the file is {file_format.name}, which is not supported; {file_format.advice}")
        try:
            staged = _staged(main, Path(folder), file_format.suffix)
            epochs = _read(staged, file_format, onsets, (tmin, tmax), (l_freq, h_freq))
            check_bounds(epochs)
            return epochs
        except EpochsMismatch:
            raise
        except Exception as error:
            raise EpochsMismatch(
                f"the file looks like {file_format.name}, but cannot be read ({_plain(error)}); export it again"
            ) from error


def _read(
    path: Path,
    file_format: Format,
    onsets: Sequence[float] | None,
    limits: tuple[float, float],
    band: tuple[float | None, float | None],
) -> SignalEpochs:
    assert file_format.read is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recording = file_format.read(path)
        for warning in caught:
            duplicates = _DUPLICATES.search(str(warning.message))
            if duplicates:
                raise EpochsMismatch(f"channel names {duplicates.group(1)} appear more than once; rename them")
        if not isinstance(recording, SignalEpochs):
            check_rate(float(recording.info["sfreq"]))
            return cut_epochs(recording, onsets, *limits, *band)
    if onsets is not None:
        raise EpochsMismatch(f"onsets were given, but the {file_format.name} file is already cut; leave onsets out")
    return recording


def _main_file(path: Path, folder: Path) -> Path:
    """Return the recording's main file, unpacked into ``folder`` if ``path`` is a zip or gzip."""
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith(b"\x1f\x8b"):
        return _gunzip(path, folder / "recording.fif")
    if not head.startswith(b"PK") or _is_npz(path):
        return path
    files = unpack(path, folder)
    mains = [file for file in files if _is_main(file)]
    if len(mains) > 1:
        raise EpochsMismatch(f"the zip has {len(mains)} recordings, expected one with its companions; send them apart")
    if not mains:
        known = {file.name: _format_of(file, default=True).name for file in files[:10]}
        raise EpochsMismatch(f"no file in the zip starts a supported recording (found {known}); {_expected()}")
    return mains[0]


def _is_main(path: Path) -> bool:
    return _format_of(path, default=True).read is not None


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def _gunzip(path: Path, target: Path) -> Path:
    written = 0
    limit = min(MAX_UNPACKED_BYTES, RATIO_GRACE_BYTES + MAX_RATIO * path.stat().st_size)
    try:
        with gzip.open(path) as source, target.open("xb") as sink:
            while chunk := source.read(1024**2):
                written += len(chunk)
                if written > limit:
                    raise EpochsMismatch(f"the gzip unpacks to more than {limit} bytes; send the recording itself")
                sink.write(chunk)
    except (OSError, EOFError, zlib.error) as error:
        raise EpochsMismatch("the gzip is damaged or cut short; copy it again") from error
    return target


def _format_of(path: Path, default: bool = False) -> Format:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    for file_format in FORMATS:
        if file_format.magic.match(head):
            return file_format
    if default:
        return UNKNOWN
    raise EpochsMismatch(f"the content of the file is of no known recording format; {_expected()}")


def _expected() -> str:
    names = [file_format.name for file_format in FORMATS if file_format.read is not None]
    return f"send one of {', '.join(names)}, or a zip of a recording with its companion files"


def _plain(error: Exception) -> str:
    """Return the first sentence of an error without paths, for a message that leaves the machine."""
    text = re.sub(r"[\w.~-]*(/[^\s'\",:;()]+)+", "<file>", str(error).strip().split("\n")[0])
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _staged(path: Path, folder: Path, suffix: str) -> Path:
    """Return a name for ``path`` that ends in ``suffix``: MNE's readers insist on theirs."""
    if path.suffix.lower() == suffix:
        return path
    link = folder / f"phosphene-recording{suffix}"
    link.symlink_to(path.resolve())
    return link


def _read_edf(path: Path) -> "mne.io.BaseRaw":
    check_edf(path, 2)
    return mne.io.read_raw_edf(path, infer_types=True, verbose="warning")


def _read_bdf(path: Path) -> "mne.io.BaseRaw":
    check_edf(path, 3)
    return mne.io.read_raw_bdf(path, infer_types=True, verbose="warning")


def _magic(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, flags=re.DOTALL)


UNKNOWN = Format("unknown", _magic(b""))
FORMATS: tuple[Format, ...] = (
    Format("FIF", _magic(re.escape(FIF_MAGIC)), ".fif", read_fif),
    Format("EDF", _magic(rb"0 {7}"), ".edf", _read_edf),
    Format("BDF", _magic(rb"\xffBIOSEMI"), ".bdf", _read_bdf),
    Format(
        "BrainVision",
        _magic(rb"(\xef\xbb\xbf)?Brain ?Vision (Data Exchange|Core Data Format) ?Header File"),
        ".vhdr",
        read_brainvision,
    ),
    Format("EEGLAB", _magic(rb"MATLAB (5\.0|7\.3) MAT-file|\x89HDF\r\n"), ".set", read_eeglab),
    Format("npz", _magic(rb"PK"), ".npz", SignalEpochs.load),
    Format(
        "a BrainVision marker file",
        _magic(rb"(\xef\xbb\xbf)?Brain ?Vision (Data Exchange|Core Data Format) ?Marker File"),
        advice="send a zip of the .vhdr, .vmrk and .eeg files",
    ),
    Format("Neuroscan .cnt", _magic(rb"Version [23]\.\d\x00"), advice="export to EDF, BrainVision or FIF"),
    Format("EGI", _magic(rb"\x00{3}[\x02-\x07]\x07[\xc0-\xff]"), advice="export to EDF, BrainVision or FIF"),
    Format("KIT", _magic(rb"\x00{4}\x10\x00{3}\x20\x00{3}\x20\x00{3}"), advice="convert to FIF with MNE-Python"),
    Format("CTF", _magic(rb"MEG4[0-9](RS|CP)"), advice="convert the .ds folder to FIF with MNE-Python"),
    Format("XDF", _magic(rb"XDF:"), advice="convert to EDF, BrainVision or FIF"),
    Format("a text table", _magic(rb"(\xef\xbb\xbf)?[\t\r\n\x20-\x7e]{40}"), advice="convert it to npz, EDF or FIF"),
)
