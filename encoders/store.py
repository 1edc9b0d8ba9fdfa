"""`EpochStore`: the epochs of a whole data set on disk, read at random and in SI units.

Plain ``.npy`` shards behind memory-maps, because a batch of random epochs is then one copy per epoch out of the page
cache; Zarr and HDF5 put an index and a decoder in between (``benchmarks/store_throughput.py``). Opening a store reads
``store.json`` alone; the table and the shards are read, and compared with their sha256, when they are first needed.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from encoders.durable_files import file_sha256
from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.store_array import StoreArray, row_numbers
from encoders.store_cache import ShardLocator, StoreLocation
from encoders.store_manifest import (
    MANIFEST,
    METADATA,
    REBUILD,
    SHARDS,
    StoreManifest,
    positions_from_json,
)
from encoders.store_shards import ShardFiles, from_stored

COLUMNS = pa.schema(
    [
        ("row", pa.int64()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("part", pa.string()),
        ("subject", pa.string()),
        ("session", pa.string()),
        ("run", pa.string()),
        ("image", pa.string()),
        ("concept", pa.string()),
        ("split", pa.string()),
        ("repetition", pa.int32()),
        ("n_averaged", pa.int32()),
    ]
)


@dataclass(frozen=True)
class StoreInfo:
    """What all epochs of a store share.

    Attributes
    ----------
    dataset : str
        Name of the data set.
    sfreq, tmin : float
        Hertz; seconds of the first sample relative to the onset.
    n_epochs, n_times : int
        Epochs in all, samples per epoch.
    ch_names, ch_types : tuple of str
        Channels and their kinds.
    positions : ndarray, (n_channels, 3), float32
        Metres, head frame: the mean over parts; NaN where one part lacks them.
    scales : ndarray, (n_channels,), float32
        SI value of 1 in `StoreArray`.
    """

    dataset: str
    sfreq: float
    tmin: float
    n_epochs: int
    n_times: int
    ch_names: tuple[str, ...]
    ch_types: tuple[str, ...]
    positions: NDArray[np.float32]
    scales: NDArray[np.float32]


class EpochStore:
    """A finished store, opened for reading; can be pickled and forked, opens its files in each process when needed.

    `encoders.store_build.build_store` makes one.
    """

    def __init__(self, location: StoreLocation, manifest: StoreManifest) -> None:
        self.location = location
        self.manifest = manifest
        locate = ShardLocator(location, SHARDS)
        self._files = ShardFiles(manifest.shards, manifest.row_shape, manifest.plan.dtype, locate)

    @classmethod
    def open(cls, path_or_url: Path | str, *, cache_dir: Path | str | None = None) -> "EpochStore":
        """Open a store without reading signals.

        Parameters
        ----------
        path_or_url : Path or str
            Folder, or a URL of fsspec: ``s3://bucket/store``, ``memory://store``, ``file:///mnt/slow/store``.
        cache_dir : Path or str, optional
            Where files of a URL are kept, each when it is first read; by default in ``~/.cache/phosphene/stores``.

        Raises
        ------
        FileNotFoundError
            If there is no finished store.
        ValueError
            If ``store.json`` is damaged.
        """
        location = StoreLocation.of(path_or_url, cache_dir)
        try:
            text = location.text(MANIFEST)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"no {MANIFEST} in {location.root}: not a store, or one whose building was stopped; "
                "run the same build again to finish it"
            ) from error
        return cls(location, StoreManifest.from_text(text))

    def __len__(self) -> int:
        return self.manifest.n_epochs

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the table: whoever needs it reads it again."""
        return {name: value for name, value in self.__dict__.items() if name != "metadata"}

    @cached_property
    def info(self) -> StoreInfo:
        """What all epochs share."""
        plan, signal = self.manifest.plan, self.manifest.signal
        return StoreInfo(
            dataset=plan.dataset,
            sfreq=signal.sfreq,
            tmin=signal.tmin,
            n_epochs=len(self),
            n_times=signal.n_times,
            ch_names=signal.ch_names,
            ch_types=signal.ch_types,
            positions=self._positions(range(len(plan.parts))),
            scales=np.asarray(self.manifest.scales, dtype=np.float32),
        )

    @cached_property
    def metadata(self) -> pa.Table:
        """One row per epoch, columns `COLUMNS`; read and compared with its sha256 once.

        Raises
        ------
        ValueError
            If the file is missing, damaged, or does not describe the shards.
        """
        entry = self.manifest.metadata
        path = self.location.file("", entry)
        if not path.is_file() or file_sha256(path) != entry.sha256:
            raise ValueError(f"{METADATA} is missing or does not match its sha256 in {MANIFEST}; {REBUILD}")
        # Arrow's own threads and memory-maps do not survive a fork
        table = pq.read_table(path, use_threads=False, memory_map=False)
        if not table.schema.equals(COLUMNS) or table.num_rows != len(self):
            raise ValueError(
                f"{METADATA} has {table.num_rows} rows and columns {table.schema.names}, expected {len(self)} rows of "
                f"{COLUMNS.names}; {REBUILD}"
            )
        return table

    def array(self) -> StoreArray:
        """Return all epochs as one array that is read at random; it shares this store's open files."""
        return StoreArray(self._files, self.manifest.row_shape, self.manifest.plan.dtype, self.info.scales)

    def read(self, rows: slice | ArrayLike) -> NDArray[np.float32]:
        """Read epochs in SI units.

        Parameters
        ----------
        rows : slice, integers (n,), or mask (n_epochs,)
            In the order that is wanted.

        Returns
        -------
        ndarray, (n, n_channels, n_times), float32
            Volt, tesla or tesla per metre by channel; from float16 within 2^-10 of the value plus 2^-24 display units
            (6e-14 V, 6e-23 T) of what was stored.
        """
        return from_stored(self.array().take(rows), self.info.scales)

    def epochs(self, rows: slice | ArrayLike) -> SignalEpochs:
        """Read epochs of one person, with image ids as stimuli.

        Sensor positions are the mean over the parts that the rows come from.

        Raises
        ------
        EpochsMismatch
            If the rows are of several people, or there are none.
        """
        wanted = row_numbers(rows, len(self))
        table = self.metadata.select(["part", "subject", "image", "n_averaged"]).take(wanted).to_pydict()
        subjects = sorted(set(table["subject"]))
        if len(subjects) != 1:
            raise EpochsMismatch(f"{len(wanted)} rows of people {subjects}, expected one person; read them apart")
        names = [part.name for part in self.manifest.plan.parts]
        return SignalEpochs(
            data=self.read(wanted),
            sfreq=self.info.sfreq,
            tmin=self.info.tmin,
            ch_names=self.info.ch_names,
            ch_types=self.info.ch_types,
            positions=self._positions(sorted(names.index(part) for part in set(table["part"]))),
            subject=subjects[0],
            stimulus=tuple(table["image"]),
            n_averaged=tuple(table["n_averaged"]),
        )

    def prepare(self, *, n_threads: int = 4, progress: bool = False) -> None:
        """Fetch and check all shards now, in threads, so that the workers started afterwards need not.

        Raises
        ------
        ValueError
            If a shard is missing or damaged.
        """
        n_shards = len(self.manifest.shards)
        with ThreadPoolExecutor(n_threads) as pool:
            done = pool.map(self._files.check, range(n_shards))
            for _ in tqdm(done, total=n_shards, desc="shards", disable=not progress, mininterval=1.0):
                pass

    def _positions(self, parts: Sequence[int]) -> NDArray[np.float32]:
        sets = [self.manifest.positions[self.manifest.part_positions[part]] for part in parts]
        if len(set(sets)) == 1:
            return positions_from_json(sets[0])
        mean: NDArray[np.float64] = np.mean([positions_from_json(one) for one in sets], axis=0, dtype=np.float64)
        return mean.astype(np.float32)


