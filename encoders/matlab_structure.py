"""The elements of a MATLAB 5 file, walked before any reader sees them: sizes, nesting and kinds of arrays.

Layout: "MAT-File Format" of the MathWorks, level 5. Objects, function handles and opaque classes are refused;
sizes that do not fit the bytes, deep nesting and tight compression are, too. A file that another reader would take for
HDF5 is refused, and so are two arrays of one name, of which readers take the first or the last.
"""

import math
import struct
import zlib
from pathlib import Path

from encoders.epochs import EpochsMismatch
from encoders.part_bounds import at_most

MAX_ELEMENTS = 400_000
MAX_DEPTH = 24
MAX_INFLATED_BYTES = 1 << 30
MAX_RATIO = 200
# Bytes 124 to 127, by which readers tell the levels apart: major and minor version in the byte order of the file.
VERSION_5, VERSION_73 = (b"\x00\x01IM", b"\x01\x00MI"), (b"\x00\x02IM", b"\x02\x00MI")
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MATRIX, _COMPRESSED = 14, 15
_SIZES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, 16: 1, 17: 2, 18: 4}
_CELL, _STRUCT, _OBJECT, _CHAR, _SPARSE, _FUNCTION, _OPAQUE = 1, 2, 3, 4, 5, 16, 17
_NUMBERS = range(6, 16)
_DAMAGED = "the MATLAB file is damaged or cut short; save it again with `save -v7`"


def check_matlab5(path: Path) -> None:
    """Check a MATLAB 5 file.

    Raises
    ------
    EpochsMismatch
        If sizes do not fit, nesting is too deep, an element is of a kind that no recording needs, or the file is of two
        formats.
    """
    content = path.read_bytes()
    if len(content) < 136 or content[124:128] not in VERSION_5 or not content.startswith(b"MATLAB 5.0"):
        raise EpochsMismatch(_DAMAGED)
    if _is_hdf5(content):
        raise EpochsMismatch("the MATLAB file is of level 5 and HDF5 at once; save it again with `save -v7`")
    walk = _Walk("<" if content[126:128] == b"IM" else ">")
    names = set[bytes]()
    position = 128
    while position < len(content):
        kind, body, after = walk.element(content, position, padded=False)
        if kind == _COMPRESSED:
            inflated = walk.inflate(body)
            kind, body, end = walk.element(inflated, 0)
            if end < len(inflated) - 7:
                raise EpochsMismatch(_DAMAGED)
        if kind != _MATRIX:
            raise EpochsMismatch(_DAMAGED)
        name = walk.matrix(body, 0)
        if name and name in names:
            raise EpochsMismatch("the MATLAB file holds two arrays of one name; save one dataset with pop_saveset")
        names.add(name)
        position = after


def _is_hdf5(content: bytes) -> bool:
    """Return whether HDF5 begins at one of the places where its readers look: 0, 512, 1024, 2048 ..."""
    places = [0, *(512 << power for power in range(len(content).bit_length()))]
    return any(content.startswith(HDF5_SIGNATURE, place) for place in places)


