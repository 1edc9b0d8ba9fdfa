"""Files with binary headers, KIT ``.sqd``/``.con`` and EGI ``.raw``: announced sizes are compared with the file."""

import struct
from pathlib import Path

import mne
import numpy as np

from encoders.epochs import EpochsMismatch
from encoders.part_bounds import at_most
from encoders.recording_bounds import MAX_CHANNELS, check_rate

_ENTRY = struct.Struct("<I3i")
_MAX_ENTRIES = 64
MAX_EGI_EVENTS, MAX_EGI_KINDS = 30_000, 256
_BLOCK = 4096
_EGI_HEAD = struct.Struct(">i6hi5hih")
_EGI_SAMPLE_BYTES = {2: 2, 4: 4, 6: 8}


def read_kit(path: Path) -> "mne.io.BaseRaw":
    """Read a KIT file; sensors stay in the device's frame, as digitiser files come in more than one unit.

    Raises
    ------
    EpochsMismatch
        If the directory at the file's start does not fit its length.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(_ENTRY.size)
        n_entries = _ENTRY.unpack(first)[3] if len(first) == _ENTRY.size else 0
        if not 8 <= n_entries <= _MAX_ENTRIES:
            raise EpochsMismatch("the directory of the KIT file is damaged; copy the file again")
        table = first + file.read(_ENTRY.size * (n_entries - 1))
    for offset, n_bytes, _, count in _ENTRY.iter_unpack(table[: len(table) // _ENTRY.size * _ENTRY.size]):
        if n_bytes < 0 or count < 0 or offset + n_bytes * count > size:
            raise EpochsMismatch("the directory of the KIT file points beyond its end; copy the file again")
    return mne.io.read_raw_kit(path, verbose="error")


def read_egi_raw(path: Path) -> "mne.io.BaseRaw":
    """Read an EGI simple binary file.

    Raises
    ------
    EpochsMismatch
        If the header announces impossible numbers or more samples than the file holds.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_EGI_HEAD.size)
    if len(head) < _EGI_HEAD.size:
        raise EpochsMismatch("the EGI file is cut short; copy it again")
    fields = _EGI_HEAD.unpack(head)
    version, sfreq, n_channels, n_samples, n_events = fields[0], fields[8], fields[9], fields[13], fields[14]
    if version % 2:
        raise EpochsMismatch("the EGI file is segmented, expected a continuous one; export it unsegmented or as .mff")
    check_rate(float(sfreq))
    n_bytes = _EGI_SAMPLE_BYTES.get(version, 0) * n_samples * (n_channels + n_events)
    if not 1 <= n_channels <= MAX_CHANNELS or not 0 <= n_events <= MAX_CHANNELS or not 0 < n_bytes <= size:
        raise EpochsMismatch(
            f"the EGI file announces {n_samples} samples of {n_channels} channels and {n_events} events, which do not "
            f"fit its {size} bytes; copy it again"
        )
    _check_egi_events(path, fields[0], n_channels, n_samples, n_events)
    return mne.io.read_raw_egi(path, verbose="error")


def _check_egi_events(path: Path, version: int, n_channels: int, n_samples: int, n_events: int) -> None:
    """Count the events, which stand behind the channels of every sample: each becomes an annotation."""
    kind = np.dtype(f">{'i' if version == 2 else 'f'}{_EGI_SAMPLE_BYTES[version]}")
    start = _EGI_HEAD.size + 4 * n_events
    if start + kind.itemsize * n_samples * (n_channels + n_events) > path.stat().st_size:
        raise EpochsMismatch("the EGI file is cut short; copy it again")
    table = np.memmap(path, kind, "r", offset=start, shape=(n_samples, n_channels + n_events))
    n_found = sum(int(np.count_nonzero(table[at : at + _BLOCK, n_channels:])) for at in range(0, n_samples, _BLOCK))
    most, most_kinds = at_most(MAX_EGI_EVENTS), at_most(MAX_EGI_KINDS)
    if n_events > most_kinds or n_found > most:
        raise EpochsMismatch(
            f"the EGI file holds {n_found} events of {n_events} kinds, at most {most} of {most_kinds} "
            "are read; send a part of the recording"
        )
