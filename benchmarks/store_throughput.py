"""Random batches of 1,024 epochs out of our store, out of one raw memory-map, out of Zarr 3 and out of HDF5.

    python benchmarks/store_throughput.py [--quick] [--folder DIR]

The same 63 x 250 float16 epochs are written in every format; each round reads the same random rows from all of them,
one after the other, with one thread, files in the page cache, and medians are taken over rounds; then our store alone
with its files dropped from the page cache. Needs 5 GB of disk (``--quick``: 900 MB) and h5py. Writes its part of
``BENCHMARKS.md``, not with ``--quick``. About five minutes.
"""

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import zarr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report_file import write_section  # noqa: E402
from encoders.epoch_source import EpochMetadata  # noqa: E402
from encoders.epochs import SignalEpochs  # noqa: E402
from encoders.store import EpochStore  # noqa: E402
from encoders.store_build import build_store  # noqa: E402

SHAPE = (63, 250)
BATCH = 1024
PER_PART = 4096
GOAL = 0.70
ZARR_SHARD = 1024
ZARR_LAYOUTS = {
    "Zarr 3, 1 epoch a chunk": {"chunks": (1, *SHAPE)},
    "Zarr 3, 16 epochs a chunk": {"chunks": (16, *SHAPE)},
    "Zarr 3, 1 epoch a chunk, sharded": {"chunks": (1, *SHAPE), "shards": (ZARR_SHARD, *SHAPE)},
}
CONTIGUOUS, RAW, OURS = "memory-map, 1,024 neighbours", "memory-map, random rows", "our store, random rows"
PREFETCHED = "the same after `prefetch`"
# epochs, channels, samples of the public sets, as float16
FULL_SIZE = {
    "THINGS-EEG1, 250 Hz": (1_230_000, 63, 275),
    "THINGS-EEG1, 100 Hz": (1_230_000, 63, 100),
    "THINGS-MEG, 201 samples": (108_000, 271, 201),
    "THINGS-MEG, 281 samples": (108_000, 271, 281),
}

Reader = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class NoisePart:
    """4,096 epochs of noise, in volts."""

    name: str
    seed: int
    inputs: tuple[str, ...] = ()

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        n = PER_PART // 4
        generator = np.random.default_rng(self.seed)
        names = tuple(f"E{i}" for i in range(SHAPE[0]))
        for _ in range(4):
            data = 1e-5 * generator.standard_normal((n, *SHAPE), np.float32)
            places = np.full((SHAPE[0], 3), np.nan)
            text = ("",) * n
            epochs = SignalEpochs(data, 250.0, 0.0, names, ("eeg",) * SHAPE[0], places)
            yield epochs, EpochMetadata(text, text, text, text, text, (0,) * n)


@dataclass(frozen=True)
class NoiseSource:
    n_parts: int
    dataset: str = "noise"

    def parts(self) -> list[NoisePart]:
        return [NoisePart(f"part{i:02d}", i) for i in range(self.n_parts)]


def write_others(store: EpochStore, folder: Path) -> dict[str, Reader]:
    """Write the store's epochs as one file, as Zarr and as HDF5; return how rows are read from each."""
    shape, array = (len(store), *SHAPE), store.array()
    raw = np.lib.format.open_memmap(folder / "raw.npy", mode="w+", dtype=np.float16, shape=shape)
    zarrs = {
        name: zarr.create_array(
            store=folder / f"{number}.zarr", shape=shape, dtype="float16", compressors=None, **layout
        )
        for number, (name, layout) in enumerate(ZARR_LAYOUTS.items())
    }
    with h5py.File(folder / "plain.h5", "w") as file:
        plain = file.create_dataset("data", shape=shape, dtype="f2")
        for start in range(0, len(store), ZARR_SHARD):
            rows = slice(start, start + ZARR_SHARD)
            block = array[rows]
            raw[rows] = plain[rows] = block
            for one in zarrs.values():
                one[rows] = block
    raw.flush()
    mapped = np.load(folder / "raw.npy", mmap_mode="r", allow_pickle=False)
    data = h5py.File(folder / "plain.h5", "r")["data"]
    readers: dict[str, Reader] = {
        CONTIGUOUS: lambda rows: np.array(mapped[(first := int(rows[0]) % (len(mapped) - BATCH)) : first + BATCH]),
        RAW: lambda rows: np.take(mapped, rows, axis=0),
        OURS: lambda rows: array[rows],
        "our store, float32 SI": lambda rows: store.read(rows),
        "HDF5, one list of rows": lambda rows: hdf5_list(data, rows),
        "HDF5, row by row": lambda rows: hdf5_rows(data, rows),
    }
    for name, one in zarrs.items():
        readers[name] = lambda rows, one=one: one.get_orthogonal_selection((rows,))
    return readers


