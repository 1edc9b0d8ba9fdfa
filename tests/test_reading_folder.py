"""The folder in which uploads are read: in memory with encryption, gone with its processes however they end."""

import asyncio
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from canary_search import CanarySearch, tree_of
from fake_service import make_epochs

from encoders.epochs import SignalEpochs
from serving.access_settings import EncryptionSettings
from serving.reading_folder import PREFIX, new_folder, remove_abandoned, require_memory
from serving.sandbox import Sandbox, open_sandbox
from serving.settings import JobSettings, ParseLimits, ServingSettings

ROOT = Path(__file__).resolve().parents[1]
LIMITS = ParseLimits(allow_unsandboxed_uploads=True, n_processes=1)
MEMORY = Path("/dev/shm")
# A service that reads uploads and is waited for: it writes its reader's process id and then does nothing.
_SERVICE = """
import asyncio, sys
from serving.sandbox import Sandbox
from serving.settings import ParseLimits
sandbox = Sandbox(ParseLimits(allow_unsandboxed_uploads=True, n_processes=1), max_epochs=8)
asyncio.run(sandbox.start())
print(sandbox.reader_pid, flush=True)
sys.stdin.read()
"""


def folders(parent: Path) -> list[Path]:
    return sorted(parent.glob(f"{PREFIX}*"))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start_service(temporary: Path) -> tuple["subprocess.Popen[bytes]", int]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVICE], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


async def half_an_upload(sandbox: Sandbox, content: bytes) -> asyncio.StreamWriter:
    """Send the first half of an upload and wait until its reader has written it down."""
    theirs, presence = os.pipe()
    head = json.dumps({"n_bytes": 2 * len(content), "onsets": None, "window": {}, "keep_subject": False}).encode()
    connection = await sandbox._connect(struct.pack("!I", len(head)), theirs)
    os.close(theirs)
    _, writer = await asyncio.open_unix_connection(sock=connection)
    writer.write(head + content)
    await writer.drain()

    def written() -> bool:
        return any(file.stat().st_size for file in sandbox._folder.glob("job-*/upload"))

    await asyncio.to_thread(wait_until, written)
    os.close(presence)
    return writer


@pytest.mark.parametrize("encrypted", [True, False])
def test_with_encryption_an_upload_in_work_is_in_memory_only(
    encrypted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    keys = EncryptionSettings(master_key_file="/nowhere/master.key", key_folder="/nowhere/keys")
    jobs = JobSettings(folder=str(tmp_path / "jobs"), encryption=keys) if encrypted else JobSettings()
    sandbox = open_sandbox(ServingSettings(bundle=Path("unused"), jobs=jobs, parse=LIMITS))
    canary = b"canary of a signal"

    async def main() -> set[str]:
        await sandbox.start()
        writer = await half_an_upload(sandbox, canary * (1 << 17))
        search = CanarySearch([canary], [tmp_path], tree_of(sandbox.reader_pid))
        search.look()
        writer.close()
        epochs = await sandbox.read(make_epochs().to_bytes())
        assert isinstance(epochs, SignalEpochs)
        return search.hits

    try:
        hits = asyncio.run(main())
    finally:
        sandbox.close()
    assert bool(hits) is not encrypted
    assert not sandbox._folder.exists()


def test_a_folder_on_a_disk_is_refused_where_memory_is_wanted(tmp_path: Path) -> None:
    require_memory(MEMORY)
    disk = Path("/proc")
    for folder in (disk, ROOT):
        with pytest.raises(OSError, match="is not in memory.*memory_folder"):
            new_folder(folder, in_memory=True)
    with pytest.raises(OSError):
        new_folder(tmp_path / "absent", in_memory=True)
    place = new_folder(MEMORY, in_memory=True)
    assert place.path.parent == MEMORY and place.path.stat().st_mode & 0o077 == 0
    place.remove()
    place.remove()
    assert not place.path.exists()


def test_the_folder_of_a_reader_killed_in_its_work_is_removed_by_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sandbox = Sandbox(LIMITS, max_epochs=8)

    async def main() -> None:
        await sandbox.start()
        writer = await half_an_upload(sandbox, b"x" * (3 << 20))
        (job,) = {file.parent for file in sandbox._folder.glob("job-*/upload")}
        holder = next(pid for pid in tree_of(sandbox.reader_pid)[1:] if os.readlink(f"/proc/{pid}/cwd") == str(job))
        os.kill(holder, signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: not job.exists())
        writer.close()

    try:
        asyncio.run(main())
    finally:
        sandbox.close()
    assert folders(tmp_path) == []


@pytest.mark.faults
def test_a_killed_service_leaves_no_folder_and_a_killed_pair_none_after_the_next_start(tmp_path: Path) -> None:
    alive, _ = start_service(tmp_path)
    killed, _ = start_service(tmp_path)
    assert len(folders(tmp_path)) == 2
    killed.kill()
    killed.wait()
    wait_until(lambda: len(folders(tmp_path)) == 1)

    both, reader = start_service(tmp_path)
    (doomed,) = set(folders(tmp_path)) - {folder for folder in folders(tmp_path) if in_use_by(folder, alive.pid)}
    (doomed / "job-left").mkdir()
    (doomed / "job-left" / "upload").write_bytes(b"canary of a signal")
    os.kill(reader, signal.SIGSTOP)
    both.kill()
    both.wait()
    os.kill(reader, signal.SIGKILL)
    time.sleep(0.2)
    assert doomed.exists(), "nobody was left to remove it"

    last, _ = start_service(tmp_path)
    assert not doomed.exists()
    assert len(folders(tmp_path)) == 2, "those in use stay"
    for process in (alive, last):
        process.communicate()
    wait_until(lambda: folders(tmp_path) == [])


def in_use_by(folder: Path, pid: int) -> bool:
    places = (f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd"))
    return any(os.readlink(place).startswith(f"{folder}/") for place in places)


def test_only_what_is_provably_ours_and_abandoned_is_removed(tmp_path: Path) -> None:
    in_use = new_folder(tmp_path)
    abandoned = new_folder(tmp_path)
    abandoned.alive.close()
    unmarked = tmp_path / f"{PREFIX}unmarked"
    unmarked.mkdir(mode=0o700)
    opened = new_folder(tmp_path)
    opened.alive.close()
    opened.path.chmod(0o755)
    other_name = new_folder(tmp_path).path.rename(tmp_path / "elsewhere")
    link = tmp_path / f"{PREFIX}link"
    link.symlink_to(other_name)
    linked_marker = new_folder(tmp_path)
    linked_marker.alive.close()
    (linked_marker.path / ".alive").rename(linked_marker.path / "real")
    (linked_marker.path / ".alive").symlink_to(linked_marker.path / "real")
    kept = [in_use.path, unmarked, opened.path, other_name, link, linked_marker.path]
    if os.geteuid() == 0:
        foreign = new_folder(tmp_path)
        foreign.alive.close()
        os.chown(foreign.path, 12345, -1)
        kept.append(foreign.path)
    assert remove_abandoned(tmp_path) == 1
    assert not abandoned.path.exists()
    assert all(path.exists() for path in kept)
    in_use.remove()
