"""A store gives back its epochs in SI units, names what is damaged, and never holds itself in memory."""

import hashlib
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from toy_recordings import changed, toy_source

from encoders.epoch_source import EpochMetadata
from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.store import COLUMNS, EpochStore, verify_store
from encoders.store_build import build_store
from encoders.store_manifest import StoreManifest


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("store")
    source = toy_source(folder / "in")
    build_store(source, folder / "out", shard_bytes=2000)
    return folder / "out", source.signal()


@pytest.fixture
def folder(built: tuple[Path, np.ndarray], tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(built[0], tmp_path / "copy")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def test_read_gives_si_values_in_the_order_asked(built: tuple[Path, np.ndarray]) -> None:
    path, signal = built
    store = EpochStore.open(path)
    rows = np.random.default_rng(0).permutation(len(store))
    data = store.read(rows)
    assert data.dtype == np.float32
    floor = 2.0**-24 * store.info.scales[:, None]
    assert (np.abs(data - signal[rows]) <= 2.0**-10 * np.abs(signal[rows]) + floor).all()
    assert (data[:, 2] != 0).mean() > 0.99  # tesla


def test_info_says_what_all_epochs_share(built: tuple[Path, np.ndarray]) -> None:
    info = EpochStore.open(str(built[0])).info
    assert (info.dataset, info.sfreq, info.tmin, info.n_epochs, info.n_times) == ("toy", 100.0, -0.1, 77, 20)
    assert info.ch_names == ("Cz", "Pz", "MLC11", "MEG0112")
    assert info.ch_types == ("eeg", "eeg", "mag", "grad")
    assert info.scales.tolist() == np.asarray([1e-6, 1e-6, 1e-15, 1e-13], np.float32).tolist()
    assert info.positions.shape == (4, 3)


def test_epochs_are_of_one_person(built: tuple[Path, np.ndarray]) -> None:
    store = EpochStore.open(built[0])
    epochs = store.epochs([3, 1, 20])
    assert isinstance(epochs, SignalEpochs)
    assert (epochs.subject, epochs.sfreq, epochs.tmin) == ("sub-01", 100.0, -0.1)
    assert epochs.stimulus == ("concept3/image3.jpg", "concept1/image1.jpg", "concept0/image0.jpg")
    assert epochs.n_averaged == (2, 2, 2)
    assert np.array_equal(epochs.data, store.read([3, 1, 20]))
    with pytest.raises(EpochsMismatch, match=r"2 rows of people \['sub-01', 'sub-02'\]"):
        store.epochs([0, 30])
    with pytest.raises(EpochsMismatch, match="0 rows"):
        store.epochs([])


def test_metadata_has_one_row_per_epoch(built: tuple[Path, np.ndarray]) -> None:
    table = EpochStore.open(built[0]).metadata
    assert table.schema.equals(COLUMNS)
    assert table.column_names == [
        "row", "shard", "offset", "part", "subject", "session", "run", "image", "concept", "split", "repetition",
        "n_averaged",
    ]  # fmt: skip
    assert table["row"].to_pylist() == list(range(77))
    assert pq.read_table(built[0] / "epochs.parquet").equals(table)


def test_a_store_is_pickled_small_and_reads_on(built: tuple[Path, np.ndarray]) -> None:
    store = EpochStore.open(built[0])
    assert store.metadata.num_rows == 77
    packed = pickle.dumps(store)
    again = pickle.loads(packed)
    assert "metadata" not in again.__dict__ and len(packed) < 20_000
    assert np.array_equal(again.read([70, 2]), store.read([70, 2]))
    assert again.metadata.equals(store.metadata)


def test_what_is_no_finished_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no store\.json in .* run the same build again to finish it"):
        EpochStore.open(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no store\.json"):
        EpochStore.open(tmp_path / "nothing")
    assert "no store.json" in verify_store(tmp_path)[0]


def test_a_whole_store_has_no_problems(built: tuple[Path, np.ndarray]) -> None:
    assert verify_store(built[0]) == []


def test_a_flipped_byte_in_any_file_is_named_and_refused(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) == 10
    for path in files:
        for place in (0, path.stat().st_size // 2, path.stat().st_size - 2):
            flip(path, place)
            problems = verify_store(folder)
            assert len(problems) == 1 and path.name in problems[0], (path.name, place, problems)
            with pytest.raises(ValueError, match=path.name.replace(".", r"\.")):
                store = EpochStore.open(folder)
                store.metadata  # noqa: B018
                store.read(slice(None))
            flip(path, place)
    assert verify_store(folder) == []


def test_damage_is_noticed_only_by_those_who_read_it(folder: Path) -> None:
    flip(folder / "shards" / "sub-03_ses-01-0002.npy", 300)
    store = EpochStore.open(folder)
    assert len(store.read(slice(0, 60))) == 60
    with pytest.raises(ValueError, match=r"shard sub-03_ses-01-0002\.npy does not match its sha256"):
        store.read([76])
    with pytest.raises(ValueError, match=r"sub-03_ses-01-0002\.npy"):
        EpochStore.open(folder).prepare()


def test_several_problems_are_all_listed(folder: Path) -> None:
    (folder / "shards" / "sub-01_ses-01-0001.npy").unlink()
    path = folder / "shards" / "sub-02_ses-01-0000.npy"
    path.write_bytes(path.read_bytes()[:-7])
    (folder / "epochs.parquet").unlink()
    (folder / "shards" / "extra.npy").write_bytes(b"")
    problems = verify_store(folder)
    assert [name in line for name, line in zip(
        ("extra.npy is not in", "epochs.parquet is missing", "sub-01_ses-01-0001.npy is missing",
         "sub-02_ses-01-0000.npy has"), problems, strict=True)] == [True] * 4  # fmt: skip


def test_a_table_that_does_not_fit_the_shards_is_refused(folder: Path) -> None:
    store = EpochStore.open(folder)
    column = store.metadata.schema.get_field_index("offset")
    for table, said in (
        (store.metadata.slice(1), "has 76 rows"),
        (store.metadata.drop_columns(["run"]), "columns"),
        (store.metadata.set_column(column, COLUMNS.field("offset"), [[0] * 77]), "column offset does not follow"),
    ):
        pq.write_table(table, folder / "epochs.parquet")
        manifest = EpochStore.open(folder).manifest
        entry = manifest.metadata.model_copy(update=_described(folder / "epochs.parquet"))
        text = manifest.model_copy(update={"metadata": entry}).to_text()
        (folder / "store.json").write_text(text)
        assert StoreManifest.from_text(text)
        problems = verify_store(folder)
        assert len(problems) == 1 and said in problems[0]


def _described(path: Path) -> dict[str, object]:
    return {"n_bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_people_and_sessions_with_other_sensor_places_keep_them(tmp_path: Path) -> None:
    source = changed(toy_source(tmp_path / "in", 4), 3, name="sub-01_ses-02", seed=5)
    store = build_store(source, tmp_path / "out")
    assert np.allclose(store.epochs(slice(0, 10)).positions, 0.01)
    assert np.allclose(store.epochs([0, 80]).positions, 0.015)  # two sessions of one person: their mean


@dataclass(frozen=True)
class LargePart:
    """64 MB of float16 in blocks of 16 MB; the first value of an epoch is its number."""

    name: str
    first: int

    inputs = ()

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        n, n_channels, n_times = 512, 64, 256
        noise = np.random.default_rng(self.first).standard_normal((n, n_channels, n_times), np.float32) * 1e-5
        names = tuple(f"E{i}" for i in range(n_channels))
        for block in range(4):
            data = noise.copy()
            data[:, 0, 0] = 1e-6 * ((self.first + block * n + np.arange(n)) % 2048)
            epochs = SignalEpochs(data, 250.0, 0.0, names, ("eeg",) * n_channels, np.zeros((n_channels, 3)), "s")
            text = ("x",) * n
            yield epochs, EpochMetadata(text, text, ("train",) * n, text, text, (0,) * n)


@dataclass(frozen=True)
class LargeSource:
    dataset = "large"

    def parts(self) -> list[LargePart]:
        return [LargePart(f"part{i}", 2048 * i) for i in range(4)]


READ_LARGE = """
import resource, sys
import numpy as np
from encoders.store import EpochStore

def kilobytes(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field + ":"))

array = EpochStore.open(sys.argv[1]).array()
array[[0]]
allowed = 64 * 1024
before = kilobytes("RssAnon")
limit = (kilobytes("VmData") + allowed) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
peak = 0
for turn in range(2):
    order = np.random.default_rng(turn).permutation(len(array))
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        assert np.array_equal(array[rows][:, 0, 0], rows % 2048)
        peak = max(peak, kilobytes("RssAnon"))
print("grown", (peak - before) // 1024)
try:
    array[:]
except MemoryError:
    print("too large")
"""


def test_a_store_four_times_the_allowed_memory_is_read_within_it(tmp_path: Path, project_root: Path) -> None:
    """256 MB are read twice, at random, by a process that may take 64 MB.

    Counted is RssAnon, limited RLIMIT_DATA: memory that only this process has. Pages of a mapped file also count as
    RSS, but they are the page cache's: the kernel drops them when anyone needs room, so RSS says nothing about need.
    """
    store = build_store(LargeSource(), tmp_path / "out", shard_bytes=1 << 25)
    n_bytes = sum(shard.n_bytes for shard in store.manifest.shards)
    assert n_bytes >= 4 * 64 * 1024**2
    done = subprocess.run(
        [sys.executable, "-c", READ_LARGE, str(tmp_path / "out")], cwd=project_root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.split("\n")
    assert int(said[0].split()[1]) < 64
    assert said[1] == "too large"  # the limit is real: the whole array does not fit
