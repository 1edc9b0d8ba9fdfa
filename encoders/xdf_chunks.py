"""The chunks of an XDF file, walked as pyxdf will walk them, so that what was checked is what is read.

pyxdf goes from one chunk to the next by what it has read of it, whatever length the chunk claims, and after a fault it
looks for the next boundary anywhere. So each length must be that of its content to the byte. Layout: "XDF
specification" 1.0.
"""

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from encoders.epochs import EpochsMismatch
from encoders.part_bounds import at_most
from encoders.plain_xml import is_plain_xml
from encoders.recording_bounds import MAX_BYTES, MAX_CHANNELS

MAX_CHUNKS = 100_000
# pyxdf fits every stretch between two breaks on its own, and every text may be a marker.
MAX_BREAKS, BREAK_S, BREAK_SAMPLES, MAX_TEXTS = 1000, 1.0, 500, 30_000
MAX_STREAMS = 64
MAX_XML_BYTES = 4 << 20
# LabRecorder measures the clock of a stream every 5 s. A computer that is started again sets its clock anew.
MAX_CLOCK_OFFSETS, MAX_CLOCK_RESETS, RESET_S = 100_000, 50, 0.5
_FILE_HEADER, _STREAM_HEADER, _SAMPLES, _CLOCK_OFFSET, _BOUNDARY, _FOOTER = range(1, 7)
_OF_A_STREAM = (_STREAM_HEADER, _SAMPLES, _CLOCK_OFFSET, _FOOTER)
_TIME = struct.Struct("<d")
_ITEM_BYTES = {"int8": 1, "int16": 2, "int32": 4, "int64": 8, "float32": 4, "double64": 8}
_DAMAGED = "the XDF file is damaged or cut short; copy it again"


@dataclass
class _Stream:
    """What a stream announced, what was counted, the last time and the measurements of its clock, s.

    Strings have 0 ``item_bytes``. A sample without a time comes ``step_s`` after the last.
    """

    n_channels: int
    item_bytes: int
    step_s: float
    break_s: float
    n_breaks: int = 0
    n_texts: int = 0
    last: float = 0.0
    clock: list[tuple[float, float]] = field(default_factory=list)


def check_chunks(path: Path) -> None:
    """Check lengths, descriptions and samples of all chunks.

    Raises
    ------
    EpochsMismatch
        If a chunk is not as long as its content, belongs to no stream, or announces what no recording has.
    """
    content = path.read_bytes()
    position, n_chunks, streams = 4, 0, dict[bytes, _Stream]()
    while position < len(content):
        n_chunks += 1
        length, position = _length(content, position)
        if n_chunks > (most := at_most(MAX_CHUNKS)):
            raise EpochsMismatch(f"the XDF file has more than {most} chunks, which take too long; send a part")
        if length < 2 or position + length > len(content):
            raise EpochsMismatch(_DAMAGED)
        kind = int.from_bytes(content[position : position + 2], "little")
        _check_chunk(kind, content[position + 2 : position + length], streams)
        position += length
    _check_clocks(streams)


def _check_chunk(kind: int, body: bytes, streams: dict[bytes, _Stream]) -> None:
    if kind == _FILE_HEADER:
        _parse(body)
    if kind not in _OF_A_STREAM:
        return
    name, body = body[:4], body[4:]
    if len(name) != 4:
        raise EpochsMismatch(_DAMAGED)
    if kind == _STREAM_HEADER:
        if name in streams or len(streams) == MAX_STREAMS:
            raise EpochsMismatch(
                f"the XDF file describes a stream twice, or more than {MAX_STREAMS}; send the EEG and its markers"
            )
        streams[name] = _announced(body)
        return
    if name not in streams:
        raise EpochsMismatch("the XDF file has chunks of a stream that it does not describe; copy it again")
    stream = streams[name]
    if kind == _FOOTER:
        _parse(body)
    elif kind == _SAMPLES:
        _check_samples(body, stream)
    elif len(body) == 16:
        stream.clock.append(struct.unpack("<2d", body))
    else:
        raise EpochsMismatch(_DAMAGED)


