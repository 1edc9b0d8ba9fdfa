"""Arrays out of what a pickle says of them: element type, shape, order and bytes, each checked before it is used."""

import codecs
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.inert_pickle import MAX_DIMS, PickleRefused

MAX_TEXT_BYTES = 16 << 20
_DTYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[US]\d{1,6}|O8?")


@dataclass
class Unfinished:
    """An array or a type between the instruction that creates it and the one that fills it."""

    kind: str
    code: str = ""
    value: Any = None


@dataclass(frozen=True)
class LongText:
    """Text that is too long to be text: the bytes of an array as older protocols write them."""

    utf8: memoryview


def dtype_of(code: str, state: tuple[Any, ...]) -> np.dtype[Any]:
    """Return a plain element type from its code and the state that follows it in the pickle."""
    if not _DTYPE_CODE.fullmatch(code) or len(state) < 5 or any(part is not None for part in state[2:5]):
        raise PickleRefused(f"an array has the element type {code[:80]!r}, expected plain numbers or text")
    order = state[1]
    if order not in ("<", ">", "|", "="):
        raise PickleRefused(f"an array has the byte order {str(order)[:20]!r}; the file is damaged")
    return np.dtype(code) if order == "|" else np.dtype(code).newbyteorder(order)


def array_of(data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    """Return a view of ``data`` (bytes, or the list of values of an array of objects) as an array.

    Raises
    ------
    PickleRefused
        If type, shape, order and the number of bytes do not fit each other.
    """
    if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple) or len(shape) > MAX_DIMS:
        raise PickleRefused("an array of the file has an impossible type or shape; the file is damaged")
    if order not in ("C", "F") or any(not isinstance(size, int) or size < 0 for size in shape):
        raise PickleRefused("an array of the file has an impossible type or shape; the file is damaged")
    n_elements = math.prod(shape)
    if dtype.hasobject:
        return _object_array(data, shape, n_elements, order)
    if not isinstance(data, bytes | memoryview | np.ndarray):
        raise PickleRefused(f"an array is stored as {type(data).__name__}, expected its bytes; the file is damaged")
    n_bytes = data.nbytes if isinstance(data, np.ndarray | memoryview) else len(data)
    if n_bytes != n_elements * dtype.itemsize:
        raise PickleRefused(
            f"an array of shape {shape} and type {dtype} has {n_bytes} bytes, expected {n_elements * dtype.itemsize}; "
            "copy or download the file again"
        )
    if n_bytes == 0:
        return np.zeros(shape, dtype=dtype)
    return np.frombuffer(data, dtype=dtype).reshape(shape, order=order)


def _object_array(data: Any, shape: tuple[int, ...], n_elements: int, order: str) -> NDArray[Any]:
    """Return an array of objects, all of which are plain values that were read before."""
    if not isinstance(data, list) or len(data) != n_elements:
        raise PickleRefused("an array of objects does not hold as many as its shape says; the file is damaged")
    array = np.empty(n_elements, dtype=object)
    for i, value in enumerate(data):
        array[i] = value
    return array.reshape(shape, order="F" if order == "F" else "C")


def latin1_bytes(text: Any) -> Any:
    """Return the bytes that older protocols write as text with one character per byte."""
    if isinstance(text, str):
        return text.encode("latin1")
    if not isinstance(text, LongText):
        raise PickleRefused("the pickle encodes something that is no text; the file is damaged")
    decoder = codecs.getincrementaldecoder("utf-8")()
    decoded = np.empty(len(text.utf8), dtype=np.uint8)
    n_bytes = 0
    for start in range(0, len(text.utf8), MAX_TEXT_BYTES):
        chunk = text.utf8[start : start + MAX_TEXT_BYTES]
        part = decoder.decode(bytes(chunk), start + len(chunk) == len(text.utf8)).encode("latin1")
        decoded[n_bytes : n_bytes + len(part)] = np.frombuffer(part, dtype=np.uint8)
        n_bytes += len(part)
    return decoded[:n_bytes]
