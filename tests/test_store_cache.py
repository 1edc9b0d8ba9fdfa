"""Stores behind URLs: fetched once, under their sha256, whole or not at all."""

import errno
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs
from toy_recordings import toy_source

from encoders import store_cache
from encoders.store import EpochStore, verify_store
from encoders.store_build import build_store
from encoders.store_cache import StoreLocation
from serving.cluster import free_port


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("store")
    build_store(toy_source(where / "in"), where / "out", shard_bytes=2000)
    return where / "out"


@pytest.fixture
def remote(folder: Path) -> Iterator[str]:
    """The store in fsspec's memory."""
    files = fsspec.filesystem("memory")
    files.put(str(folder), "/bucket/store", recursive=True)
    yield "memory://bucket/store"
    files.rm("/bucket", recursive=True)


def cached(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks")


def test_a_url_reads_like_its_folder(folder: Path, remote: str, tmp_path: Path) -> None:
    local, store = EpochStore.open(folder), EpochStore.open(remote, cache_dir=tmp_path)
    rows = np.random.default_rng(0).permutation(77)
    assert np.array_equal(store.read(rows), local.read(rows))
    assert store.metadata.equals(local.metadata)
    assert store.epochs([1, 2]).subject == "sub-01"


def test_files_are_fetched_when_first_read_and_once(remote: str, tmp_path: Path) -> None:
    store = EpochStore.open(remote, cache_dir=tmp_path)
    assert cached(tmp_path) == []
    store.read([0])
    digest = store.manifest.shards[0].sha256
    assert cached(tmp_path) == [tmp_path / digest[:2] / digest]
    fsspec.filesystem("memory").rm("/bucket/store/shards/" + store.manifest.shards[0].file)
    again = EpochStore.open(remote + "/", cache_dir=tmp_path)
    assert np.array_equal(again.read([0]), store.read([0]))
    with pytest.raises(ValueError, match=r"shards/sub-01_ses-01-0000\.npy is missing from memory://bucket/store"):
        EpochStore.open(remote, cache_dir=tmp_path / "other").read([0])


def test_a_file_url_and_the_default_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = EpochStore.open(folder.as_uri())
    store.prepare()
    assert store.location.cache == tmp_path / "phosphene" / "stores"
    assert len(cached(tmp_path)) == len(store.manifest.shards)
    assert verify_store(folder.as_uri()) == []


def test_a_cache_for_a_folder_has_no_effect_and_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cache_dir has no effect"):
        EpochStore.open(folder, cache_dir=tmp_path)


def test_no_store_at_a_url(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no store\.json in memory://bucket/nothing"):
        EpochStore.open("memory://bucket/nothing", cache_dir=tmp_path)


def test_damage_on_the_way_is_named_and_leaves_nothing(remote: str, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    store = EpochStore.open(remote, cache_dir=tmp_path)
    path = "/bucket/store/shards/" + store.manifest.shards[1].file
    content = files.cat_file(path)
    for wrong in (content[:-1] + b"x", content[:200], b""):
        files.pipe_file(path, wrong)
        with pytest.raises(ValueError, match=rf"sub-01_ses-01-0001\.npy of memory.* has {len(wrong)} bytes"):
            store.read([12])
        assert cached(tmp_path) == []
    files.pipe_file(path, content)
    assert store.read([12]).shape == (1, 4, 20)


def test_a_damaged_cache_is_refused(remote: str, tmp_path: Path) -> None:
    EpochStore.open(remote, cache_dir=tmp_path).read([0])
    (file,) = cached(tmp_path)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    said = rf"shard sub-01_ses-01-0000\.npy does not match its sha256 .*; delete .*{file.name}, it"
    with pytest.raises(ValueError, match=said):
        EpochStore.open(remote, cache_dir=tmp_path).read([0])
    file.unlink()
    assert EpochStore.open(remote, cache_dir=tmp_path).read([0]).shape == (1, 4, 20)


def test_a_damaged_description_is_refused(remote: str, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/store/store.json", b"\xff\xfe")
    with pytest.raises(ValueError, match=r"store\.json of memory://bucket/store is damaged"):
        EpochStore.open(remote, cache_dir=tmp_path)


def test_a_full_disk_leaves_nothing_half(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = EpochStore.open(remote, cache_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="could not be fetched .*No space left .*free space") as caught:
            store.read([0])
    assert caught.value.errno == errno.ENOSPC
    assert cached(tmp_path) == []
    assert store.read([0]).shape == (1, 4, 20)


def _first_value(store: EpochStore) -> float:
    return float(store.read([76])[0, 0, 0])


def test_many_processes_fetch_a_file_once(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    real = store_cache._fetch

    def logged(root: str, inside: str, target: Path, entry: object) -> None:
        with log.open("a") as file:
            file.write(f"{inside}\n")
        real(root, inside, target, entry)  # type: ignore[arg-type]

    monkeypatch.setattr(store_cache, "_fetch", logged)
    store = EpochStore.open(remote, cache_dir=tmp_path / "cache")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        values = pool.map(_first_value, [store] * 8, chunksize=1)
    assert len(set(values)) == 1
    assert log.read_text().split() == ["shards/sub-03_ses-01-0002.npy"]


def test_a_location_is_pickled_and_opens_nothing(tmp_path: Path) -> None:
    location = StoreLocation.of("s3://bucket/store/", tmp_path)
    assert pickle.loads(pickle.dumps(location)) == StoreLocation("s3://bucket/store", tmp_path)


def test_stores_share_files_of_the_same_content(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    for path in (folder, copy):
        EpochStore.open(path.as_uri(), cache_dir=tmp_path / "cache").prepare()
    assert len(cached(tmp_path / "cache")) == 8


@pytest.fixture(scope="module")
def in_s3(folder: Path, s3: s3fs.S3FileSystem) -> str:
    """The store in a bucket."""
    s3.put(str(folder), "bucket/store", recursive=True)
    return "s3://bucket/store"


def _sum(store: EpochStore) -> float:
    return float(store.read(np.arange(77)).sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_fetch_from_s3_what_they_read(folder: Path, in_s3: str, tmp_path: Path, method: str) -> None:
    """The parent has used S3 before; its connections and its loop mean nothing in a fork."""
    local, store = EpochStore.open(folder), EpochStore.open(in_s3, cache_dir=tmp_path)
    assert np.array_equal(store.read([0]), local.read([0])) and store.metadata.equals(local.metadata)
    with multiprocessing.get_context(method).Pool(2) as pool:
        sums = pool.map_async(_sum, [store] * 4, chunksize=1).get(timeout=60.0)
    assert sums == [_sum(local)] * 4


def test_what_is_not_in_s3_is_told(folder: Path, s3: s3fs.S3FileSystem, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        EpochStore.open("s3://bucket/elsewhere", cache_dir=tmp_path)
    s3.put(str(folder), "bucket/short", recursive=True)
    store = EpochStore.open("s3://bucket/short", cache_dir=tmp_path)
    s3.rm("bucket/short/shards/" + store.manifest.shards[0].file)
    with pytest.raises(ValueError, match="is missing from s3://bucket/short"):
        store.read([0])
    assert cached(tmp_path) == []


def test_an_s3_that_is_away_is_told(in_s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EpochStore.open(in_s3, cache_dir=tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the pauses between attempts are botocore's
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(OSError, match="could not be fetched.*[cC]onnect"):
            store.read([0])
        with pytest.raises(OSError, match="[cC]onnect"):
            EpochStore.open(in_s3, cache_dir=tmp_path)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
    assert cached(tmp_path) == []
