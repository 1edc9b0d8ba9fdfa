"""Read a recording of any supported format as `SignalEpochs`.

The format is found in the content (`encoders.formats`): names and suffixes of uploads prove nothing.
Whatever goes wrong inside a reader comes out as `EpochsMismatch` with one plain sentence.
"""

import gzip
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mne

from encoders.cutting import cut_epochs
from encoders.durable_files import is_full
from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.folder_input import folder_recording
from encoders.formats import FORMATS, UNKNOWN, Format
from encoders.quotation import printable
from encoders.recording_bounds import check_bounds, check_rate
from encoders.zip_input import MAX_RATIO, MAX_UNPACKED_BYTES, RATIO_GRACE_BYTES, unpack

_HEAD_BYTES = 4096
_PATHS = re.compile(r"[\w.~-]*(/[^\s'\",:;()]+)+")
_QUOTED = re.compile(r"(['\"]).*?(\1|$)")
_DUPLICATES = re.compile(r"Channel names are not unique, found duplicates for: (\{.*?\})")


def read_epochs(
    path: Path,
    *,
    onsets: Sequence[float] | None = None,
    tmin: float = -0.2,
    tmax: float = 1.0,
    l_freq: float | None = None,
    h_freq: float | None = None,
    max_onsets: int | None = None,
) -> SignalEpochs:
    """Read a recording.

    Parameters
    ----------
    path : Path
        A recording in one of `encoders.formats.FORMATS`, or a zip of a recording with all of its files (.set + .fdt,
        .vhdr + .vmrk + .eeg, the files of a .ds or .mff folder).
    onsets : sequence of float, optional
        Stimulus onsets in seconds from the start of a continuous file; default: the file's events.
    tmin, tmax : float
        Epoch limits in seconds for continuous files.
    l_freq, h_freq : float, optional
        Pass band in Hz, applied to continuous files before they are cut.
    max_onsets : int, optional
        Continuous files with more onsets are refused.

    Returns
    -------
    SignalEpochs
        EEG and MEG channels in SI units at the file's own rate. Bad, EOG, ECG, stimulus and
        miscellaneous channels are left out. Averages count as one epoch per condition.

    Raises
    ------
    EpochsMismatch
        If the recording cannot be used; the message says why and names no path.
    OSError
        If there is no room to unpack it.
    """
    with opened_recording(path) as (recording, kind):
        if isinstance(recording, SignalEpochs):
            if onsets is not None:
                raise EpochsMismatch(f"onsets were given, but the {kind} file is already cut; leave onsets out")
            epochs = recording
        else:
            epochs = cut_epochs(recording, onsets, tmin, tmax, l_freq, h_freq, max_onsets)
        check_bounds(epochs)
        return epochs


@contextmanager
def opened_recording(path: Path) -> Iterator[tuple["SignalEpochs | mne.io.BaseRaw", str]]:
    """Open a recording, whose samples may be read inside the context only; what fails there is told as here.

    Parameters
    ----------
    path : Path
        As for `read_epochs`.

    Yields
    ------
    recording : SignalEpochs or mne.io.BaseRaw
        Epochs if the file holds some, else the continuous recording.
    kind : str
        Name of the format.

    Raises
    ------
    EpochsMismatch
        If the recording cannot be used; the message says why and names no path.
    OSError
        If there is no room to unpack it.
    """
    path = Path(path)
    if not path.is_file():
        raise EpochsMismatch("the recording is not a file; send one file, and pack formats made of several into a zip")
    with tempfile.TemporaryDirectory(prefix="phosphene-") as folder:
        main, file_format = _main_file(path, Path(folder))
        if file_format.read is None:
            raise EpochsMismatch(f"the file is {file_format.name}, which is not supported; {file_format.advice}")
        try:
            recording = _read(_staged(main, Path(folder), file_format.suffix), file_format)
            yield recording, file_format.name
        except EpochsMismatch:
            raise
        except Exception as error:
            if is_full(error):
                raise
            raise EpochsMismatch(
                f"the file looks like {file_format.name}, but cannot be read ({_plain(error)}); export it again"
            ) from error


def _read(path: Path, file_format: Format) -> "SignalEpochs | mne.io.BaseRaw":
    assert file_format.read is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recording = file_format.read(path)
    for warning in caught:
        duplicates = _DUPLICATES.search(str(warning.message))
        if duplicates:
            named = _PATHS.sub("<file>", printable(duplicates.group(1), 200))
            raise EpochsMismatch(f"channel names {named} appear more than once; rename them")
    if not isinstance(recording, SignalEpochs):
        check_rate(float(recording.info["sfreq"]))
    return recording


def _main_file(path: Path, folder: Path) -> tuple[Path, Format]:
    """Return the recording's main file, unpacked into ``folder`` if ``path`` is a zip or gzip, and its format."""
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith(b"\x1f\x8b"):
        main = _gunzip(path, folder / "recording.fif")
        return main, _format_of(main)
    if not head.startswith(b"PK") or _is_npz(path):
        return path, _format_of(path)
    files = unpack(path, folder)
    mains = [file for file in files if _is_main(file)]
    if len(mains) > 1 and _format_of(mains[0]).suffix == ".sqd":
        mains = [file for file in mains if "mrk" not in file.name.lower()]  # KIT writes markers in the same format
    if len(mains) > 1:
        raise EpochsMismatch(f"the zip has {len(mains)} recordings, expected one with its companions; send them apart")
    if mains:
        return mains[0], _format_of(mains[0])
    found = folder_recording(files)
    if found is None:
        known = {file.name: _format_of(file, default=True).name for file in files[:10]}
        raise EpochsMismatch(f"no file in the zip starts a supported recording (found {known}); {_expected()}")
    name, main = found
    return main, next(file_format for file_format in FORMATS if file_format.name == name)


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
        if is_full(error):
            raise
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
    """Return the first sentence of an error without paths and quotations, for a message that leaves the machine.

    What a library quotes stood in the file, and may be the name of a person.
    """
    # a name may have any length, and the search for paths takes the square of it
    text = printable(str(error).strip().split("\n")[0], 1000)
    text = _QUOTED.sub("'...'", _PATHS.sub("<file>", text))
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _staged(path: Path, folder: Path, suffix: str) -> Path:
    """Return a name for ``path`` that ends in ``suffix``: MNE's readers insist on theirs."""
    if path.suffix.lower() == suffix or not suffix:
        return path
    link = folder / f"phosphene-recording{suffix}"
    link.symlink_to(path.resolve())
    return link
