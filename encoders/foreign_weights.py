"""Tensors out of torch's own checkpoint files, as plain arrays and without unpickling.

Only the zip format (torch 1.6 and later) is read. Its members are never compressed, so a compressed one is refused and
what a file can unpack to is bounded by its length. This module needs neither torch nor any right to open files.
"""

import zipfile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from encoders.inert_pickle import MAX_PICKLE_BYTES, Inert, PickleRefused, StoredTensor, read_pickle

MAX_MEMBERS = 100_000
MAX_TENSORS = 20_000
MAX_TENSOR_BYTES = 4 << 30
MAX_DEPTH = 12
# What belongs to training alone is passed over: it is twice the size of the weights and of no use.
TRAINING_ONLY = frozenset(
    {"optimizer", "optimizer_state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops"}
)

_DTYPES: dict[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("u1"),
}
_RESAVE = (
    "on a machine where you trust the file, load it with torch and save its state dict again with torch 1.6 or later"
)


class ForeignWeightsError(ValueError):
    """A checkpoint file is damaged, hostile, or of a format that is not read."""


def read_foreign_weights(file: IO[bytes]) -> dict[str, NDArray[Any]]:
    """Read every tensor of a torch checkpoint.

    Parameters
    ----------
    file : binary file, seekable
        What ``torch.save`` wrote: a state dict, or a dictionary that holds some, at any depth.

    Returns
    -------
    dict of str to ndarray
        Names of nested dictionaries are joined by ``/``. Floating tensors of any width come as float32, integers
        keep their type. State of optimizers is left out.

    Raises
    ------
    ForeignWeightsError
        If it is no such file, or its tensors do not fit its storages.
    """
    if file.read(4) != b"PK\x03\x04":
        raise ForeignWeightsError(
            f"the file is not a zip, so it is not what torch 1.6 or later saves, or it is damaged; {_RESAVE}"
        )
    n_bytes = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            members = _members(archive, n_bytes)
            root = _root(members)
            _check_byte_order(archive, members, root)
            tensors = _named_tensors(read_pickle(_read(archive, members[f"{root}data.pkl"], MAX_PICKLE_BYTES)))
            return {name: _array(archive, members, root, name, tensor) for name, tensor in tensors.items()}
    except PickleRefused as error:
        raise ForeignWeightsError(f"{error}; export the weights again") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, UnicodeError) as error:
        raise ForeignWeightsError(
            f"the file is damaged or cut short ({type(error).__name__}); copy or download it again"
        ) from error


