"""Shards: epochs as plain ``.npy`` in half precision, scaled first, mapped into memory when first read.

Values are divided by the display unit of their channel's kind before they become float16: one femtotesla is 1e-15 T,
far below the smallest float16 (6e-8), so raw tesla would all become 0. A file that shrinks while it is mapped ends the
process (SIGBUS), as with every memory-map: replace a store's files, never edit them.
"""

import io
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.durable_files import file_sha256
from encoders.modality import CHANNEL_KINDS
from encoders.store_manifest import REBUILD, Shard, StoredDtype, StoredFile, write_durably

MAX_OPEN = 512
"""Maps kept open per process; each holds a file descriptor, and 1,024 are a common limit."""

ROUND_TRIP_RELATIVE = 2.0**-10
ROUND_TRIP_FLOOR = 2.0**-24
"""Largest error of float16: this fraction of the value, plus this many display units (uV, fT, fT/cm)."""

MAX_ROUNDING_SHARE = 0.05
_Identity = tuple[int, int, int, int]


def scales_of(ch_types: Sequence[str]) -> NDArray[np.float32]:
    """Return the SI value of 1 in a shard, per channel, (n_channels,): 1e-6 for EEG, 1e-15 for magnetometers."""
    return np.asarray([1.0 / CHANNEL_KINDS[kind].display_scale for kind in ch_types], dtype=np.float32)


def to_stored(
    data: NDArray[np.float32],
    ch_names: Sequence[str],
    ch_types: Sequence[str],
    dtype: StoredDtype,
    first_epoch: int = 0,
) -> NDArray[Any]:
    """Scale SI values and cast them to what shards hold.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times), float32
        SI units.
    ch_names, ch_types : sequence of str
        One entry per channel.
    dtype : str
        ``float16`` or ``float32``.
    first_epoch : int
        Added to epoch numbers in messages.

    Returns
    -------
    ndarray, (n_epochs, n_channels, n_times), dtype
        Display units (microvolt, femtotesla, femtotesla per centimetre).

    Raises
    ------
    ValueError
        If a value is not finite or exceeds the dtype, or if a channel's offset is so large that rounding it adds more
        than 5 % of the signal's spread as noise; the message names epoch or channel.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = data / scales_of(ch_types)[:, None]
        stored = scaled.astype(dtype)
    finite = np.isfinite(stored).all(axis=2)
    if not finite.all():
        epoch, channel = np.argwhere(~finite)[0]
        kind = CHANNEL_KINDS[ch_types[channel]]
        row = scaled[epoch, channel]
        worst = row[int(np.argmax(np.where(np.isfinite(row), np.abs(row), np.inf)))]
        raise ValueError(
            f"epoch {first_epoch + epoch}, channel {ch_names[channel]}: {worst:.4g} {kind.display_unit} cannot be "
            f"stored, expected finite values of at most {np.finfo(dtype).max:.5g} {kind.display_unit} as {dtype}; "
            "check the unit, remove the offset (baseline, high-pass), drop the channel or epoch, or store float32"
        )
    _check_rounding(scaled, stored, ch_names, ch_types)
    return stored


def from_stored(stored: NDArray[Any], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return SI values, float32, of ``stored`` (..., n_channels, n_times)."""
    data: NDArray[np.float32] = np.multiply(stored, scales[:, None], dtype=np.float32)
    return data


def write_shard(path: Path, stored: NDArray[Any]) -> Shard:
    """Write epochs (n_epochs, n_channels, n_times) as ``.npy``, through to the disk."""
    stored = np.ascontiguousarray(stored)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(stored))
    written = write_durably(path, [header.getvalue(), stored.data])
    return Shard(**written.model_dump(), n_epochs=len(stored))