def hdf5_list(data: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Read rows that differ as h5py wants them: ascending, then put in order."""
    order = np.argsort(rows)
    out = np.empty((len(rows), *SHAPE), np.float16)
    out[order] = data[rows[order]]
    return out


def hdf5_rows(data: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    out = np.empty((len(rows), *SHAPE), np.float16)
    for i, row in enumerate(rows.tolist()):
        data.read_direct(out, np.s_[row], np.s_[i])
    return out


def measure(readers: dict[str, Reader], n: int, rounds: int) -> dict[str, float]:
    """Return the median rate of each, in float16 bytes per second; formats alternate, a first round is not counted."""
    n_bytes = BATCH * int(np.prod(SHAPE)) * 2
    rates: dict[str, list[float]] = {name: [] for name in readers}
    generator = np.random.default_rng(0)
    for turn in range(rounds + 1):
        rows = generator.choice(n, BATCH, replace=False)
        results = {}
        for name, read in readers.items():
            started = time.perf_counter()
            results[name] = read(rows)
            rates[name] += [n_bytes / (time.perf_counter() - started)] if turn else []
        same = [name for name, got in results.items() if name != CONTIGUOUS and got.dtype == np.float16]
        assert all(np.array_equal(results[name], results[RAW]) for name in same)
    return {name: statistics.median(values) for name, values in rates.items()}


def measure_cold(store: EpochStore, rounds: int) -> dict[str, float]:
    """Return the median rate of first reads from the disk, plain and after asking the kernel for the rows."""
    n_bytes = BATCH * int(np.prod(SHAPE)) * 2
    generator = np.random.default_rng(1)
    rates: dict[str, list[float]] = {"our store, from the disk": [], PREFETCHED: []}
    store.prepare()
    for _ in range(rounds):
        for name, collected in rates.items():
            rows = generator.choice(len(store), BATCH, replace=False)
            drop_from_cache(Path(store.location.root))
            array = copy.deepcopy(store).array()  # a copy has nothing mapped; mapped pages cannot be dropped
            started = time.perf_counter()
            if name == PREFETCHED:
                array.prefetch(rows)
            array[rows]
            collected.append(n_bytes / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in rates.items()}


def drop_from_cache(folder: Path) -> None:
    for path in folder.rglob("*.npy"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm_up(store: EpochStore, readers: dict[str, Reader]) -> float:
    """Bring all files into the page cache; return the rate of checking sha256, bytes per second."""
    n_bytes = sum(shard.n_bytes for shard in store.manifest.shards)
    fresh = EpochStore.open(store.location.root)
    fresh.prepare(n_threads=1)
    started = time.perf_counter()
    EpochStore.open(store.location.root).prepare(n_threads=1)
    rate = n_bytes / (time.perf_counter() - started)
    for start in range(0, len(store), BATCH):
        for read in readers.values():
            read(np.arange(start, start + BATCH))
    return rate


def report(
    rates: dict[str, float], cold: dict[str, float], n: int, built: float, checked: float, rounds: int, quick: bool
) -> str:
    """Return the Markdown section."""
    share = rates[OURS] / rates[RAW]
    epoch_bytes = int(np.prod(SHAPE)) * 2
    command = "python benchmarks/store_throughput.py" + (" --quick" if quick else "")
    lines = [
        f"`{command}`: batches of {BATCH:,} out of {n:,} epochs of {SHAPE[0]} x {SHAPE[1]} float16 "
        f"({n * epoch_bytes / 1e6:.0f} MB), one thread, page cache warm, uncompressed, medians of {rounds} rounds "
        f"in one run; numpy {np.__version__}, zarr {zarr.__version__}, h5py {h5py.__version__}.",
        "",
        "| | MB/s | epochs/s | of raw copy, neighbours | of raw copy, random |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {rate / 1e6:.0f} | {rate / epoch_bytes:.0f} | {rate / rates[CONTIGUOUS]:.0%} "
            f"| {rate / rates[RAW]:.0%} |"
            for name, rate in {**rates, **cold}.items()
        ),
        "",
        f"Goal: our store at {GOAL:.0%} or more of the copy of the same random rows out of one memory-map; "
        f"{'kept' if share >= GOAL else 'MISSED'} ({share:.0%}). Copying neighbours is faster for any layout. Zarr's "
        f"shards hold {ZARR_SHARD:,} epochs, HDF5 has its data in one piece. Rates count float16 bytes, for float32 "
        "too. From the disk: the page cache emptied of the store before every batch; of this disk, whatever it is.",
        "",
        f"Building, one process, noise made on the way: {built / 1e6:.0f} MB/s of float16. Checking sha256 on first "
        f"read, one thread: {checked / 1e6:.0f} MB/s.",
        "",
        "At these rates, on paper, one process:",
        "",
        "| | epochs | GB as float16 | one pass, in memory, s | one pass, from this disk, s | first check, s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, (n_epochs, n_channels, n_times) in FULL_SIZE.items():
        size = n_epochs * n_channels * n_times * 2
        lines.append(
            f"| {name} ({n_channels} x {n_times}) | {n_epochs:,} | {size / 1e9:.1f} | {size / rates[OURS]:.0f} "
            f"| {size / cold[PREFETCHED]:.0f} | {size / checked:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a fifth of the data, few rounds, BENCHMARKS.md untouched")
    parser.add_argument("--folder", type=Path, help="where to put the temporary files (default: the system's)")
    arguments = parser.parse_args()
    n_parts, rounds = (1, 3) if arguments.quick else (6, 11)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        started = time.perf_counter()
        store = build_store(NoiseSource(n_parts), folder / "store")
        built = sum(shard.n_bytes for shard in store.manifest.shards) / (time.perf_counter() - started)
        cold = measure_cold(store, rounds)
        readers = write_others(store, folder)
        checked = warm_up(store, readers)
        rates = measure(readers, len(store), rounds)
    text = report(rates, cold, len(store), built, checked, rounds, arguments.quick)
    if arguments.quick:
        print(text)
    else:
        write_section("Epoch store", text)


if __name__ == "__main__":
    main()
