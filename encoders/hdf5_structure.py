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
    """One pass over a file's objects, each visited once; then the references between them."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._seen: set[int] = set()
        self._n_bytes = 0
        self._n_letters = 0
        self._points: dict[int, list[int]] = {}

    def check(self) -> None:
        """Walk the links, then the references."""
        self._group(self._file, 0)
        self._expansion()

    def _group(self, group: h5py.Group, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise EpochsMismatch(f"the HDF5 file nests deeper than {MAX_DEPTH} levels; save one EEG structure")
        inside = self._points.setdefault(self._enter(group), [])
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise EpochsMismatch(_AWAY.format("a soft or external link"))
            item = group[name]
            inside.append(_address(item))
            if isinstance(item, h5py.Group):
                self._group(item, depth + 1)
            elif isinstance(item, h5py.Dataset):
                self._dataset(item)
            else:
                self._enter(item)

    def _enter(self, item: Any) -> int:
        address = _address(item)
        if address in self._seen:
            raise EpochsMismatch("the HDF5 file holds one object under two names; save it again")
        self._seen.add(address)
        if len(self._seen) > (most := at_most(MAX_OBJECTS)):
            raise EpochsMismatch(f"the HDF5 file has more than {most} objects; remove EEG.etc and history")
        return address

    def _dataset(self, data: h5py.Dataset) -> None:
        address = self._enter(data)
        creation = data.id.get_create_plist()
        if data.is_virtual or creation.get_external_count():
            raise EpochsMismatch(_AWAY.format("a virtual dataset or external storage"))
        filters = {creation.get_filter(i)[0] for i in range(creation.get_nfilters())}
        if filters - _FILTERS:
            raise EpochsMismatch("the HDF5 file is packed with an unusual filter; save it with gzip or none")
        n_bytes = math.prod(data.shape or (0,)) * data.dtype.itemsize
        self._n_bytes += n_bytes
        stored = data.id.get_storage_size()
        if self._n_bytes > MAX_STORED_BYTES or n_bytes > MAX_RATIO * stored + (1 << 24):
            raise EpochsMismatch("the HDF5 file announces far more data than it stores; cut the recording shorter")
        # readers make text of numbers one by one
        if bytes(data.attrs.get("MATLAB_class", b"")) == b"char":
            self._n_letters += math.prod(data.shape or (0,))
        if self._n_letters > (most := at_most(MAX_LETTERS)):
            raise EpochsMismatch(f"the HDF5 file holds more than {most} letters of text; remove EEG.history")
        if data.dtype.kind == "O":
            if h5py.check_ref_dtype(data.dtype) is not h5py.Reference:
                raise EpochsMismatch("the HDF5 file holds values of variable length; save it with MATLAB's -v7.3")
            self._points[address] = self._targets(data)
        elif data.dtype.kind == "V" and data.dtype.names is None:
            raise EpochsMismatch("the HDF5 file holds opaque values; save numbers, text, cells and structures")

    def _targets(self, data: h5py.Dataset) -> list[int]:
        if math.prod(data.shape or (0,)) > (most := at_most(MAX_OBJECTS)):
            raise EpochsMismatch(f"the HDF5 file has more than {most} references; remove EEG.etc and history")
        references = np.atleast_1d(np.asarray(data[()], dtype=object)).ravel()
        return [_address(self._file[reference]) for reference in references if reference]

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
    return int(h5py.h5o.get_info(item.id).addr)
