"""Rows of a store in any order are those of numpy, whatever shards they lie in, and a pass sees each once."""

import functools
import multiprocessing
import pickle
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from toy_recordings import toy_source

from alignment.pairs import batch_rows
from encoders import store_shards
from encoders.store import EpochStore
from encoders.store_array import StoreArray
from encoders.store_build import build_store

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpochStore:
    folder = tmp_path_factory.mktemp("store")
    return build_store(toy_source(folder / "in"), folder / "out", shard_bytes=2000)


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> EpochStore:
    """A whole number of batches: epochs left over at a pass's end sit it out."""
    folder = tmp_path_factory.mktemp("even")
    return build_store(toy_source(folder / "in", 2, n_epochs=28), folder / "out", shard_bytes=2000)


@pytest.fixture(scope="module")
def whole(store: EpochStore) -> np.ndarray:
    return np.concatenate([np.load(p) for p in sorted((Path(store.location.root) / "shards").glob("*.npy"))])


ROWS = {
    "random": np.random.default_rng(0).permutation(77)[:40],
    "repeats": np.asarray([5, 5, 76, 0, 5, 6, 7, 6]),
    "backwards": np.arange(77)[::-1],
    "negative": np.asarray([-1, 0, -77]),
    "none": np.asarray([], dtype=int),
    "mask": np.arange(77) % 3 == 0,
    "slice": slice(9, 61),
    "steps": slice(70, 2, -7),
    "list": [3, 1, 2],
    "across shards": np.arange(10, 14),
    "one": 30,
    "numpy integer": np.int32(-3),
}


@pytest.mark.parametrize("rows", list(ROWS.values()), ids=list(ROWS))
def test_indexing_is_that_of_numpy(store: EpochStore, whole: np.ndarray, rows: object) -> None:
    got = store.array()[rows]  # type: ignore[index]
    expected = whole[rows]  # type: ignore[index]
    assert got.dtype == np.float16 and got.shape == expected.shape
    assert np.array_equal(got, expected)


def test_shape_and_length(store: EpochStore) -> None:
    array = store.array()
    assert (array.shape, len(array), array.dtype) == ((77, 4, 20), 77, np.float16)


def test_scales_turn_values_into_si(store: EpochStore) -> None:
    array = store.array()
    assert np.array_equal(array[:].astype(np.float32) * array.scales[:, None], store.read(slice(None)))


def test_a_given_buffer_is_filled(store: EpochStore, whole: np.ndarray) -> None:
    out = np.zeros((3, 4, 20), np.float16)
    assert store.array().take([7, 70, 3], out) is out
    assert np.array_equal(out, whole[[7, 70, 3]])
    with pytest.raises(ValueError, match=r"out is \(3, 4, 20\) of float16, expected \(2, 4, 20\)"):
        store.array().take([0, 1], out)
    with pytest.raises(ValueError, match="C-contiguous"):
        store.array().take([0, 1, 2], np.zeros((4, 3, 20), np.float16).transpose(1, 0, 2))


def test_prefetching_changes_nothing_and_reaches_every_row(store: EpochStore, whole: np.ndarray) -> None:
    array = EpochStore.open(store.location.root).array()
    array.prefetch(slice(None))
    array.prefetch([76, 0, 0, 11, 12])
    array.prefetch([])
    assert np.array_equal(array[:], whole)
    with pytest.raises(IndexError, match="rows 77 to 77"):
        array.prefetch([77])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([0, 77], "rows 0 to 77 are wanted of a store of 77 epochs"),
        ([-78], "rows -78 to -78"),
        (77, "rows 77 to 77"),
        ([0.5], "rows are float64"),
        ([[1, 2]], r"of shape \(1, 2\)"),
        (np.ones(5, bool), r"mask has shape \(5,\), expected \(77,\)"),
    ],
)
def test_rows_that_do_not_exist_are_refused(store: EpochStore, rows: object, said: str) -> None:
    with pytest.raises(IndexError, match=said):
        store.array()[rows]  # type: ignore[index]


class Batches(Dataset):
    """Batches of a store by step, as one rank's workers read them; optionally from a slow disk."""

    def __init__(self, array: StoreArray, batch_size: int, rank: int, world: int, seconds: float = 0.0) -> None:
        self.array, self.seconds = array, seconds
        self.rows = functools.partial(batch_rows, len(array), batch_size, rank=rank, world=world, seed=1)

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(self.seconds)
        rows = self.rows(step)
        return torch.from_numpy(rows), torch.from_numpy(self.array[rows])


class Steps(Sampler):
    def __init__(self, first: int, n: int) -> None:
        self.steps = range(first, first + n)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


@pytest.mark.parametrize(("n_workers", "method"), [(4, "fork"), (1, "spawn")])
def test_workers_read_identical_bytes(store: EpochStore, whole: np.ndarray, n_workers: int, method: str) -> None:
    array = store.array()
    array[[0, 40]]  # maps that are open when the workers fork must not disturb them
    batches = Batches(array, 11, 0, 1)
    loader = DataLoader(
        batches, batch_size=None, sampler=Steps(0, 14), num_workers=n_workers, multiprocessing_context=method
    )
    seen = 0
    for rows, data in loader:
        assert data.numpy().tobytes() == whole[rows.numpy()].tobytes()
        seen += len(rows)
    assert seen == 154


@pytest.mark.parametrize("turn", [0, 3])
@pytest.mark.parametrize(("n_workers", "world"), [(0, 1), (1, 1), (3, 1), (2, 2), (3, 4)])
def test_a_pass_visits_every_row_exactly_once(even: EpochStore, n_workers: int, world: int, turn: int) -> None:
    n_steps, batch_size, array = 7, 8, even.array()
    assert len(array) == n_steps * batch_size
    whole = array[:]
    seen: Counter[int] = Counter()
    for rank in range(world):
        loader = DataLoader(
            Batches(array, batch_size, rank, world),
            batch_size=None,
            sampler=Steps(turn * n_steps, n_steps),
            num_workers=n_workers,
        )
        for rows, data in loader:
            seen.update(rows.tolist())
            assert np.array_equal(data.numpy(), whole[rows.numpy()])
    assert seen == Counter(range(n_steps * batch_size))


def test_workers_do_not_hash_what_their_parent_has(store: EpochStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = EpochStore.open(store.location.root)
    fresh.prepare(n_threads=2)

    def hashed(path: Path) -> str:
        raise AssertionError(f"{path.name} is hashed again")

    monkeypatch.setattr(store_shards, "file_sha256", hashed)
    copies = pickle.loads(pickle.dumps(fresh)), pickle.loads(pickle.dumps(fresh.array()))
    assert len(copies[0].read(slice(None))) == len(copies[1][:]) == 77
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(fresh.array().__getitem__, [3, 70])[0].shape == (4, 20)


def test_four_workers_hide_a_slow_disk(store: EpochStore) -> None:
    """Reads of 50 ms and computing of 20 ms a step: four workers wait less than half as long as one."""
    shares = []
    for n_workers in (4, 4, 4, 1):
        loader = DataLoader(
            Batches(store.array(), 7, 0, 1, seconds=0.05),
            batch_size=None,
            sampler=Steps(0, 46),
            num_workers=n_workers,
            prefetch_factor=4,
        )
        batches = iter(loader)
        for _ in range(16):
            next(batches)
        waited, started = 0.0, time.perf_counter()
        for _ in range(29):
            time.sleep(0.02)
            asked = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - asked
        shares.append(waited / (time.perf_counter() - started))
    assert min(shares[:3]) < shares[3] / 2