def _check_samples(body: bytes, stream: _Stream) -> None:
    """Walk the samples: each has its time or none, then its values, and the last ends where the chunk does."""
    n_samples, position = _length(body, 0)
    if n_samples > len(body):
        raise EpochsMismatch(_DAMAGED)
    for _ in range(n_samples):
        n_time = body[position] if position < len(body) else -1
        if n_time not in (0, 8):
            raise EpochsMismatch(_DAMAGED)
        if n_time and position + 9 <= len(body):
            (time,) = _TIME.unpack_from(body, position + 1)
            stream.n_breaks += not abs(time - stream.last) <= stream.break_s
            stream.last = time
        else:
            stream.last += stream.step_s
        position += 1 + n_time + stream.n_channels * stream.item_bytes
        if not stream.item_bytes:
            stream.n_texts += stream.n_channels
            for _ in range(stream.n_channels):
                length, position = _length(body, position)
                position += length
    if position != len(body):
        raise EpochsMismatch(_DAMAGED)
    most, most_breaks = at_most(MAX_TEXTS), at_most(MAX_BREAKS)
    if stream.n_texts > most or stream.n_breaks > most_breaks:
        raise EpochsMismatch(
            f"a stream has more than {most} texts or {most_breaks} breaks in its time; send a part"
        )


def _check_clocks(streams: dict[bytes, _Stream]) -> None:
    """Bound what bringing the clocks into line may cost: a fit for each stretch between two resets."""
    clocks = [np.asarray(stream.clock) for stream in streams.values() if stream.clock]
    if not all(np.isfinite(clock).all() for clock in clocks):
        raise EpochsMismatch("the clock of a stream was measured as a value that is not finite; record again")
    steps = [np.diff(clock, axis=0) for clock in clocks]
    n_resets = sum(int(((step[:, 0] < 0) | (np.abs(step[:, 1]) > RESET_S)).sum()) for step in steps)
    most, most_resets = at_most(MAX_CLOCK_OFFSETS), at_most(MAX_CLOCK_RESETS)
    if sum(map(len, clocks)) > most or n_resets > most_resets:
        raise EpochsMismatch(
            f"the clocks of the streams were measured more than {most} times or set anew more than "
            f"{most_resets} times; record again"
        )


def _length(content: bytes, position: int) -> tuple[int, int]:
    """Return a number of variable length and where it ends."""
    width = content[position] if position < len(content) else 0
    if width not in (1, 4, 8) or position + 1 + width > len(content):
        raise EpochsMismatch(_DAMAGED)
    start = position + 1
    return int.from_bytes(content[start : start + width], "little"), start + width


def _parse(content: bytes) -> ElementTree.Element:
    if len(content) > MAX_XML_BYTES or not is_plain_xml(content):
        raise EpochsMismatch("a description in the XDF file is too long, declares entities or is not UTF-8")
    try:
        return ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise EpochsMismatch(_DAMAGED) from error


def _announced(content: bytes) -> _Stream:
    root = _parse(content)
    if root.tag != "info":
        raise EpochsMismatch(f"a stream is not described by <info>; {_DAMAGED}")
    count = _integer(_only(root, "channel_count"))
    if not 1 <= count <= MAX_CHANNELS:
        raise EpochsMismatch(f"a stream announces no number of channels from 1 to {MAX_CHANNELS}; record again")
    try:
        rate = float(_only(root, "nominal_srate"))
    except ValueError:
        rate = math.nan
    if not 0 <= rate * count * 8 <= MAX_BYTES:
        raise EpochsMismatch(f"a stream announces {rate:g} samples per second, expected 0 or more; record again")
    kind = _only(root, "channel_format")
    if kind not in (*_ITEM_BYTES, "string"):
        raise EpochsMismatch(f"a stream has an unknown format, expected string or one of {', '.join(_ITEM_BYTES)}")
    # what comes at no rate, such as markers, has no breaks
    step_s = 1 / rate if rate else 0.0
    break_s = max(BREAK_S, BREAK_SAMPLES * step_s) if rate else math.inf
    return _Stream(count, _ITEM_BYTES.get(kind, 0), step_s, break_s)


def _only(root: ElementTree.Element, tag: str) -> str:
    """Return the text of the one child of this name; nothing if there are others, or if it has children."""
    found = root.findall(tag)
    return (found[0].text or "") if len(found) == 1 and not len(found[0]) else ""


def _integer(text: str) -> int:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0
