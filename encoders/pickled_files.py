"""Data files of others that hold a pickle, opened by their content and read without unpickling.

Four forms come under the names ``.npy``, ``.pkl`` and ``.pt``: numpy's plain arrays, numpy's files around a pickled
dictionary, bare pickles, and torch's zip files. All are memory-mapped, so arrays are read when they are used.
"""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.inert_pickle import PickleRefused, StoredTensor
from encoders.numpy_pickle import read_numpy_pickle

_NPY_MAGIC, _ZIP_MAGIC, _PICKLE_MAGIC = b"\x93NUMPY", b"PK\x03\x04", b"\x80"
_LOCAL_HEADER_BYTES = 30
_MAX_NPY_HEADER = 1 << 16
_TORCH_DTYPES: dict[str, str] = {
    "torch DoubleStorage": "<f8",
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2",
    "torch CharStorage": "i1",
    "torch ByteStorage": "u1",
    "torch BoolStorage": "?",
}


def read_pickled_file(path: Path | str) -> Any:
    """Read a file that numpy, pickle or torch wrote, whatever its name ends in.

    Parameters
    ----------
    path : Path or str
        ``.npy`` with numbers or with one pickled value, a bare pickle of protocol 2 or later, or what ``torch.save``
        writes since torch 1.6.

    Returns
    -------
    dict, list, ndarray, or another plain value
        Arrays are read-only and memory-mapped where they are large; tensors come as arrays. A value that numpy wrapped
        into an array of no dimension comes without the array.

    Raises
    ------
    ValueError
        If the file is of none of these forms, is damaged, or holds anything but arrays and plain values.
    """
    path = Path(path)
    with path.open("rb") as file:
        magic = file.read(6)
    try:
        if magic == _NPY_MAGIC:
            return _read_npy(path)
        if magic.startswith(_ZIP_MAGIC):
            return _read_torch(path)
        if magic.startswith(_PICKLE_MAGIC):
            return read_numpy_pickle(_mapped(path))[0]
    except PickleRefused as error:
        raise ValueError(f"{path}: {error}") from error
    raise ValueError(
        f"{path} starts with {magic!r}, expected a file of numpy, pickle (protocol 2 or later) or torch (1.6 or "
        "later); check that the download is complete"
    )


def _mapped(path: Path) -> memoryview:
    return np.memmap(path, dtype=np.uint8, mode="r").data


def _read_npy(path: Path) -> Any:
    content = _mapped(path)
    head = io.BytesIO(bytes(content[:_MAX_NPY_HEADER]))
    try:
        version = np.lib.format.read_magic(head)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(head)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} has no readable numpy header ({error}); copy or download it again") from error
    if not dtype.hasobject:
        n_bytes = int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
        if head.tell() + n_bytes > len(content):
            raise ValueError(f"{path} is cut short: {len(content)} bytes, its header promises {head.tell() + n_bytes}")
        if n_bytes == 0:
            return np.zeros(shape, dtype=dtype)
        return np.memmap(path, dtype, "r", head.tell(), shape, "F" if fortran else "C")
    value, _ = read_numpy_pickle(content[head.tell() :])
    if isinstance(value, np.ndarray) and value.dtype.hasobject and value.shape == ():
        return value.item()
    return value


def _read_torch(path: Path) -> Any:
    content = _mapped(path)
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path} is a damaged zip ({error}); copy or download it again") from error
    members = {member.filename: member for member in listed}
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1 or len(members) != len(listed):
        raise ValueError(f"{path} is a zip with {len(pickles)} members <name>/data.pkl, expected one, of torch")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in members and bytes(_member(content, members[f"{root}byteorder"])) != b"little":
        raise ValueError(f"{path} is not stored little-endian; save it again on an ordinary machine")

    def tensor(stored: StoredTensor) -> NDArray[Any]:
        name = f"{root}data/{stored.storage.key}"
        if name not in members or stored.storage.kind not in _TORCH_DTYPES:
            raise PickleRefused(f"a tensor needs {name[:80]!r} of kind {stored.storage.kind[:80]!r}; it cannot be read")
        return _tensor_view(_member(content, members[name]), stored)

    return read_numpy_pickle(_member(content, members[pickles[0]]), tensor=tensor)[0]


def _member(content: memoryview, member: zipfile.ZipInfo) -> memoryview:
    """Return the bytes of a stored member in place."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise PickleRefused(f"member {member.filename[:80]!r} is compressed, which torch never does")
    start = member.header_offset
    header = bytes(content[start : start + _LOCAL_HEADER_BYTES])
    if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(_ZIP_MAGIC):
        raise PickleRefused(f"member {member.filename[:80]!r} is not where the zip says; the file is damaged")
    n_name, n_extra = struct.unpack("<HH", header[26:])
    start += _LOCAL_HEADER_BYTES + n_name + n_extra
    if start + member.file_size > len(content):
        raise PickleRefused(f"member {member.filename[:80]!r} is cut short; copy or download the file again")
    return content[start : start + member.file_size]


def _tensor_view(data: memoryview, stored: StoredTensor) -> NDArray[Any]:
    dtype = np.dtype(_TORCH_DTYPES[stored.storage.kind])
    if len(data) != stored.storage.n_elements * dtype.itemsize:
        raise PickleRefused(f"a tensor's storage has {len(data)} bytes, its header promises other; the file is damaged")
    if 0 in stored.shape:
        return np.zeros(stored.shape, dtype=dtype)
    steps = tuple(zip(stored.shape, stored.strides, strict=True))
    if stored.offset + sum((size - 1) * stride for size, stride in steps) >= stored.storage.n_elements:
        raise PickleRefused(f"a tensor of shape {stored.shape} ends behind its storage; the file is damaged")
    flat: NDArray[Any] = np.frombuffer(data, dtype=dtype)[stored.offset :]
    strides = tuple(0 if size == 1 else stride * dtype.itemsize for size, stride in steps)
    return np.lib.stride_tricks.as_strided(flat, stored.shape, strides, writeable=False)
