"""The tags of a FIF file, walked before any reader sees them: where they lie, how they nest, what they announce.

A tag says where the next one stands and how large its value is, a directory repeats both for all tags, and blocks nest.
Readers follow what they are told, so all of it is compared with the file. Layout: Neuromag's fiff.h, as MNE reads it.
"""

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from encoders.epochs import EpochsMismatch
from encoders.part_bounds import at_most
from encoders.recording_bounds import MAX_CHANNELS, MAX_SFREQ

MAX_TAGS = 300_000
# MNE opens the file anew for every average, and walks all of its tags then.
MAX_TAGS_OF_AVERAGES = 300_000
MAX_NOTES = 20_000
MAX_DEPTH = 24
_HEAD = struct.Struct(">4i")
_FILE_ID, _DIRECTORY_AT, _DIRECTORY, _START, _END, _ROLE = 100, 101, 102, 104, 105, 115
_N_CHANNELS, _CHANNEL, _SFREQ, _SKIP = 200, 203, 201, 301
_AVERAGE = 104  # a block
_ONSETS = 3568  # of annotations, or the one start of a baseline
_PREVIOUS_FILE, _NEXT_FILE = 1, 2
_FILE_NUMBER, _FILE_NAME = 117, 118
_CHANNEL_BYTES = 96
_DENSE, _SPARSE = 0x40000000, (0x40100000, 0x40200000)
_INT = 3
# Bytes per element of the plain types; what is not here is a structure or text, which MNE cuts by length.
_ELEMENT_BYTES = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 7: 2, 8: 4, 11: 8, 13: 2, 16: 2, 20: 8, 21: 16}
_POINTER_TAG = 2  # readers look for the directory's place in the second tag only
_SPLIT = "the recording goes on in a second FIF file; save it unsplit, or cut epochs first"
_DAMAGED = "the FIF file is damaged or cut short; copy it again"


@dataclass
class _Seen:
    """What was met on the way through a file."""

    tags: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    blocks: set[int] = field(default_factory=set)
    n_averages: int = 0
    depth: int = 0
    directory_at: int = -1
    role: int = 0


def blocks_of(path: Path) -> set[int]:
    """Check a FIF file and return the codes of all blocks in it.

    Raises
    ------
    EpochsMismatch
        If a tag, the directory or a matrix does not fit the file, blocks nest too deep, a number is impossible, or the
        recording goes on in another file.
    """
    size = path.stat().st_size
    seen = _Seen()
    with path.open("rb") as file:
        position = 0
        while position >= 0:
            position = _tag(file, position, size, seen)
        if seen.directory_at > 0 and seen.directory_at not in seen.tags:
            _tag(file, seen.directory_at, size, seen)  # it often stands behind the tag that says it is the last
        _check_directory(file, seen)
    if seen.n_averages * len(seen.tags) > at_most(MAX_TAGS_OF_AVERAGES):
        raise EpochsMismatch(
            f"the FIF file holds {seen.n_averages} averages in {len(seen.tags)} tags, too many to read in time; save "
            "them in several files, or as epochs"
        )
    return seen.blocks


def _tag(file: IO[bytes], position: int, size: int, seen: _Seen) -> int:
    """Check the tag at ``position`` and return where the next one stands, -1 if none does."""
    file.seek(position)
    header = file.read(_HEAD.size)
    if not header:
        return -1
    if len(header) < _HEAD.size or len(seen.tags) >= at_most(MAX_TAGS):
        raise EpochsMismatch(_DAMAGED)
    kind, type_, length, following = _HEAD.unpack(header)
    end = position + _HEAD.size + length
    if length < 0 or end > size or (following > 0 and not end <= following <= size):
        raise EpochsMismatch(_DAMAGED)
    seen.tags[position] = (kind, type_, length)
    if kind == _ONSETS and length > (most := at_most(MAX_NOTES)) * _ELEMENT_BYTES.get(type_, 1):
        raise EpochsMismatch(f"the FIF file has more than {most} annotations; save it with those of stimuli alone")
    if kind in _LOOKED_AT:
        _check_value(file, kind, type_, length, seen)
    if type_ & 0x7FFF0000:
        _check_matrix(file, end, type_, length)
    if following < 0:
        return -1
    return int(following) or end


_WHOLE = {_DIRECTORY_AT, _START, _END, _ROLE, _N_CHANNELS, _SKIP}
_LOOKED_AT = {*_WHOLE, _FILE_ID, _CHANNEL, _SFREQ, _FILE_NUMBER, _FILE_NAME}


