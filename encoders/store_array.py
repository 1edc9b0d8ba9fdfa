"""`StoreArray`: the shards of a store as one array, of which any rows are copied in any order."""

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
        """Copy epochs into ``out`` (n, n_channels, n_times), pinned memory say, or into a new array."""
        wanted = row_numbers(rows, len(self))
        shape = (len(wanted), *self.shape[1:])
        if out is None:
            out = np.empty(shape, self.dtype)
        elif out.shape != shape or out.dtype != self.dtype:
            raise ValueError(f"out is {out.shape} of {out.dtype}, expected {shape} of {self.dtype}")
        # Shard by shard and in the order on disk; epochs that follow each other in both are copied in one go.
        order = np.argsort(wanted, kind="stable")
        ordered = wanted[order]
        shards = np.searchsorted(self._first, ordered, side="right") - 1
        breaks = (np.diff(ordered) != 1) | (np.diff(order) != 1) | (np.diff(shards) != 0)
        starts = np.flatnonzero(np.concatenate([[True], breaks]))[: len(wanted)]
        lengths = np.diff([*starts, len(wanted)])
        offsets = ordered - self._first[shards]
        current, epochs = -1, np.empty(0)
        for shard, offset, place, n in zip(
            shards[starts].tolist(), offsets[starts].tolist(), order[starts].tolist(), lengths.tolist(), strict=True
        ):
            if shard != current:
                current, epochs = shard, self._files[shard]
            out[place : place + n] = epochs[offset : offset + n]
        return out


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
