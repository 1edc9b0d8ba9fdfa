"""What the process of one upload can still do when it looks at foreign bytes: next to nothing."""

import io
import json
import os
import resource
import signal
import socket
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import hostile_parts
import mne
import pytest
from recording_samples import CANARY, samples

from encoders.reader_imports import import_readers
from serving.landlock import landlock_version
from serving.parse_child import HEADER, isolate, keep_only, limit, read, serve_upload
from serving.schema import CutWindow
from serving.settings import ParseLimits

needs_landlock = pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")


def in_child(work: Callable[[], object]) -> str:
    """Run ``work`` in a fork; return what it returned, or the name of its exception, as text."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = str(work())
        except BaseException as error:
            said = type(error).__name__
        os.write(writing, said.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return said


@needs_landlock
@pytest.mark.parametrize(
    "attempt",
    [
        lambda secret: secret.read_text(),
        lambda secret: secret.write_text("changed"),
        lambda secret: (secret.parent / "new").write_text("x"),
        lambda secret: os.listdir(secret.parent),
        lambda secret: Path("/etc/passwd").read_text(),
        lambda secret: Path("/proc/self/environ").read_text(),
        lambda secret: Path("/proc/1/cmdline").read_text(),
        lambda secret: os.unlink(secret),
        lambda secret: os.execv(sys.executable, [sys.executable, "-c", ""]),
        lambda secret: socket.create_connection(("127.0.0.1", 9)),
        lambda secret: os.kill(os.getppid(), 0),
    ],
)
def test_foreign_files_programs_and_processes_are_out_of_reach(
    attempt: Callable[[Path], object], tmp_path: Path
) -> None:
    job, secret = tmp_path / "job", tmp_path / "secret"
    job.mkdir()
    secret.write_text("canary")

    def work() -> object:
        isolate(job)
        return attempt(secret)

    assert in_child(work) == "PermissionError"
    assert secret.read_text() == "canary" and sorted(os.listdir(tmp_path)) == ["job", "secret"]


@needs_landlock
def test_the_own_folder_and_the_packages_stay_usable(tmp_path: Path) -> None:
    def work() -> object:
        isolate(tmp_path)
        (tmp_path / "own").write_text("x")
        import ftplib  # nothing here imports it before

        return (tmp_path / "own").read_text() + ftplib.__name__

    assert "ftplib" not in sys.modules
    assert in_child(work) == "xftplib"


def test_descriptors_are_closed_but_the_named_ones() -> None:
    ready, go = os.pipe(), os.pipe()
    with tempfile.TemporaryFile() as kept, tempfile.TemporaryFile() as other:
        pid = os.fork()
        if pid == 0:
            os.dup2(other.fileno(), 300)
            keep_only(kept.fileno(), ready[1], go[0])
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        found = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        os.write(go[1], b"x")
        os.waitpid(pid, 0)
        assert found == {0, 1, 2, kept.fileno(), ready[1], go[0]}
    for number in (*ready, *go):
        os.close(number)


@pytest.mark.parametrize("leaves", ["while it is read", "before"])
def test_a_reading_ends_when_its_client_leaves_and_for_nothing_else(
    leaves: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job").mkdir()
    started = tmp_path / "job" / "started"

    def hold_on(*_: object) -> None:
        started.touch()
        while True:
            pass

    monkeypatch.setattr("serving.parse_child.read", hold_on)
    monkeypatch.setattr("serving.parse_child.rehearse", lambda examples: None)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(tmp_path / "s"))
    request = json.dumps({"n_bytes": 3}).encode()
    theirs, presence = os.pipe()
    socket.send_fds(client, [HEADER.pack(len(request))], [theirs])
    os.close(theirs)
    client.sendall(request + b"abc")
    if leaves == "before":
        os.close(presence)
    heard, announce = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        limits = ParseLimits(wall_s=60.0, cpu_s=60)
        serve_upload(listener, announce, tmp_path / "job", tmp_path, limits, 10, isolated=False)
    deadline = time.monotonic() + 20.0
    if leaves != "before":
        while not started.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # the kernel may signal that bytes have arrived after they were read: nothing on the connection ends a reading
        client.sendall(b"late")
        time.sleep(0.2)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended although its client was there"
        os.close(presence)
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) in (0, -signal.SIGIO)
    assert started.exists() == (leaves != "before")
    message, (connection,), _, _ = socket.recv_fds(heard, HEADER.size, 1)
    assert HEADER.unpack(message) == (pid,)
    for opened in (client, listener, heard, announce, socket.socket(fileno=connection)):
        opened.close()


def test_every_resource_has_a_limit() -> None:
    limits = ParseLimits(memory_mb=300, cpu_s=5, n_files_open=40)

    def work() -> object:
        limit(limits, n_bytes=1000, statm=os.open("/proc/self/statm", os.O_RDONLY))
        kinds = ("AS", "CPU", "NOFILE", "FSIZE", "NPROC", "CORE")
        return [max(resource.getrlimit(getattr(resource, f"RLIMIT_{kind}"))) for kind in kinds]

    memory, cpu, files, size, processes, core = map(int, in_child(work).strip("[]").split(", "))
    assert 0 < memory < 64 << 30 and 0 < cpu < 10**6 and files == 40
    assert (size, processes, core) == ((64 << 20) + 4000, 0, 0)


@needs_landlock
@pytest.mark.parametrize("target", ["secret.eeg", "absolute"])
def test_landlock_stops_a_foreign_reference_where_the_checks_let_it_pass(target: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(samples()["BrainVision"])) as archive:
        archive.extractall(tmp_path / "job")
    secret = (tmp_path / "job" / "x.eeg").rename(tmp_path / "secret.eeg")
    header = tmp_path / "job" / "x.vhdr"
    name = str(secret) if target == "absolute" else f"../{target}"
    header.write_text(header.read_text().replace("DataFile=x.eeg", f"DataFile={name}"))

    def work(isolated: bool) -> object:
        if isolated:
            isolate(tmp_path / "job")
        return mne.io.read_raw_brainvision(header, preload=True, verbose="error").get_data().shape

    assert in_child(lambda: work(False)) == "(63, 1000)"  # what MNE alone does
    assert in_child(lambda: work(True)) in ("PermissionError", "FileNotFoundError")


def test_files_of_very_many_parts_are_refused_soon(tmp_path: Path) -> None:
    import_readers()
    (tmp_path / "warm").write_bytes(samples()["FIF"])
    request = {"window": CutWindow(l_freq=0.1, h_freq=40.0).model_dump(), "onsets": None, "keep_subject": False}
    read(tmp_path / "warm", request, 512)
    faults = {}
    for case in hostile_parts.parts(CANARY, samples()):
        assert len(case.content) < 4_000_000
        (tmp_path / "upload").write_bytes(case.content)
        began = time.thread_time()
        head, _ = read(tmp_path / "upload", request, 512)
        seconds = time.thread_time() - began
        # a busy machine takes several times as long as an idle one, without the bounds they all take longer than this
        if head["code"] not in ("epochs_mismatch", "too_many_epochs") or seconds > ParseLimits().cpu_s:
            faults[case.name] = f"{head['code']} after {seconds:.1f} s: {head['detail']}"
    assert not faults, faults
