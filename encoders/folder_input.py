"""Recordings that are folders: CTF ``.ds``, 4D BTi and EGI ``.mff``, unpacked flat from a zip.

Readers want the folder under its own name, so it is put together again from links beside a copy of nothing; headers are
compared with the data files first, and XML that declares entities is refused.
"""

import math
import re
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mne
import numpy as np

from encoders.bti_header import check_bti
from encoders.ctf_companions import check_ctf_companions
from encoders.epochs import EpochsMismatch
from encoders.part_bounds import at_most
from encoders.plain_xml import is_plain_xml
from encoders.recording_bounds import MAX_BYTES, MAX_CHANNELS, check_rate

MAX_XML_BYTES = 16 << 20
MAX_BLOCKS = 200_000
MAX_EVENTS, MAX_KINDS = 10_000, 1000
_CTF_COUNTS, _CTF_RATE, _CTF_TRIALS = 1288, 1296, 1312
_BTI_CONFIG = re.compile(r"(?i)config([_.-].*)?")
_BTI_HEAD_SHAPE = re.compile(r"(?i)(hs_file|hs)([_.-].*)?")
_CODE = re.compile(rb"code[^>]{0,99}>(.{0,200}?)</", re.DOTALL)
_SIGNAL_NAME, _INFO_NAME = "signal1.bin", "info.xml"


def folder_recording(files: Sequence[Path]) -> tuple[str, Path] | None:
    """Return the name of the format and the main file, if the files are those of a 4D BTi or MFF folder."""
    names = {file.name: file for file in files}
    if _SIGNAL_NAME in names and _INFO_NAME in names:
        return "EGI .mff", names[_SIGNAL_NAME]
    configs = [file for file in files if _BTI_CONFIG.fullmatch(file.name)]
    others = [file for file in files if file not in configs and not _BTI_HEAD_SHAPE.fullmatch(file.name)]
    return ("4D BTi", others[0]) if len(configs) == 1 and len(others) == 1 else None


def read_ctf(path: Path) -> "mne.io.BaseRaw":
    """Read the folder around a CTF ``.res4``.

    Raises
    ------
    EpochsMismatch
        If the header announces impossible numbers, or the data file does not hold what it announces.
    """
    if path.suffix != ".res4":
        raise EpochsMismatch("the CTF header is not named .res4; pack the .ds folder as the scanner wrote it")
    with path.open("rb") as file:
        head = file.read(_CTF_TRIALS + 2)
    if len(head) < _CTF_TRIALS + 2:
        raise EpochsMismatch("the CTF header (.res4) is cut short; pack the .ds folder again")
    n_samples, n_channels = struct.unpack_from(">ih", head, _CTF_COUNTS)
    (sfreq,) = struct.unpack_from(">d", head, _CTF_RATE)
    (n_trials,) = struct.unpack_from(">h", head, _CTF_TRIALS)
    _check_counts("CTF header", n_channels, n_samples, sfreq)
    data = [file for file in path.parent.iterdir() if file.suffix.lower().endswith("meg4")]
    n_bytes = sum(file.stat().st_size - 8 for file in data)
    if not data or n_bytes < 4 * n_channels * n_samples:
        raise EpochsMismatch(
            f"the CTF data (.meg4) holds {max(n_bytes, 0)} bytes, expected {4 * n_channels * n_samples} for each of "
            f"{n_trials} trials; pack the whole .ds folder"
        )
    check_ctf_companions(path.parent)
    with _folder("recording.ds", _renamed(path.parent, path.stem, "recording")) as folder:
        return mne.io.read_raw_ctf(folder, preload=True, verbose="error")


def read_bti(path: Path) -> "mne.io.BaseRaw":
    """Read a 4D BTi data file with the configuration, and the head shape if there is one, that lie beside it."""
    beside = sorted(path.parent.iterdir())
    configs = [file for file in beside if _BTI_CONFIG.fullmatch(file.name)]
    shapes = [file for file in beside if _BTI_HEAD_SHAPE.fullmatch(file.name)]
    if len(configs) != 1:
        raise EpochsMismatch("a 4D BTi recording needs one file named config beside its data; pack both into a zip")
    head_shape = shapes[0] if len(shapes) == 1 else None
    check_bti(path, configs[0], head_shape)
    return mne.io.read_raw_bti(
        path,
        config_fname=configs[0],
        head_shape_fname=head_shape,
        rename_channels=False,
        preload=True,
        verbose="error",
    )