def _members(archive: zipfile.ZipFile, n_bytes: int) -> dict[str, zipfile.ZipInfo]:
    listed = archive.infolist()
    if len(listed) > MAX_MEMBERS:
        raise ForeignWeightsError(
            f"the zip lists {len(listed)} members, at most {MAX_MEMBERS} are read; it is no checkpoint"
        )
    members = {member.filename: member for member in listed}
    if len(members) != len(listed):
        raise ForeignWeightsError("the zip lists a member twice, which torch never does; export the weights again")
    packed = next((member.filename for member in listed if member.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise ForeignWeightsError(
            f"member {packed[:80]!r} is compressed, which torch never does; export the weights again"
        )
    if sum(member.file_size for member in listed) > n_bytes:
        raise ForeignWeightsError("the zip claims to hold more bytes than the file has; export the weights again")
    return members


def _root(members: dict[str, zipfile.ZipInfo]) -> str:
    """Return the folder inside the zip, with its slash."""
    roots = [name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ForeignWeightsError(
            f"the zip has {len(roots)} members called <name>/data.pkl, expected one; it is no checkpoint of torch"
        )
    if any(name.startswith(f"{roots[0]}code/") for name in members):
        raise ForeignWeightsError("the file is a TorchScript program, not weights; save its state dict")
    return roots[0]


def _check_byte_order(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], root: str) -> None:
    order = members.get(f"{root}byteorder")
    if order is not None and _read(archive, order, 64) != b"little":
        raise ForeignWeightsError(f"the numbers are not stored little-endian; {_RESAVE}")


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    if member.file_size > limit:
        raise ForeignWeightsError(
            f"member {member.filename[:80]!r} has {member.file_size} bytes, at most {limit} are read; "
            "save the state dict alone"
        )
    return archive.read(member)


def _named_tensors(content: Any) -> dict[str, StoredTensor]:
    """Collect the tensors of nested dictionaries and lists; a container that appears again is not walked again."""
    found: dict[str, StoredTensor] = {}
    seen: set[int] = set()
    inert: list[str] = []
    waiting: list[tuple[str, Any, int]] = [("", content, 0)]
    while waiting:
        name, value, depth = waiting.pop()
        if isinstance(value, StoredTensor):
            found[name] = value
        elif isinstance(value, Inert):
            inert.append(value.name)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen and depth < MAX_DEPTH:
            seen.add(id(value))
            pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
            for key, part in reversed(pairs):
                if str(key) not in TRAINING_ONLY:
                    waiting.append((f"{name}/{key}" if name else str(key), part, depth + 1))
        if len(found) > MAX_TENSORS:
            raise ForeignWeightsError(f"the file has more than {MAX_TENSORS} tensors; it is no encoder")
    if not found:
        objects = f" but objects of {sorted(set(inert))[:5]}" if inert else ""
        raise ForeignWeightsError(
            f"the file holds no dictionary of tensors{objects}; save model.state_dict(), not the model"
        )
    total = sum(_n_elements(tensor) * 8 for tensor in found.values())
    if total > MAX_TENSOR_BYTES:
        raise ForeignWeightsError(f"the tensors unpack to {total} bytes, at most {MAX_TENSOR_BYTES} are read")
    return found


def _n_elements(tensor: StoredTensor) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def _array(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], root: str, name: str, tensor: StoredTensor
) -> NDArray[Any]:
    storage = tensor.storage
    kind = storage.kind.removeprefix("torch ")
    if kind not in _DTYPES:
        raise ForeignWeightsError(f"tensor {name!r} is of kind {storage.kind!r}, expected one of {sorted(_DTYPES)}")
    dtype = _DTYPES[kind]
    member = members.get(f"{root}data/{storage.key}")
    if member is None:
        raise ForeignWeightsError(f"tensor {name!r} refers to storage {storage.key[:80]!r}, which the file lacks")
    if member.file_size != storage.n_elements * dtype.itemsize:
        raise ForeignWeightsError(
            f"the storage of tensor {name!r} has {member.file_size} bytes, expected {storage.n_elements} x "
            f"{dtype.itemsize}; copy or download the file again"
        )
    n_elements = _n_elements(tensor)
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if n_elements and last >= storage.n_elements:
        raise ForeignWeightsError(
            f"tensor {name!r} of shape {tensor.shape} ends at element {last + 1} of a storage of {storage.n_elements}; "
            "copy or download the file again"
        )
    if n_elements == 0:
        return np.zeros(tensor.shape, dtype=np.float32)
    flat: NDArray[Any] = np.frombuffer(archive.read(member), dtype=dtype)[tensor.offset :]
    steps = zip(tensor.shape, tensor.strides, strict=True)
    strides = tuple(0 if size == 1 else stride * dtype.itemsize for size, stride in steps)
    view = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
    return _as_plain(view, kind)


def _as_plain(view: NDArray[Any], kind: str) -> NDArray[Any]:
    """Copy a view into a contiguous array of the type that is passed on."""
    if kind == "BFloat16Storage":
        return np.asarray((view.astype(np.uint32) << 16).view(np.float32))
    if view.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.array(view, dtype=np.float32, order="C")
    return np.array(view, dtype=np.bool_ if kind == "BoolStorage" else view.dtype, order="C")