def _check_value(file: IO[bytes], kind: int, type_: int, length: int, seen: _Seen) -> None:
    if kind in (_FILE_NUMBER, _FILE_NAME):
        if seen.role != _PREVIOUS_FILE:
            raise EpochsMismatch(_SPLIT)
        return
    if kind == _CHANNEL and length < _CHANNEL_BYTES:
        raise EpochsMismatch(_DAMAGED)
    # readers take the number by its type, so it must be the one that is looked at here
    if length < 4 or (kind in _WHOLE and (type_, length) != (_INT, 4)):
        raise EpochsMismatch(_DAMAGED)
    raw = file.read(4)
    (value,) = struct.unpack(">i", raw)
    if kind == _START:
        seen.blocks.add(value)
        seen.n_averages += value == _AVERAGE
        seen.depth += 1
        seen.role = 0
    elif kind == _END:
        seen.depth -= 1
        seen.role = 0
    elif kind == _DIRECTORY_AT:
        if len(seen.tags) != _POINTER_TAG:
            raise EpochsMismatch(_DAMAGED)
        seen.directory_at = value
    elif kind == _ROLE:
        if value == _NEXT_FILE:
            raise EpochsMismatch(_SPLIT)
        seen.role = value
    elif kind == _N_CHANNELS and not 1 <= value <= MAX_CHANNELS:
        raise EpochsMismatch(f"the FIF file announces {value} channels, expected 1 to {MAX_CHANNELS}; save it again")
    elif kind == _SKIP and value < 0:
        raise EpochsMismatch(_DAMAGED)
    elif kind == _SFREQ:
        (sfreq,) = struct.unpack(">f", raw)
        if not (math.isfinite(sfreq) and 0 < sfreq <= MAX_SFREQ):
            raise EpochsMismatch(f"the FIF file gives the sampling rate {sfreq:g} Hz, expected more than 0; correct it")
    if not 0 <= seen.depth <= MAX_DEPTH:
        raise EpochsMismatch(f"the FIF file nests its blocks wrongly or deeper than {MAX_DEPTH}; save it again")


def _check_matrix(file: IO[bytes], end: int, type_: int, length: int) -> None:
    """Compare the sizes of a matrix, which stand at its end, with its length."""
    coding, element = type_ & 0x7FFF0000, type_ & 0xFFFF
    if (coding != _DENSE and coding not in _SPARSE) or element not in _ELEMENT_BYTES or length < 8:
        raise EpochsMismatch(_DAMAGED)
    file.seek(end - 4)
    (n_dims,) = struct.unpack(">i", file.read(4))
    n_words = n_dims + 1 + (coding in _SPARSE)
    if not 1 <= n_dims <= 4 or length < 4 * n_words:
        raise EpochsMismatch(_DAMAGED)
    file.seek(end - 4 * n_words)
    sizes = struct.unpack(f">{n_words - 1}i", file.read(4 * (n_words - 1)))
    if min(sizes) < 0:
        raise EpochsMismatch(_DAMAGED)
    held = length - 4 * n_words
    if coding == _DENSE:
        fits = math.prod(sizes) * _ELEMENT_BYTES[element] == held
    else:
        fits = sizes[-1] * (_ELEMENT_BYTES[element] + 4) <= held and max(sizes) <= length
    if not fits:
        raise EpochsMismatch(_DAMAGED)


def _check_directory(file: IO[bytes], seen: _Seen) -> None:
    """Compare the directory, which readers trust instead of the tags, with the tags."""
    if seen.directory_at <= 0:
        return
    kind, _, length = seen.tags.get(seen.directory_at, (0, 0, 0))
    if kind != _DIRECTORY or length % _HEAD.size:
        raise EpochsMismatch(_DAMAGED)
    file.seek(seen.directory_at + _HEAD.size)
    last, listed = -1, set()
    for entry in _HEAD.iter_unpack(file.read(length)):
        position = entry[3]
        if entry[0] == -1:  # the mark of the end
            continue
        if position <= last or seen.tags.get(position) != entry[:3]:
            raise EpochsMismatch(_DAMAGED)
        last = position
        listed.add(position)
    # a block or a role that the directory leaves out would be none for readers
    if any(kind in (_START, _END, _ROLE) and position not in listed for position, (kind, *_) in seen.tags.items()):
        raise EpochsMismatch(_DAMAGED)
