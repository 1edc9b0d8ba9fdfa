"""Blobs of jobs: whole or absent, on disk when written, and failures that are told."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.job_blobs import JobBlobs, pack_upload, unpack_upload
from serving.schema import GenerationFields


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_what_was_written_is_read_listed_and_removed(kind: str, tmp_path: Path) -> None:
    blobs = JobBlobs(str(tmp_path / "jobs") if kind == "folder" else f"memory://{tmp_path.name}")
    blobs.write("results", "a.1", b"first")
    blobs.write("results", "a.1", b"second")
    assert blobs.read("results", "a.1") == b"second"
    assert blobs.names("results") == ["a.1"] and blobs.names("uploads") == []
    assert 0.0 <= blobs.age_s("results", "a.1") < 60.0
    blobs.remove("results", "a.1")
    blobs.remove("results", "a.1")
    assert blobs.names("results") == []
    with pytest.raises(FileNotFoundError):
        blobs.read("results", "a.1")


def test_nobody_else_on_the_machine_may_read(tmp_path: Path) -> None:
    JobBlobs(str(tmp_path / "jobs")).write("uploads", "a", b"x")
    assert (tmp_path / "jobs").stat().st_mode & 0o077 == 0
    assert (tmp_path / "jobs" / "uploads" / "a").stat().st_mode & 0o077 == 0


def test_file_and_folder_are_synced_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b))[1])
    JobBlobs(str(tmp_path)).write("uploads", "a", b"x")
    assert calls == [f"{tmp_path}/uploads/a.part", "rename", f"{tmp_path}/uploads"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from serving.job_blobs import JobBlobs\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "blobs = JobBlobs(sys.argv[1]); blobs.write('uploads', 'small', b'x' * 1000)\n"
        "try:\n    blobs.write('uploads', 'large', b'x' * 1001)\n"
        "except OSError as error:\n    print(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(errno.EFBIG)
    assert os.listdir(tmp_path / "uploads") == ["small"]


def test_a_folder_that_was_taken_away_is_a_failure_and_not_a_missing_blob(tmp_path: Path) -> None:
    blobs = JobBlobs(str(tmp_path / "jobs"))
    blobs.write("uploads", "a", b"x")
    (tmp_path / "jobs").rename(tmp_path / "away")
    with pytest.raises(OSError) as caught:
        blobs.read("uploads", "a")
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError):
        blobs.write("uploads", "b", b"x")
    assert not (tmp_path / "jobs").exists(), "a second store would be made beside the first"
    (tmp_path / "away").rename(tmp_path / "jobs")
    assert blobs.read("uploads", "a") == b"x"


def test_an_upload_is_packed_with_its_fields() -> None:
    fields = GenerationFields(images=2, seed=7, onsets="0.5,1", guidance_scale=3.0)
    contents = [b"", b"\x00\x01" * 500]
    assert unpack_upload(pack_upload(fields, contents)) == (fields, contents)