def verify_store(path_or_url: Path | str, *, cache_dir: Path | str | None = None, progress: bool = False) -> list[str]:
    """Read a whole store and return what is wrong with it, one line per file; an empty list when nothing is.

    Every file is compared with its sha256, the table with the shards, and a folder with the list of its files.
    """
    try:
        store = EpochStore.open(path_or_url, cache_dir=cache_dir)
    except (OSError, ValueError) as error:
        return [str(error)]
    problems = _unknown_shards(store)
    try:
        problems += _misplaced_rows(store)
    except (OSError, ValueError) as error:
        problems.append(str(error))
    for index in tqdm(range(len(store.manifest.shards)), desc="shards", disable=not progress, mininterval=1.0):
        try:
            store._files[index]
        except (OSError, ValueError) as error:
            problems.append(str(error))
    return problems


def _unknown_shards(store: EpochStore) -> list[str]:
    if store.location.cache is not None:
        return []
    known = {shard.file for shard in store.manifest.shards}
    found = {path.name for path in (Path(store.location.root) / SHARDS).glob("*")}
    return [f"{SHARDS}/{name} is not in {MANIFEST}; remove it" for name in sorted(found - known)]


def _misplaced_rows(store: EpochStore) -> list[str]:
    counts = [shard.n_epochs for shard in store.manifest.shards]
    expected = {
        "row": np.arange(len(store)),
        "shard": np.repeat(np.arange(len(counts)), counts),
        "offset": np.concatenate([np.arange(count) for count in counts]),
    }
    wrong = [name for name, values in expected.items() if not np.array_equal(store.metadata[name].to_numpy(), values)]
    return [f"{METADATA}: column {name} does not follow the shards; {REBUILD}" for name in wrong]