def read_mff(path: Path) -> "mne.io.BaseRaw":
    """Read the folder around an MFF ``signal1.bin``."""
    _check_events([file.read_bytes() for file in path.parent.iterdir() if file.name.startswith("Events")])
    for file in path.parent.iterdir():
        if file.suffix.lower() == ".xml":
            _check_xml(file)
        if "signal" in file.name and file.suffix == ".bin":
            _check_signal(file)
    with _folder("recording.mff", _renamed(path.parent, "", "")) as folder:
        return mne.io.read_raw_egi(folder, preload=True, verbose="error")


def _check_counts(what: str, n_channels: int, n_samples: int, sfreq: float) -> None:
    if not 1 <= n_channels <= MAX_CHANNELS or n_samples < 1 or 8 * n_channels * n_samples > MAX_BYTES:
        raise EpochsMismatch(
            f"the {what} announces {n_channels} channels of {n_samples} samples, expected 1 to {MAX_CHANNELS} channels "
            f"and at most {MAX_BYTES} bytes; export the recording again"
        )
    check_rate(sfreq if math.isfinite(sfreq) else math.nan)


def _check_xml(path: Path) -> None:
    if path.stat().st_size > (most := at_most(MAX_XML_BYTES)):
        raise EpochsMismatch(f"an XML file of the recording has more than {most} bytes; export it again")
    if not is_plain_xml(path.read_bytes()):
        raise EpochsMismatch("an XML file of the recording declares entities or is not UTF-8; export it again")


def _check_events(tracks: Sequence[bytes]) -> None:
    """Bound the events and their kinds: the reader goes through all events for every kind."""
    n_words = sum(track.count(b"event") for track in tracks)  # at least one in each
    kinds = {code for track in tracks for code in _CODE.findall(track)}
    most, most_kinds = at_most(MAX_EVENTS), at_most(MAX_KINDS)
    if n_words > 3 * most or len(kinds) > most_kinds:
        raise EpochsMismatch(
            f"the .mff folder has more than {most} events or {most_kinds} kinds of them; send a part of it"
        )


def _check_signal(path: Path) -> None:
    """Walk the blocks of a signal file: each says how long it is."""
    size = path.stat().st_size
    position, length, n_blocks = 0, 0, 0
    with path.open("rb") as file:
        while position < size:
            n_blocks += 1
            if n_blocks > (most := at_most(MAX_BLOCKS)):
                raise EpochsMismatch(f"the signal file has more than {most} blocks; send a part of the recording")
            file.seek(position)
            flag, n_header, n_block, n_channels = np.frombuffer(file.read(16).ljust(16, b"\x00"), "<i4").tolist()
            if flag == 1:
                if not 1 <= n_channels <= MAX_CHANNELS or not 16 + 8 * n_channels <= n_header <= size or n_block < 0:
                    raise EpochsMismatch("a block of the signal file announces impossible sizes; export it again")
                length = n_block
                position += n_header + n_block
            elif flag == 0 and length:
                position += 4 + length
            else:
                raise EpochsMismatch("the signal file is damaged; export the recording again")
    if position != size or not size:
        raise EpochsMismatch("the signal file is cut short; pack the whole .mff folder")


def _renamed(folder: Path, stem: str, new: str) -> dict[str, Path]:
    files = [file for file in folder.iterdir() if file.is_file()]
    names = {f"{new}{file.suffix}" if stem and file.stem == stem else file.name: file for file in files}
    if len(names) < len(files):
        raise EpochsMismatch("the folder holds files of two recordings; pack one .ds folder")
    return names


@contextmanager
def _folder(name: str, files: dict[str, Path]) -> Iterator[Path]:
    """Put a folder of links together, for a reader that looks at names."""
    with tempfile.TemporaryDirectory(prefix="phosphene-") as work:
        folder = Path(work) / name
        folder.mkdir()
        for link, target in files.items():
            (folder / link).symlink_to(target.resolve())
        yield folder
