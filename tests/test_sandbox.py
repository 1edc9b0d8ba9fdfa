"""Reading uploads in their own processes: equal values, limits of time and memory, and no trace left."""

import asyncio
import contextlib
import io
import os
import signal
import struct
import subprocess
import time
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from fake_service import make_epochs

from encoders.epochs import SignalEpochs
from serving import parse_child, parse_server
from serving.landlock import landlock_version
from serving.sandbox import Refused, Sandbox, require_isolation
from serving.settings import ParseLimits

Value = TypeVar("Value")
LIMITS = ParseLimits(wall_s=3.0, cpu_s=2, memory_mb=256, n_processes=4)


class Reader:
    """A sandbox with an event loop of its own, so that plain tests can share it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.sandbox = self.run(self.make)

    async def make(self) -> Sandbox:
        sandbox = Sandbox(LIMITS, max_epochs=10)
        await sandbox.start()
        return sandbox

    def run(self, work: Callable[[], Awaitable[Value]]) -> Value:
        async def main() -> Value:
            return await work()

        return self.loop.run_until_complete(main())

    def read(self, content: bytes, onsets: list[float] | None = None) -> SignalEpochs | Refused:
        return self.run(lambda: self.sandbox.read(content, onsets=onsets))

    @property
    def server(self) -> int:
        assert self.sandbox._server is not None
        return self.sandbox._server.pid


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    folder = reader.sandbox._folder
    reader.sandbox.close()
    reader.loop.close()
    assert not folder.exists()


@pytest.mark.parametrize("suffix", [".npz", "-epo.fif"])
def test_what_is_read_is_what_was_written(reader: Reader, tmp_path: Path, suffix: str) -> None:
    epochs = make_epochs(3)
    epochs.save(tmp_path / f"a{suffix}")
    result = reader.read((tmp_path / f"a{suffix}").read_bytes())
    assert isinstance(result, SignalEpochs)
    np.testing.assert_allclose(result.data, epochs.data, rtol=1e-6)
    assert (result.ch_names, result.stimulus, result.sfreq) == (epochs.ch_names, epochs.stimulus, epochs.sfreq)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\x00" * 4096, os.urandom(1000), b"\x80\x04\x95junk", b"PK\x03\x04" * 9]
)
def test_junk_is_refused_in_a_sentence_without_paths(reader: Reader, content: bytes) -> None:
    result = reader.read(content)
    assert isinstance(result, Refused) and result.code == "epochs_mismatch"
    assert len(result.detail) > 20 and "/" not in result.detail.replace("BrainVision/", "")


def test_a_pickle_in_an_npz_is_refused_and_does_not_run(reader: Reader, tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(mark),)

    buffer = io.BytesIO()
    np.savez(
        buffer,
        data=np.array([Payload()], dtype=object),
        sfreq=100.0,
        tmin=0.0,
        ch_names=np.array(["Cz"]),
        allow_pickle=True,
    )
    result = reader.read(buffer.getvalue())
    assert isinstance(result, Refused) and not mark.exists()


def test_more_epochs_than_allowed_are_refused(reader: Reader) -> None:
    result = reader.read(make_epochs(11).to_bytes())
    assert isinstance(result, Refused) and result.code == "too_many_epochs"
    assert "11" in result.detail and "10" in result.detail


def test_a_decompression_bomb_costs_little(reader: Reader) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10, 60, 170_000)})
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("data.npy", "w", force_zip64=True) as member:
            member.write(header.getvalue())
            for _ in range(98):
                member.write(bytes(4 * 2**20))
        for name, value in (("sfreq", 100.0), ("tmin", 0.0), ("ch_names", np.array(["Cz"] * 60))):
            array = io.BytesIO()
            np.save(array, np.asarray(value))
            archive.writestr(f"{name}.npy", array.getvalue())
    assert len(bomb.getvalue()) < 2 * 2**20
    result = reader.read(bomb.getvalue())
    assert isinstance(result, Refused)
    assert isinstance(reader.read(make_epochs(1).to_bytes()), SignalEpochs)


def test_uploads_are_read_side_by_side(reader: Reader) -> None:
    contents = [make_epochs(1, seed=seed).to_bytes() for seed in range(12)]

    async def all_of_them() -> list[SignalEpochs | Refused]:
        return list(await asyncio.gather(*(reader.sandbox.read(content) for content in contents)))

    results = reader.run(all_of_them)
    for seed, result in enumerate(results):
        assert isinstance(result, SignalEpochs)
        np.testing.assert_array_equal(result.data, make_epochs(1, seed=seed).data)


def test_nothing_of_an_upload_stays(reader: Reader) -> None:
    reader.read(make_epochs(1).to_bytes())
    deadline = time.monotonic() + 5.0
    # os.walk, unlike glob, passes over folders that are removed while it looks
    while any(names for top, _, names in os.walk(reader.sandbox._folder) if Path(top).name.startswith("job-")):
        assert time.monotonic() < deadline, "an upload was left behind"
        time.sleep(0.05)


def children(reader: Reader) -> set[int]:
    return {int(pid) for pid in Path(f"/proc/{reader.server}/task/{reader.server}/children").read_text().split()}


def test_every_upload_has_a_process_of_its_own(reader: Reader) -> None:
    before = children(reader)
    for _ in range(3):
        reader.read(make_epochs(1).to_bytes())
    deadline = time.monotonic() + 5.0
    while len(children(reader) - before) < 3:
        assert time.monotonic() < deadline, "a process served twice"
        time.sleep(0.05)
    assert len(children(reader)) <= LIMITS.n_processes + 1


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end at any moment
        return False


def test_a_reader_that_dies_is_replaced_and_leaves_no_process(reader: Reader) -> None:
    before, orphans = reader.server, children(reader)
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 5.0
    while reader.sandbox._server is not None and reader.sandbox._server.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert isinstance(reader.read(make_epochs(1).to_bytes()), SignalEpochs)
    assert reader.server != before
    assert not [pid for pid in orphans if is_alive(pid)]


def in_child(work: Callable[[], None], limits: ParseLimits) -> tuple[int, float]:
    """Run `work` in a forked child under the limits of an upload; return its wait status and seconds."""
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            parse_child.limit(limits, n_bytes=0, statm=os.open("/proc/self/statm", os.O_RDONLY))
            work()
        except MemoryError:
            os._exit(11)
        except OSError:
            os._exit(12)
        finally:
            os._exit(13)
    _, status = os.waitpid(pid, 0)
    return status, time.monotonic() - started


def test_the_limits_hold(tmp_path: Path) -> None:
    limits = ParseLimits(wall_s=0.5, cpu_s=1, memory_mb=64, n_files_open=32)
    status, seconds = in_child(lambda: time.sleep(30), limits)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM and seconds < 5.0

    def spin() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        while True:
            pass

    status, _ = in_child(spin, limits)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
    status, _ = in_child(lambda: bytearray(2**30).clear(), limits)
    assert os.WEXITSTATUS(status) == 11
    status, _ = in_child(lambda: [os.open(os.devnull, os.O_RDONLY) for _ in range(100)].clear(), limits)
    assert os.WEXITSTATUS(status) == 12

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with (tmp_path / "large").open("wb") as file:
            for _ in range(80):
                file.write(bytes(2**20))

    status, _ = in_child(fill, ParseLimits(wall_s=20.0))
    assert os.WEXITSTATUS(status) == 12


def test_a_hanging_reader_is_answered_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> tuple[SignalEpochs | Refused, float]:
        sandbox = Sandbox(ParseLimits(wall_s=0.5), max_epochs=10)
        socket = await asyncio.start_unix_server(lambda reader, writer: asyncio.sleep(60), sandbox._folder / "s")
        started = time.monotonic()
        result = await sandbox.read(b"anything")
        seconds = time.monotonic() - started
        socket.close()
        sandbox.close()
        return result, seconds

    result, seconds = asyncio.run(main())
    assert isinstance(result, Refused) and result.code == "reading_timed_out" and seconds < 2.4


def test_an_upload_that_finds_no_place_is_told_to_come_back() -> None:
    async def main() -> SignalEpochs | Refused:
        sandbox = Sandbox(ParseLimits(wall_s=30.0, n_processes=1, wait_s=0.2), max_epochs=10)
        socket = await asyncio.start_unix_server(lambda reader, writer: asyncio.sleep(60), sandbox._folder / "s")
        first = asyncio.create_task(sandbox.read(b"holds the only place", owner="somebody"))
        await asyncio.sleep(0.05)
        result = await sandbox.read(b"waits", owner="somebody else")
        first.cancel()
        await asyncio.wait([first])
        socket.close()
        sandbox.close()
        return result

    result = asyncio.run(main())
    assert isinstance(result, Refused) and result.code == "too_many_requests"


@pytest.mark.parametrize("when", ["while it is read", "before"])
def test_a_sandbox_that_is_closed_does_not_blame_the_file(when: str) -> None:
    async def main() -> SignalEpochs | Refused:
        sandbox = Sandbox(ParseLimits(wall_s=30.0), max_epochs=10)
        connected, ended = asyncio.Event(), asyncio.Event()

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connected.set()
            await ended.wait()
            writer.close()

        if when == "before":
            await sandbox.start()
            sandbox.close()
            return await sandbox.read(b"anything")
        socket = await asyncio.start_unix_server(hold, sandbox._folder / "s")
        reading = asyncio.create_task(sandbox.read(b"anything"))
        await connected.wait()
        sandbox.close()
        ended.set()  # as the real reader, which ends with it
        result = await reading
        socket.close()
        return result

    result = asyncio.run(main())
    assert isinstance(result, Refused) and result.code == "uploads_down"


def test_who_leaves_is_no_longer_connected_to_the_reader_whatever_was_not_sent_yet() -> None:
    async def main() -> None:
        sandbox = Sandbox(ParseLimits(wall_s=30.0), max_epochs=10)
        connected, lost = asyncio.Event(), asyncio.Event()

        async def slow_reader(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connected.set()
            while not writer.is_closing():  # it takes nothing, so that most of the upload is still on its way
                with contextlib.suppress(ConnectionError):
                    writer.write(b".")
                    await writer.drain()
                await asyncio.sleep(0.02)
            lost.set()

        socket = await asyncio.start_unix_server(slow_reader, sandbox._folder / "s", limit=1)
        reading = asyncio.create_task(sandbox.read(bytes(32 << 20)))
        await asyncio.wait_for(connected.wait(), 5.0)
        reading.cancel()
        await asyncio.wait([reading])
        await asyncio.wait_for(lost.wait(), 5.0)
        socket.close()
        sandbox.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack("!I", 2**31),
        struct.pack("!I", 30) + b'{"code": "ok", "n_bytes": 5}  ' + b"junk!",
        struct.pack("!I", 38) + b'{"code": "ok", "n_bytes": 99999999999}',
        struct.pack("!I", 20) + b'{"code": "ok", "n_by',
        struct.pack("!I", 2) + b"[]",
        struct.pack("!I", 32) + b'{"code": "ok", "n_bytes": 1e999}',
        struct.pack("!I", 200_000) + b"[" * 200_000,
        struct.pack("!I", 33) + b'{"code": "own_code", "n_bytes":0}',
        b"",
    ],
)
def test_the_answer_of_a_taken_over_reader_is_not_trusted(answer: bytes) -> None:
    async def main() -> SignalEpochs | Refused:
        sandbox = Sandbox(ParseLimits(wall_s=1.0), max_epochs=10)

        async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(answer)
            writer.close()

        socket = await asyncio.start_unix_server(lie, sandbox._folder / "s")
        result = await sandbox.read(b"anything")
        socket.close()
        sandbox.close()
        return result

    result = asyncio.run(main())
    assert isinstance(result, Refused) and result.code == "reading_failed"


def test_neither_process_imports_torch_to_read() -> None:
    import sys

    code = "import sys, serving.parse_server, serving.sandbox; print({'torch', 'ray', 'fastapi'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_what_a_reader_says_is_made_printable(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    async def shouts(*_: object) -> tuple[dict[str, object], bytes]:
        return {"code": "epochs_mismatch", "detail": "channel \ud800\x1b[2J\r\n\u202e has NaN" + "x" * 10_000}, b""

    monkeypatch.setattr(reader.sandbox, "_answer", shouts)
    refused = reader.run(lambda: reader.sandbox.read(b"x"))
    assert isinstance(refused, Refused) and len(refused.detail) <= 4000
    assert refused.detail.encode().decode().isprintable() and refused.detail.startswith("channel ??[2J??? has NaN")


needs_landlock = pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")


def test_the_reader_compiles_nothing(reader: Reader) -> None:
    # numba, where it is installed, would compile MNE's transforms again in every fork: longer than an upload may take
    assert b"MNE_USE_NUMBA=false\0" in Path(f"/proc/{reader.sandbox.reader_pid}/environ").read_bytes()


def test_a_waiting_process_holds_its_socket_and_no_other_descriptor(reader: Reader) -> None:
    deadline = time.monotonic() + 10.0
    while True:
        held = [os.listdir(f"/proc/{pid}/fd") for pid in children(reader)]
        # null device three times, the listening socket, the pipe that says who was taken, and its own memory counter
        if len(held) == LIMITS.n_processes + 1 and all(len(numbers) <= 6 for numbers in held):
            break
        assert time.monotonic() < deadline, held
        time.sleep(0.05)


@needs_landlock
def test_no_isolation_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_server.missing_isolation(tmp_path) == ""
    assert os.listdir(tmp_path) == []
    with monkeypatch.context() as patch:
        patch.setattr(parse_server, "isolate", lambda job: None)
        assert "attempt 1 was not denied" in parse_server.missing_isolation(tmp_path)
    monkeypatch.setattr(parse_server, "landlock_version", lambda: 0)
    assert "no Landlock" in parse_server.missing_isolation(tmp_path)


_WITHOUT = """
import sys
from pathlib import Path
from serving import parse_server
from serving.settings import ParseLimits
parse_server.landlock_version = lambda: 0
parse_server.main(Path(sys.argv[1]), ParseLimits.model_validate_json(sys.argv[2]), int(sys.argv[3]))
"""


@pytest.mark.parametrize("allowed", [False, True])
def test_the_service_does_not_start_without_isolation_unless_told(
    allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def without(command: list[str], **options: Any) -> Any:
        return start([command[0], "-c", _WITHOUT, *command[3:]], **options)

    monkeypatch.setattr("serving.sandbox.subprocess.Popen", without)
    monkeypatch.setattr("serving.sandbox.landlock_version", lambda: 0)
    limits = LIMITS.model_copy(update={"allow_unsandboxed_uploads": allowed, "n_processes": 1})

    async def main() -> SignalEpochs | Refused:
        sandbox = Sandbox(limits, max_epochs=10)
        try:
            await sandbox.start()
            return await sandbox.read(make_epochs(1).to_bytes())
        finally:
            sandbox.close()

    if allowed:
        require_isolation(limits)
        assert isinstance(asyncio.run(main()), SignalEpochs)
    else:
        for attempt in (lambda: require_isolation(limits), lambda: asyncio.run(main())):
            with pytest.raises(OSError, match="no Landlock.*allow_unsandboxed_uploads"):
                attempt()


def test_a_process_that_makes_too_many_files_is_seen(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / "a" / f"{number}").mkdir(parents=True)
    assert parse_server._too_much(tmp_path, 5)
    assert not parse_server._too_much(tmp_path, 6)
    assert not parse_server._too_much(tmp_path / "absent", 0)
