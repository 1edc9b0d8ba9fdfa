"""What nobody may see any more is erased, and nothing else."""

import os
import time
from pathlib import Path

import pytest

from serving.job_blobs import JobBlobs
from serving.job_store import JobStore
from serving.job_sweep import sweep
from serving.job_table import Job, open_engine

KINDS = ("uploads", "results", "previews")


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(open_engine("", str(tmp_path)))


@pytest.fixture
def blobs(tmp_path: Path) -> JobBlobs:
    return JobBlobs(str(tmp_path))


def hand_in(store: JobStore, blobs: JobBlobs, name: str, keep_s: float = 600.0) -> None:
    blobs.write("uploads", name, b"upload")
    store.submit(Job(name, "", None, "", "b", 1), keep_s=keep_s, max_jobs=9, max_bytes=99)


def left(blobs: JobBlobs) -> dict[str, list[str]]:
    return {kind: sorted(blobs.names(kind)) for kind in KINDS}


def age(folder: Path, *names: str) -> None:
    for name in names:
        os.utime(folder / name, (time.time() - 3600, time.time() - 3600))


def test_an_upload_that_a_crash_left_without_a_row_goes_once_it_is_old(
    store: JobStore, blobs: JobBlobs, tmp_path: Path
) -> None:
    for name in ("new", "old", "old.part"):
        blobs.write("uploads", name, b"x")
    hand_in(store, blobs, "queued")
    age(tmp_path / "uploads", "old", "old.part", "queued")
    assert sweep(store, blobs) == 2
    assert left(blobs)["uploads"] == ["new", "queued"]


def test_the_upload_of_an_ended_job_goes_at_once(store: JobStore, blobs: JobBlobs) -> None:
    hand_in(store, blobs, "a")
    store.lease("w", "s", ("b",), n=1, lease_s=9.0, keep_s=600.0)
    blobs.write("previews", "a", b"x")
    blobs.write("results", "a.w", b"x")
    assert sweep(store, blobs) == 0, "a running job keeps all it has"
    store.finish("a", "a.w", keep_s=600.0)
    assert sweep(store, blobs) == 2
    assert left(blobs) == {"uploads": [], "results": ["a.w"], "previews": []}


def test_the_result_of_a_slower_worker_goes(store: JobStore, blobs: JobBlobs, tmp_path: Path) -> None:
    hand_in(store, blobs, "a")
    for name in ("a.first", "a.second"):
        blobs.write("results", name, b"x")
    store.finish("a", "a.first", keep_s=600.0)
    sweep(store, blobs)
    assert left(blobs)["results"] == ["a.first"]


def test_an_expired_job_leaves_nothing_at_all(store: JobStore, blobs: JobBlobs, tmp_path: Path) -> None:
    hand_in(store, blobs, "expired-job-id", keep_s=0.05)
    hand_in(store, blobs, "kept")
    time.sleep(0.1)
    assert sweep(store, blobs) == 1
    assert left(blobs) == {"uploads": ["kept"], "results": [], "previews": []}
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"expired-job-id" in file.read_bytes()]
