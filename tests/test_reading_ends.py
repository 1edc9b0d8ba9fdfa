"""Why a reading ended without an answer, told by the process that did not end."""

import asyncio
import contextlib
import errno
import faulthandler
import gzip
import os
import signal
import socket
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_service import make_epochs
from hostile_parts import edf_of

from encoders.epochs import SignalEpochs
from serving.parse_child import read
from serving.reading_ends import LATE, NO_ROOM, reason_of, status_of
from serving.sandbox import Refused, Sandbox
from serving.settings import ParseLimits

LIMITS = ParseLimits(wall_s=3.0, cpu_s=2)
# however slow the machine is, no reading here ends for the time that it takes
PATIENT = ParseLimits(wall_s=60.0)


def wait_status(work: Callable[[], object]) -> int:
    """Return the wait status of a process that does `work`."""
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            work()
        except Exception as error:
            status = status_of(error)
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def fall(number: int) -> None:
    faulthandler.disable()
    os.kill(os.getpid(), number)
    time.sleep(5.0)


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("work", "cpu_s", "ended_for", "code", "word"),
    [
        (lambda: fall(signal.SIGALRM), 0.1, "", "reading_timed_out", "longer than 3 s"),
        (lambda: fall(signal.SIGKILL), 0.1, "time", "reading_timed_out", "longer than 3 s"),
        (lambda: fail(TimeoutError()), 0.1, "", "reading_timed_out", "longer than 3 s"),
        (lambda: fall(signal.SIGKILL), 0.1, "files", "reading_failed", "files"),
        (lambda: fall(signal.SIGXCPU), 1.9, "", "reading_timed_out", "2 s of processor time"),
        (lambda: fall(signal.SIGKILL), 2.0, "", "reading_timed_out", "2 s of processor time"),
        (lambda: fall(signal.SIGKILL), 1.9, "", "uploads_down", "memory"),
        (lambda: fail(OSError(errno.ENOSPC, "")), 0.1, "", "uploads_down", "no room"),
        (lambda: fail(OSError(errno.EDQUOT, "")), 0.1, "", "uploads_down", "no room"),
        (lambda: fall(signal.SIGSEGV), 0.1, "", "reading_failed", "SIGSEGV"),
        (lambda: fall(signal.SIGRTMIN + 5), 0.1, "", "reading_failed", "ended by signal "),
        (lambda: fall(signal.SIGABRT), 0.1, "", "reading_failed", "SIGABRT"),
        (lambda: fail(ValueError()), 0.1, "", "reading_failed", "failed"),
    ],
)
def test_each_end_has_a_reason(
    work: Callable[[], object], cpu_s: float, ended_for: str, code: str, word: str
) -> None:
    reason = reason_of(wait_status(work), cpu_s, LIMITS, ended_for=ended_for)
    assert reason is not None
    assert reason[0] == code and word in reason[1]


@pytest.mark.parametrize("work", [lambda: None, lambda: fall(signal.SIGIO)])
def test_there_is_nothing_to_say_where_all_was_said_or_nobody_listens(work: Callable[[], object]) -> None:
    assert reason_of(wait_status(work), 0.1, LIMITS) is None


def test_the_exit_statuses_of_reasons_are_no_status_of_the_interpreter() -> None:
    assert {LATE, NO_ROOM}.isdisjoint({0, 1, 2})


def at_work(server: int) -> list[int]:
    """Return the processes that read, which hold the pipe of their client; new ones still have their server's."""
    found = []
    for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError):
            names = {int(entry.name): os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
            held = any(name.startswith("pipe:") for name in names.values())
            found += [int(pid)] if held and all(names[number] == os.devnull for number in range(3)) else []
    return found


def read_and(
    work: Callable[[int], None], content: bytes, onsets: tuple[float, ...] = (), limits: ParseLimits = PATIENT
) -> SignalEpochs | Refused:
    """Read a recording, while `work` gets the process that does it."""

    async def main() -> SignalEpochs | Refused:
        sandbox = Sandbox(limits, max_epochs=10)
        await sandbox.start()
        connect = sandbox._connect

        async def and_then(first: bytes, handed_over: int) -> socket.socket:
            connection = await connect(first, handed_over)
            while not (found := at_work(sandbox.reader_pid)):
                await asyncio.sleep(0.01)
            work(*found)
            return connection

        sandbox._connect = and_then  # type: ignore[method-assign]
        try:
            return await sandbox.read(content, onsets=onsets)
        finally:
            sandbox.close()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGKILL, "uploads_down", "memory"), (signal.SIGBUS, "reading_failed", "SIGBUS")],
)
def test_whoever_waits_is_told(number: signal.Signals, code: str, word: str) -> None:
    result = read_and(lambda pid: os.kill(pid, number), make_epochs(2).to_bytes())
    assert isinstance(result, Refused) and result.code == code and word in result.detail


def test_a_file_that_costs_too_much_is_told_so() -> None:
    n, n_samples, limits = 16, 3_600_000, ParseLimits(wall_s=60.0, cpu_s=1)
    long = edf_of(tuple(f"E{i}" for i in range(n)), (n_samples,) * n, 3600, bytes(2 * n * n_samples))
    sentence = "reading the file took more than 1 s of processor time; send a shorter recording"
    assert read_and(lambda pid: None, long, (10.0,), limits) == Refused("reading_timed_out", sentence)


def test_nothing_is_told_of_a_file_that_was_read() -> None:
    assert isinstance(read_and(lambda pid: None, make_epochs(2).to_bytes()), SignalEpochs)


@pytest.mark.parametrize("packed", ["zip", "gzip"])
def test_no_room_to_unpack_is_not_the_fault_of_the_file(
    packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_epochs(2).save(tmp_path / "x-epo.fif")
    upload = tmp_path / "upload"
    if packed == "zip":
        with zipfile.ZipFile(upload, "w") as archive:
            archive.write(tmp_path / "x-epo.fif", "x-epo.fif")
    else:
        upload.write_bytes(gzip.compress((tmp_path / "x-epo.fif").read_bytes()))
    request = {"window": {}, "onsets": None, "keep_subject": False}
    assert read(upload, request, 10)[0]["code"] == "ok"
    plain = Path.open

    def full(path: Path, mode: str = "r", *rest: Any) -> Any:
        if "x" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(path, mode, *rest)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left") as caught:
        read(upload, request, 10)
    assert status_of(caught.value) == NO_ROOM


def test_a_full_disk_is_told_and_the_next_upload_is_read(small_disk: Path) -> None:
    async def main() -> list[SignalEpochs | Refused]:
        sandbox = Sandbox(PATIENT, max_epochs=1000, memory_folder=str(small_disk))
        await sandbox.start()
        try:
            return [await sandbox.read(make_epochs(n).to_bytes()) for n in (1, 400, 1)]
        finally:
            sandbox.close()

    before, large, after = asyncio.run(main())
    assert isinstance(before, SignalEpochs) and isinstance(after, SignalEpochs)
    assert isinstance(large, Refused) and large.code == "uploads_down" and "no room" in large.detail
    assert list(small_disk.iterdir()) == []
