"""The objects of an HDF5 file, walked before any reader sees them: nothing may lead out of the file, or round in it.

HDF5 can take data from other files in three ways (external links, external storage, virtual datasets) and can contain
itself (hard links, references). MATLAB 7.3 files need none of that but references from cells to their contents.
"""

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from encoders.epochs import EpochsMismatch
from encoders.matlab_structure import VERSION_73
from encoders.part_bounds import at_most

MAX_OBJECTS = 10_000
MAX_LETTERS = 300_000
MAX_DEPTH = 24
MAX_EXPANDED = 20_000
MAX_STORED_BYTES = 1 << 30
MAX_RATIO = 200
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_AWAY = "the HDF5 file takes data from elsewhere ({}); save one file that holds everything"


def check_hdf5(path: Path) -> None:
    """Check an HDF5 file of MATLAB 7.3, by whose header readers know that it is one.

    Raises
    ------
    EpochsMismatch
        If a link, a dataset or a reference leads out of the file or round in it, sizes are impossible, or the header is
        not that of MATLAB 7.3.
    """
    with path.open("rb") as header:
        head = header.read(128)
    try:
        with h5py.File(path, "r") as file:
            if "nirs" in file or "formatVersion" in file:
                raise EpochsMismatch(
                    "the file is SNIRF, which holds optical signals (fNIRS), expected EEG or MEG; "
                    "blood flow is too slow to tell which picture was seen"
                )
            if head[124:] not in VERSION_73 or not head.startswith(b"MATLAB 7.3"):
                raise EpochsMismatch(
                    "the HDF5 file does not begin as those of MATLAB 7.3 do; save it with `save -v7.3`"
                )
            _Walk(file).check()
    except EpochsMismatch:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise EpochsMismatch("the HDF5 file is damaged or cut short; save it again") from error


class _Walk:
    """One pass over a file's objects, each visited once; then the references between them.

    It goes by h5py's low-level calls, which cost half of the others: MATLAB keeps every value as an object of its own.
    """

    def __init__(self, file: h5py.File) -> None:
        self._file = file.id
        self._seen: set[int] = set()
        self._n_bytes = 0
        self._n_letters = 0
        self._points: dict[int, list[int]] = {}

    def check(self) -> None:
        """Walk the links, then the references."""
        self._group(h5py.h5g.open(self._file, b"/"), 0)
        self._expansion()

    def _group(self, group: h5py.h5g.GroupID, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise EpochsMismatch(f"the HDF5 file nests deeper than {MAX_DEPTH} levels; save one EEG structure")
        address = self._enter(group, len(group))
        inside = self._points.setdefault(address, [])
        for name in group:
            if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                raise EpochsMismatch(_AWAY.format("a soft or external link"))
            item = h5py.h5o.open(group, name)
            if isinstance(item, h5py.h5g.GroupID):
                inside.append(self._group(item, depth + 1))
            elif isinstance(item, h5py.h5d.DatasetID):
                inside.append(self._dataset(item))
            else:
                inside.append(self._enter(item))
        return address

    def _enter(self, item: Any, n_inside: int = 0) -> int:
        address = _address(item)
        if address in self._seen:
            raise EpochsMismatch("the HDF5 file holds one object under two names; save it again")
        self._seen.add(address)
        if len(self._seen) + n_inside > (most := at_most(MAX_OBJECTS)):
            raise EpochsMismatch(f"the HDF5 file has more than {most} objects; remove EEG.etc and history")
        return address

    def _dataset(self, data: h5py.h5d.DatasetID) -> int:
        address = self._enter(data)
        creation, n_values, dtype = data.get_create_plist(), math.prod(data.shape or (0,)), data.dtype
        if creation.get_layout() == h5py.h5d.VIRTUAL or creation.get_external_count():
            raise EpochsMismatch(_AWAY.format("a virtual dataset or external storage"))
        filters = {creation.get_filter(i)[0] for i in range(creation.get_nfilters())}
        if filters - _FILTERS:
            raise EpochsMismatch("the HDF5 file is packed with an unusual filter; save it with gzip or none")
        n_bytes = n_values * dtype.itemsize
        self._n_bytes += n_bytes
        stored = data.get_storage_size()
        if self._n_bytes > MAX_STORED_BYTES or n_bytes > MAX_RATIO * stored + (1 << 24):
            raise EpochsMismatch("the HDF5 file announces far more data than it stores; cut the recording shorter")
        # readers make text of numbers one by one
        if _matlab_class(data) == b"char":
            self._n_letters += n_values
        if self._n_letters > (most := at_most(MAX_LETTERS)):
            raise EpochsMismatch(f"the HDF5 file holds more than {most} letters of text; remove EEG.history")
        if dtype.kind == "O":
            if h5py.check_ref_dtype(dtype) is not h5py.Reference:
                raise EpochsMismatch("the HDF5 file holds values of variable length; save it with MATLAB's -v7.3")
            self._points[address] = self._targets(data, n_values)
        elif dtype.kind == "V" and dtype.names is None:
            raise EpochsMismatch("the HDF5 file holds opaque values; save numbers, text, cells and structures")
        return address

    def _targets(self, data: h5py.h5d.DatasetID, n_values: int) -> list[int]:
        if n_values > (most := at_most(MAX_OBJECTS)):
            raise EpochsMismatch(f"the HDF5 file has more than {most} references; remove EEG.etc and history")
        references = np.atleast_1d(np.asarray(h5py.Dataset(data)[()], dtype=object)).ravel()
        # one that leads nowhere has no address, which the caller takes for damage
        return [_address(h5py.h5r.dereference(one, self._file)) for one in references if one]

    def _expansion(self) -> None:
        """Refuse references that lead round, and those that make a small file a large tree."""
        sizes: dict[int, int] = {}
        for start in self._points:
            trail, open_ = [(start, iter(self._points[start]))], {start}
            while trail:
                top, targets = trail[-1]
                following = next((target for target in targets if target not in sizes), None)
                if following in open_ or len(trail) > 2 * MAX_DEPTH:
                    raise EpochsMismatch(
                        "the HDF5 file has references that lead round or nest too deep; save again"
                    )
                if following is not None:
                    trail.append((following, iter(self._points.get(following, ()))))
                    open_.add(following)
                    continue
                sizes[top] = 1 + sum(sizes[target] for target in self._points.get(top, ()))
                if sizes[top] > at_most(MAX_EXPANDED):
                    raise EpochsMismatch("the HDF5 file refers to the same values too often; save it again")
                trail.pop()
                open_.discard(top)


def _address(item: Any) -> int:
    return int(h5py.h5o.get_info(item).addr)


def _matlab_class(data: h5py.h5d.DatasetID) -> bytes:
    """Return the class that MATLAB gave a value, which it writes as text of fixed length; nothing if it gave none."""
    if not h5py.h5a.exists(data, b"MATLAB_class"):
        return b""
    attribute = h5py.h5a.open(data, b"MATLAB_class")
    if attribute.dtype.kind != "S" or attribute.shape != ():
        raise TypeError("the class is no text of fixed length")
    value = np.zeros((), dtype=attribute.dtype)
    attribute.read(value)
    return bytes(value.item())