class _Walk:
    """Byte order of a file, and what was met in it so far."""

    def __init__(self, order: str) -> None:
        self._order = order
        self._n_elements = 0
        self._n_inflated = 0

    def inflate(self, packed: memoryview | bytes) -> bytes:
        """Return the content of a compressed element, up to a cap."""
        left = MAX_INFLATED_BYTES - self._n_inflated
        worker = zlib.decompressobj()
        try:
            inflated = worker.decompress(packed, left + 1)
        except zlib.error as error:
            raise EpochsMismatch(_DAMAGED) from error
        if len(inflated) > left or len(inflated) > MAX_RATIO * len(packed) + (1 << 24):
            raise EpochsMismatch("the MATLAB file unpacks to far more than its size; save it without compression")
        if not worker.eof:
            raise EpochsMismatch(_DAMAGED)
        self._n_inflated += len(inflated)
        return inflated

    def element(self, content: memoryview | bytes, position: int, padded: bool = True) -> tuple[int, memoryview, int]:
        """Return kind, content and end of the element at ``position``."""
        self._n_elements += 1
        if self._n_elements > (most := at_most(MAX_ELEMENTS)):
            raise EpochsMismatch(f"the MATLAB file has more than {most} elements; remove EEG.etc and history")
        if position + 8 > len(content):
            raise EpochsMismatch(_DAMAGED)
        kind, n_bytes = struct.unpack_from(self._order + "II", content, position)
        view = memoryview(content)
        if kind >> 16:
            if kind >> 16 > 4:
                raise EpochsMismatch(_DAMAGED)
            return kind & 0xFFFF, view[position + 4 : position + 4 + (kind >> 16)], position + 8
        start = position + 8
        if start + n_bytes > len(content):
            raise EpochsMismatch(_DAMAGED)
        end = start + n_bytes + (-n_bytes % 8 if padded and kind != _COMPRESSED else 0)
        return kind, view[start : start + n_bytes], end

    def matrix(self, body: memoryview, depth: int) -> bytes:
        """Check one array and what it contains; return its name."""
        if depth > MAX_DEPTH:
            raise EpochsMismatch(f"the MATLAB file nests deeper than {MAX_DEPTH} levels; save one EEG structure")
        if not len(body):
            return b""
        _, flags, at = self.element(body, 0)
        if len(flags) < 8:
            raise EpochsMismatch(_DAMAGED)
        (word,) = struct.unpack_from(self._order + "I", flags)
        kind, is_complex = word & 0xFF, bool(word & 0x800)
        if kind in (_OBJECT, _FUNCTION, _OPAQUE):
            raise EpochsMismatch(
                "the MATLAB file holds an object or a function, expected numbers, text, cells and structures; "
                "remove it (often in EEG.etc) and save again"
            )
        _, sizes, at = self.element(body, at)
        if len(sizes) % 4 or not 8 <= len(sizes) <= 128:
            raise EpochsMismatch(_DAMAGED)
        dims = struct.unpack(f"{self._order}{len(sizes) // 4}i", sizes)
        if min(dims) < 0:
            raise EpochsMismatch(_DAMAGED)
        _, name, at = self.element(body, at)
        self._content(body, at, kind, math.prod(dims), is_complex, depth)
        return bytes(name)

    def _content(self, body: memoryview, at: int, kind: int, n: int, is_complex: bool, depth: int) -> None:
        if kind == _CELL:
            self._matrices(body, at, n, depth)
        elif kind == _STRUCT:
            _, width, at = self.element(body, at)
            (n_name,) = struct.unpack(self._order + "i", width) if len(width) == 4 else (0,)
            _, names, at = self.element(body, at)
            if n_name <= 0 or len(names) % n_name:
                raise EpochsMismatch(_DAMAGED)
            self._matrices(body, at, n * (len(names) // n_name), depth)
        elif kind in _NUMBERS:
            for _ in range(1 + is_complex):
                stored, values, at = self.element(body, at)
                if stored not in _SIZES or len(values) != n * _SIZES[stored]:
                    raise EpochsMismatch(_DAMAGED)
        elif kind == _CHAR:
            if n:
                stored, values, _ = self.element(body, at)
                if stored not in _SIZES or len(values) > 4 * n:
                    raise EpochsMismatch(_DAMAGED)
        elif kind != _SPARSE or n > 1 << 27:
            raise EpochsMismatch(_DAMAGED)

    def _matrices(self, body: memoryview, at: int, n: int, depth: int) -> None:
        if 8 * n > len(body):
            raise EpochsMismatch(_DAMAGED)
        for _ in range(n):
            kind, inner, at = self.element(body, at)
            if kind != _MATRIX:
                raise EpochsMismatch(_DAMAGED)
            self.matrix(inner, depth + 1)
