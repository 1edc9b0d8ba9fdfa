"""The header of a BrainVision recording, checked before any reader sees it: its references, counts and sizes.

A header can name any file of the machine and announce any number of channels, so each reference must be a plain name
beside the header, and what is announced must fit the data file. Layout: "BrainVision Core Data Format 1.0".
"""

import math
import re
from pathlib import Path

from encoders.epochs import EpochsMismatch
from encoders.part_bounds import at_most
from encoders.quotation import quoted
from encoders.recording_bounds import MAX_CHANNELS, check_rate

MAX_HEADER_BYTES = 4 << 20
MAX_MARKER_BYTES = 16 << 20
_CODEPAGES = {"utf-8", "utf8", "ansi", "cp1252", "windows-1252", "ascii", "us-ascii", "latin-1", "iso-8859-1"}
MAX_LINES = 30_000
MAX_SAMPLE_LINES = 500_000
MAX_LINE_BYTES = 10_000
# any space within a line, as the reader's own parser leaves out around a name
_SPACE = r"[^\S\n]*"
_SAMPLE_BYTES = {"INT_16": 2, "UINT_16": 2, "INT_32": 4, "IEEE_FLOAT_32": 4}


def check_brainvision(path: Path) -> None:
    """Check a header (``.vhdr``) and the files that it names.

    Raises
    ------
    EpochsMismatch
        If a reference leads elsewhere, a count is impossible, or the data file does not hold whole samples.
    """
    header = _text(path, MAX_HEADER_BYTES, "header")
    data = _companion(path, header, "DataFile", "data file")
    if data is None:
        raise EpochsMismatch("the BrainVision header names no data file; export the recording again")
    marker = _companion(path, header, "MarkerFile", "marker file")
    n_channels = _number(header, "NumberOfChannels")
    if not n_channels.is_integer() or not 1 <= n_channels <= MAX_CHANNELS:
        raise EpochsMismatch(
            f"the header announces {n_channels:g} channels, expected 1 to {MAX_CHANNELS}; export the recording again"
        )
    listed = {int(number) for number in re.findall(rf"(?mi)^{_SPACE}Ch(\d{{1,5}}){_SPACE}=[^,\r\n]*,", header)}
    if len(listed) < n_channels:
        raise EpochsMismatch(f"the header announces {n_channels:g} channels and lists {len(listed)}; export it again")
    interval = _number(header, "SamplingInterval")
    check_rate(1e6 / interval if interval else math.inf)
    _check_data(header, data, int(n_channels))
    if marker is not None:
        _text(marker, at_most(MAX_MARKER_BYTES), "marker file")


def check_companion(path: Path, name: str, role: str) -> Path:
    """Return the file ``name`` beside ``path``, refusing anything that is not a plain name there."""
    if not name or name in (".", "..") or re.search(r"[/\\\x00-\x1f]|^[A-Za-z]:", name):
        raise EpochsMismatch(f"the header names a {role} in another folder; write a plain file name into the header")
    companion = path.parent / name
    if not companion.is_file():
        raise EpochsMismatch(f"the {role} {quoted(name)} is missing; send a zip with all files of the recording")
    if companion.resolve() == path.resolve():
        raise EpochsMismatch(f"the header names itself as its {role}; write the right file name into the header")
    return companion


def _companion(path: Path, header: str, key: str, role: str) -> Path | None:
    """Return the file that ``key`` names; of several lines, also of other sections, all must be plain names."""
    found = [check_companion(path, name.replace("$b", path.stem), role) for name in _values(header, key)]
    return found[0] if found else None


def _values(header: str, key: str) -> list[str]:
    """Return what the lines of all sections give as ``key``, in a time that is proportional to their length."""
    return [value.strip() for value in re.findall(rf"(?mi)^{_SPACE}{key}{_SPACE}[=:](.*)$", header)]


def _check_data(header: str, data: Path, n_channels: int) -> None:
    n_bytes = data.stat().st_size
    if not n_bytes:
        raise EpochsMismatch("the data file is empty; send the recording's own data file")
    formats = [text.upper() for text in _values(header, "BinaryFormat")]
    if "ASCII" in (text.upper() for text in _values(header, "DataFormat")):
        with data.open("rb") as file:
            n_lines = sum(1 for _ in file)
        if n_lines > (most := at_most(MAX_SAMPLE_LINES)):
            raise EpochsMismatch(
                f"the data file has {n_lines} lines of text, at most {most} are read; export it as binary"
            )
        return
    unknown = [text for text in formats if text not in _SAMPLE_BYTES]
    if unknown or not formats:
        named = quoted(unknown[0]) if unknown else "nowhere"
        raise EpochsMismatch(
            f"the header gives the sample format {named}, expected one of {list(_SAMPLE_BYTES)}; export it again"
        )
    if any(n_bytes < _SAMPLE_BYTES[text] * n_channels for text in formats):
        raise EpochsMismatch(
            f"the data file has {n_bytes} bytes, less than a sample of {n_channels} channels; copy it"
        )


def _number(header: str, key: str) -> float:
    values = _values(header, key)
    try:
        numbers = {float(value) for value in values}
    except ValueError:
        numbers = set()
    if len(numbers) != 1 or not math.isfinite(min(numbers)) or min(numbers) <= 0:
        named = ", ".join(map(quoted, values[:3])) or "nothing"
        raise EpochsMismatch(f"the header gives {named} as {key}, expected one number above 0; export it again")
    return numbers.pop()


def _text(path: Path, max_bytes: int, what: str) -> str:
    if path.stat().st_size > max_bytes:
        raise EpochsMismatch(f"the {what} has more than {max_bytes} bytes, which no {what} needs; export it again")
    content = path.read_bytes()
    if max(content.count(b"\n"), content.count(b"\r")) > (most := at_most(MAX_LINES)):
        raise EpochsMismatch(f"the {what} has more than {most} lines, at most so many are read; send a part")
    if max(map(len, content.splitlines()), default=0) > MAX_LINE_BYTES:
        raise EpochsMismatch(f"the {what} has a line of more than {MAX_LINE_BYTES} bytes; export the recording again")
    # found as MNE finds it, which decodes with it: in UTF-7 a line would look like nothing here
    named = re.findall("Codepage=(.+)", content.decode("ascii", "ignore"))
    unknown = [name.strip() for name in named if name.strip().lower() not in _CODEPAGES]
    if unknown:
        raise EpochsMismatch(f"the {what} gives the codepage {quoted(unknown[0])}, expected UTF-8 or ANSI")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")
