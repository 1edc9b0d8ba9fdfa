"""Blobs of jobs: whole or absent, on disk when written, and failures that are told."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
import s3fs
from fsspec.implementations.memory import MemoryFileSystem

from serving.access_settings import EncryptionSettings
from serving.cluster import free_port
from serving.job_blobs import KINDS, JobBlobs, Kind, open_blobs, pack_upload, unpack_upload
from serving.schema import GenerationFields
from serving.settings import JobSettings
from serving.vault import KeyDestroyed, Vault, new_master_key


class FlatFiles(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """As object stores are: names that hold slashes, and no folder that is empty."""

    protocol = "flat"
    store: ClassVar[dict[str, object]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing."""


fsspec.register_implementation("flat", FlatFiles)


@pytest.mark.parametrize("kind", ["folder", "memory", "flat", "s3"])
def test_what_was_written_is_read_listed_and_removed(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "s3":
        request.getfixturevalue("s3")
    blobs = JobBlobs(str(tmp_path / "jobs") if kind == "folder" else f"{kind}://{tmp_path.name}")
    assert all(blobs.names(one) == [] for one in KINDS)
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


def test_an_s3_that_is_away_is_told(s3: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the pauses between attempts are botocore's
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        for use in (lambda one: one.write("uploads", "a", b"x"), lambda one: one.read("uploads", "a")):
            with pytest.raises(OSError, match="blobs of jobs cannot be used"):
                use(JobBlobs("s3://bucket/jobs"))
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


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


@pytest.fixture
def keys(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> EncryptionSettings:
    master = tmp_path_factory.mktemp("elsewhere") / "master.key"
    new_master_key(master)
    return EncryptionSettings(master_key_file=str(master), key_folder=str(tmp_path / "keys"))


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_key_blobs_are_readable_by_their_owner_and_at_their_place_alone(
    kind: Kind, keys: EncryptionSettings, tmp_path: Path
) -> None:
    settings = JobSettings(folder=str(tmp_path / "jobs"), encryption=keys)
    blobs, content = open_blobs(settings), b"canary of a signal" * 100
    for owner in ("anna", "ben"):
        blobs.write("uploads", owner, b"", owner=owner)
    blobs.write(kind, "a.1", content, owner="anna")
    place = tmp_path / "jobs" / kind
    assert b"canary" not in (place / "a.1").read_bytes()
    assert blobs.read(kind, "a.1", owner="anna") == open_blobs(settings).read(kind, "a.1", owner="anna") == content
    (place / "b.1").write_bytes((place / "a.1").read_bytes())
    for name, owner in (("a.1", "ben"), ("b.1", "anna")):
        with pytest.raises(KeyDestroyed, match="not what was encrypted"):
            blobs.read(kind, name, owner=owner)
    with pytest.raises(ValueError, match="jobs.encryption is off"):
        JobBlobs(settings.folder).read(kind, "a.1")
    with pytest.raises(FileNotFoundError):
        blobs.read(kind, "none", owner="anna")


def test_after_the_key_is_destroyed_only_an_upload_makes_another(keys: EncryptionSettings, tmp_path: Path) -> None:
    blobs = open_blobs(JobSettings(folder=str(tmp_path / "jobs"), encryption=keys))
    blobs.write("uploads", "a", b"x", owner="anna")
    assert blobs.destroy_key("anna") and not blobs.destroy_key("anna")
    for late in ("results", "previews"):
        with pytest.raises(KeyDestroyed):
            blobs.write(late, "a", b"x", owner="anna")
        assert blobs.names(late) == []
    with pytest.raises(KeyDestroyed):
        blobs.read("uploads", "a", owner="anna")
    (tmp_path / "keys").rename(tmp_path / "away")
    with pytest.raises(OSError, match="folder of keys"):  # waited for, and not taken for destroyed
        blobs.read("uploads", "a", owner="anna")


@pytest.mark.parametrize("store", ["folder", "s3"])
@pytest.mark.parametrize("kind", ["uploads", "results"])
def test_encryption_is_not_switched_over_jobs_that_would_be_lost(
    store: str, kind: Kind, keys: EncryptionSettings, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = str(tmp_path / "jobs")
    if store == "s3":
        request.getfixturevalue("s3")
        folder = f"s3://bucket/switched-{kind}"
    plain, sealed = JobBlobs(folder), JobBlobs(folder, Vault(keys.master_key_file, keys.key_folder))
    for blobs in (plain, sealed):
        blobs.check_encryption()  # nothing is there yet
    sealed.write("uploads", "a", b"x", owner="anna")
    for before, after, was in ((sealed, plain, "on"), (plain, sealed, "off")):
        for name in KINDS:
            before.remove(name, "a")
            after.remove(name, "a")
        before.write(kind, "a", b"canary", owner="anna")
        before.check_encryption()
        with pytest.raises(ValueError, match=f"holds {kind} from when jobs.encryption was {was}"):
            after.check_encryption()
        assert before.read(kind, "a", owner="anna") == b"canary"


def test_settings_that_would_not_protect_are_refused(keys: EncryptionSettings, tmp_path: Path) -> None:
    inside = EncryptionSettings(master_key_file=str(tmp_path / "master.key"), key_folder="keys")
    for settings, message in (
        (lambda: EncryptionSettings(master_key_file="a"), "both"),
        (lambda: EncryptionSettings(memory_folder="/tmp"), "encryption is off"),
        (lambda: JobSettings(encryption=keys), "jobs.folder is not"),
        (lambda: JobSettings(folder=str(tmp_path), encryption=inside), "lies in jobs.folder"),
    ):
        with pytest.raises(ValueError, match=message):
            settings()
    given = JobSettings(folder=str(tmp_path), encryption=keys)
    assert JobSettings.model_validate_json(given.model_dump_json()) == given == given.resolved()
    assert JobSettings.model_validate_json(JobSettings().model_dump_json()) == JobSettings()
    Path(keys.master_key_file).chmod(0o644)
    with pytest.raises(ValueError, match="mode 600"):
        open_blobs(given)
