"""Where the members of a zip lie in it: what its directory says of their packed sizes is held against the file."""

import zipfile
from collections.abc import Sequence

_HEAD_BYTES = 30  # before the name, in front of every member


def overlap(entries: Sequence[zipfile.ZipInfo], n_bytes: int) -> bool:
    """Return whether members of a zip of ``n_bytes`` claim bytes of each other, or bytes that it does not have.

    If not, their packed sizes add up to less than the zip, whatever its directory says.
    """
    spans = sorted((entry.header_offset, entry.header_offset + _HEAD_BYTES + entry.compress_size) for entry in entries)
    starts = [*(start for start, _ in spans[1:]), n_bytes]
    return any(end > start for (_, end), start in zip(spans, starts, strict=False))
