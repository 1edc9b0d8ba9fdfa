"""Arrays from an ``.npz`` that a stranger sent: no pickle, and declared sizes are checked before memory is taken."""

import io
import zipfile
import zlib
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from encoders.quotation import quoted
from encoders.zip_layout import overlap

MAX_BYTES = 2 * 1024**3
MAX_TEXT_BYTES = 128 * 1024**2
MAX_ARRAYS = 64
MAX_RATIO = 200
RATIO_GRACE_BYTES = 16 * 1024**2
_DAMAGED = "the npz is damaged, or not an npz at all; write it anew with numpy.savez"
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_arrays(file: IO[bytes], required: Sequence[str], optional: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read the named arrays; others in the file are ignored.

    Raises
    ------
    ValueError
        If a required array is absent, or the file is damaged, too large or holds objects.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            present = _checked_names(archive, file.seek(0, io.SEEK_END))
        missing = [name for name in required if name not in present]
        if missing:
            named = ", ".join(map(quoted, present[:20]))
            raise ValueError(f"the npz lacks {missing}; it needs {list(required)}, has {named or 'nothing'}")
        file.seek(0)
        return _loaded(file, [name for name in (*required, *optional) if name in present])
    except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise ValueError(_DAMAGED) from error


def _loaded(file: IO[bytes], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    with np.load(file, allow_pickle=False) as arrays:
        try:
            return {name: arrays[name] for name in names}
        except ValueError as error:
            raise ValueError(_DAMAGED) from error


def strings(array: NDArray[Any], name: str) -> tuple[str, ...]:
    """Return an array of text as a flat tuple."""
    if array.dtype.kind == "S":
        return tuple(value.decode("utf-8", "replace") for value in array.ravel())
    if array.dtype.kind not in "Uiu":
        raise ValueError(f"{name} has type {array.dtype.name}, expected text; save it as an array of strings")
    if array.dtype.kind == "U":
        _check_letters(array, name)
    return tuple(str(value) for value in array.ravel())


def number(array: NDArray[Any], name: str) -> float:
    """Return a scalar array as a float."""
    if array.size != 1 or array.dtype.kind not in "fiu":
        raise ValueError(f"{name} has shape {array.shape} and type {array.dtype.name}, expected one number")
    return float(array.ravel()[0])


def integers(array: NDArray[Any], name: str) -> tuple[int, ...]:
    """Return an array of whole numbers as a flat tuple."""
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} has type {array.dtype.name}, expected whole numbers")
    return tuple(int(value) for value in array.ravel())


def _check_letters(array: NDArray[Any], name: str) -> None:
    """Refuse numbers that are no letters: numpy makes text of them unchecked, which Python then fails on anywhere."""
    letters = np.frombuffer(
        np.ascontiguousarray(array).tobytes(), dtype=np.dtype("u4").newbyteorder(array.dtype.byteorder)
    )
    if np.any((letters > 0x10FFFF) | ((letters >= 0xD800) & (letters <= 0xDFFF))):
        raise ValueError(f"{name} holds numbers that are no letters of Unicode; save it as an array of strings")


def _checked_names(archive: zipfile.ZipFile, n_bytes: int) -> list[str]:
    members = archive.infolist()
    total = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if len(members) > MAX_ARRAYS or total > MAX_BYTES:
        raise ValueError(
            f"the npz has {len(members)} arrays and {total} bytes, at most {MAX_ARRAYS} and {MAX_BYTES} are allowed; "
            "send fewer epochs"
        )
    if overlap(members, n_bytes):
        raise ValueError("arrays in the npz overlap or are larger than the npz; write it anew with numpy.savez")
    if total > RATIO_GRACE_BYTES and total > MAX_RATIO * max(packed, 1):
        raise ValueError(f"the npz unpacks to more than {MAX_RATIO} times its size; save it with numpy.savez")
    if len({member.filename.removesuffix(".npy") for member in members}) < len(members):
        raise ValueError("the npz has two arrays of one name; write it anew with numpy.savez")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 0x1:
            raise ValueError("the npz is packed in an unusual way; write it with numpy.savez or savez_compressed")
        _check_declared_size(archive, member)
    return [member.filename.removesuffix(".npy") for member in members]


def _check_declared_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    name = quoted(member.filename)
    with archive.open(member) as entry:
        try:
            version = np.lib.format.read_magic(entry)
            if version not in _HEADER_READERS:
                raise ValueError(f"the version {version} is unknown")
            shape, _, dtype = _HEADER_READERS[version](entry)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"the npz array {name} has a header that numpy does not write, or of an unknown version; "
                "write it with numpy.savez"
            ) from error
        n_bytes = member.file_size - entry.tell()
    if dtype.hasobject:
        raise ValueError(f"the npz array {name} holds Python objects; save plain numbers or text")
    if any(length < 0 for length in shape):
        raise ValueError(f"the npz array {name} has a negative length; write it with numpy.savez")
    # a type may have no bytes at all, and then any number of values
    if np.prod(shape, dtype=np.float64) * max(dtype.itemsize, 1) > n_bytes:
        raise ValueError(f"the npz array {name} is shorter than its header says; write it anew")
    if dtype.kind in "SUV" and n_bytes > MAX_TEXT_BYTES:
        raise ValueError(f"the npz array {name} has more than {MAX_TEXT_BYTES} bytes of text; shorten the names")
