"""`StoreArray`: the shards of a store as one array, of which any rows are copied in any order."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encoders.store_shards import ShardFiles


class StoreArray:
    """All epochs as one read-only array (n_epochs, n_channels, n_times) of scaled values; picklable.

    Values are in display units (microvolt, femtotesla, femtotesla per centimetre), as float16 unless the store was
    built with float32; times ``scales`` (n_channels,) they are SI.
    """

    def __init__(self, files: ShardFiles, row_shape: tuple[int, int], dtype: str, scales: NDArray[np.float32]) -> None:
        self._files = files
        self._first = np.cumsum([0, *(shard.n_epochs for shard in files.shards)])
        self.shape = (int(self._first[-1]), *row_shape)
        self.dtype = np.dtype(dtype)
        self.scales = scales

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | ArrayLike) -> NDArray[Any]:
        """Copy epochs, as ``array[rows]`` of numpy does for the first axis.

        Parameters
        ----------
        rows : int, slice, integers (n,), or mask (n_epochs,)
            Any order, repeats allowed; one integer gives one epoch without the first axis.

        Returns
        -------
        ndarray, (n, n_channels, n_times) or (n_channels, n_times)

        Raises
        ------
        IndexError
            If a row does not exist.
        ValueError
            If a shard that is read for the first time does not match its sha256.
        """
        if isinstance(rows, (int, np.integer)):
            epoch: NDArray[Any] = self.take([int(rows)])[0]
            return epoch
        return self.take(rows)

    def take(self, rows: slice | ArrayLike, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Copy epochs into ``out`` (n, n_channels, n_times), C-contiguous, pinned memory say, or into a new array."""
        wanted = row_numbers(rows, len(self))
        shape = (len(wanted), *self.shape[1:])
        if out is None:
            out = np.empty(shape, self.dtype)
        elif out.shape != shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.shape} of {out.dtype}, expected {shape} of {self.dtype}, C-contiguous")
        if len(wanted):
            # (n, c, t) -> (n, c * t); one pass in the order asked: sorting by shard first was slower, warm and cold
            maps = {index: self._files[index].reshape(-1, shape[1] * shape[2]) for index in self._shards(wanted)}
            pieces = [maps[index][first : first + n] for index, first, n in self._runs(wanted)]
            np.concatenate(pieces, out=out.reshape(len(wanted), -1))
        return out

    def prefetch(self, rows: slice | ArrayLike) -> None:
        """Ask the kernel to read epochs into the page cache, without waiting.

        For stores larger than memory: called for the batch after the one in hand, its disk reads run side by side
        instead of one after the other. Costs about a microsecond per epoch when they are in memory already.
        """
        for index, first, n in self._runs(row_numbers(rows, len(self))):
            self._files.prefetch(index, first, n)

    def _shards(self, wanted: NDArray[np.int64]) -> list[int]:
        numbers: list[int] = np.unique(np.searchsorted(self._first, wanted, side="right") - 1).tolist()
        return numbers

    def _runs(self, wanted: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """Split rows into runs of neighbours within a shard: its number, the first offset, how many."""
        shards = np.searchsorted(self._first, wanted, side="right") - 1
        starts = np.ones(len(wanted), dtype=bool)
        starts[1:] = (np.diff(wanted) != 1) | (np.diff(shards) != 0)
        places = np.flatnonzero(starts)
        offsets = (wanted - self._first[shards])[places]
        lengths = np.diff(places, append=len(wanted))
        return zip(shards[places].tolist(), offsets.tolist(), lengths.tolist(), strict=True)


def row_numbers(rows: slice | ArrayLike, n: int) -> NDArray[np.int64]:
    """Return the wanted rows (a slice, integers or a mask) as numbers from 0 to ``n`` - 1."""
    if isinstance(rows, slice):
        return np.arange(*rows.indices(n))
    wanted = np.asarray(rows)
    if wanted.dtype == bool:
        if wanted.shape != (n,):
            raise IndexError(f"mask has shape {wanted.shape}, expected ({n},), one value per epoch")
        return np.flatnonzero(wanted)
    if wanted.ndim != 1 or (len(wanted) and wanted.dtype.kind not in "iu"):
        raise IndexError(f"rows are {wanted.dtype} of shape {wanted.shape}, expected whole numbers (n,) or a mask")
    wanted = wanted.astype(np.int64)
    if len(wanted) and not -n <= wanted.min() <= wanted.max() < n:
        raise IndexError(f"rows {wanted.min()} to {wanted.max()} are wanted of a store of {n} epochs")
    return np.where(wanted < 0, wanted + n, wanted)