class ShardFiles:
    """The shards of one store, each mapped and checked when first read.

    A process hashes a shard once. What was checked is remembered by the file's identity (device, inode, size, time of
    change) and travels to DataLoader workers by fork or pickle, so workers do not hash again what their parent has.

    Parameters
    ----------
    shards : sequence of Shard
        What ``store.json`` says of them.
    row_shape : (int, int)
        n_channels, n_times.
    dtype : str
        Of the values.
    locate : callable
        Gives the path on this machine; picklable.
    """

    def __init__(
        self, shards: Sequence[Shard], row_shape: tuple[int, int], dtype: str, locate: Callable[[StoredFile], Path]
    ) -> None:
        self.shards = tuple(shards)
        self._row_shape = row_shape
        self._dtype = np.dtype(dtype)
        self._locate = locate
        self._checked: dict[int, _Identity] = {}
        self._open: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process: maps and lock."""
        return {**self.__dict__, "_open": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "_lock": threading.Lock()})

    def __getitem__(self, index: int) -> NDArray[Any]:
        """Return shard ``index``, (n_epochs, n_channels, n_times), as a read-only map.

        Raises
        ------
        ValueError
            If the file is missing, cut off or changed; the message names it.
        """
        with self._lock:
            if index in self._open:
                self._open.move_to_end(index)
                return self._open[index]
        path = self.check(index)
        mapped = np.asarray(_mapped(path))
        expected = (self.shards[index].n_epochs, *self._row_shape)
        if mapped.shape != expected or mapped.dtype != self._dtype:
            raise ValueError(
                f"shard {path.name} holds {mapped.shape} of {mapped.dtype}, store.json says {expected} of "
                f"{self._dtype}; {REBUILD}"
            )
        with self._lock:
            self._open[index] = mapped
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        return mapped

    def prefetch(self, index: int, first: int, n: int) -> None:
        """Let the kernel start to read ``n`` epochs from ``first`` on of shard ``index``."""
        mapped = self[index]
        buffer: Any = mapped
        while isinstance(buffer, np.ndarray):
            buffer = buffer.base
        row_bytes = mapped.nbytes // len(mapped)
        start = self.shards[index].n_bytes - mapped.nbytes + first * row_bytes
        page = start // mmap.PAGESIZE * mmap.PAGESIZE
        buffer.madvise(mmap.MADV_WILLNEED, page, start + n * row_bytes - page)

    def check(self, index: int) -> Path:
        """Compare size and sha256 of a shard with ``store.json``, unless this was done before; return its path."""
        shard = self.shards[index]
        path = self._locate(shard)
        identity = _identity(path, shard)
        if self._checked.get(index) != identity:
            if file_sha256(path) != shard.sha256:
                remedy = REBUILD if path.name == shard.file else f"delete {path}, it will be fetched again"
                raise ValueError(f"shard {shard.file} does not match its sha256 in store.json; {remedy}")
            self._checked[index] = identity
        return path


def _identity(path: Path, shard: Shard) -> _Identity:
    try:
        found = path.stat()
    except FileNotFoundError:
        raise ValueError(f"shard {shard.file} is missing from {path.parent}; {REBUILD}") from None
    if found.st_size != shard.n_bytes:
        raise ValueError(f"shard {shard.file} has {found.st_size} bytes, store.json says {shard.n_bytes}; {REBUILD}")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _mapped(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"shard {path.name} is no plain array ({error}); {REBUILD}") from error
    return array


def _check_rounding(
    scaled: NDArray[np.float32], stored: NDArray[Any], ch_names: Sequence[str], ch_types: Sequence[str]
) -> None:
    """Refuse channels whose offset costs the resolution that their signal needs."""
    noise = np.sqrt(np.square(stored.astype(np.float32) - scaled).mean(axis=(0, 2)))
    spread = np.sqrt(scaled.var(axis=2).mean(axis=0))
    bad = np.flatnonzero((noise > MAX_ROUNDING_SHARE * spread) & (noise > ROUND_TRIP_FLOOR))
    if len(bad):
        unit, channel = CHANNEL_KINDS[ch_types[bad[0]]].display_unit, int(bad[0])
        raise ValueError(
            f"channel {ch_names[channel]}: values around {scaled[:, channel].mean():.4g} {unit} with a spread of "
            f"{spread[channel]:.3g} {unit} would get rounding noise of {noise[channel]:.3g} {unit} as {stored.dtype}, "
            f"expected at most {MAX_ROUNDING_SHARE:.0%} of the spread ({len(bad)} such channels); remove the offset "
            "(baseline, high-pass), drop the channel, or store float32"
        )
