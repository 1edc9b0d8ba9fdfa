"""The process that reads uploads: warmed once, with one fork per upload standing by (`serving.sandbox` starts it).

It imports the readers and nothing that holds a model, ends when its standard input closes, and kills what overruns.
Forks are made before they are needed and read a small recording first: forking, and touching the pages that Python
then copies, would otherwise be most of the time that a small upload takes.
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from encoders.epochs import SignalEpochs
from encoders.formats import FORMATS
from encoders.reader_imports import import_readers
from encoders.readers import read_epochs
from encoders.zip_input import MAX_UNPACKED_BYTES
from serving.landlock import landlock_version
from serving.parse_child import HEADER, RECEIVE_TIMEOUT_S, isolate, keep_only, rehearse, serve_upload
from serving.reading_ends import reason_of
from serving.reading_folder import remove_abandoned
from serving.settings import ParseLimits

_PR_SET_PDEATHSIG = 1
_LOOK_S = 0.25
_TCP_SINCE = 4
# More than the service hands over at a time, by far.
_BACKLOG = 1024
# What one upload may occupy of the folder: it may be in memory, where no other limit would hold.
_MAX_FOLDER_BYTES = MAX_UNPACKED_BYTES + (1 << 30)


@dataclass
class _Child:
    """A fork: its folder, a descriptor that is readable once it ended, when it is killed (monotonic), its client."""

    folder: Path
    ended: int
    deadline: float = float("inf")
    client: socket.socket | None = None


def main(folder: Path, limits: ParseLimits, max_epochs: int) -> None:
    """Serve reads on the socket `folder`/s until standard input closes, then remove `folder`."""
    for ignored in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    remove_abandoned(folder.parent)
    fault = missing_isolation(folder)
    if fault and not limits.allow_unsandboxed_uploads:
        print(f"no isolation: {fault}", flush=True)
        return
    _warm(folder)
    # what exists now lives as long as the process: the collector need not write into its pages
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(folder / "s"))
    os.chmod(folder / "s", 0o600)
    listener.listen(_BACKLOG)
    taken, announce = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    taken.setblocking(False)
    children: dict[int, _Child] = {}
    server = os.getpid()
    ready = False
    while True:
        while len(children) < limits.n_processes + 1:
            job = Path(tempfile.mkdtemp(prefix="job-", dir=folder))
            pid = os.fork()
            if pid == 0:
                _end_with(server)
                serve_upload(listener, announce, job, folder, limits, max_epochs, isolated=not fault)
            children[pid] = _Child(job, os.pidfd_open(pid))
        if not ready:
            print("ready", flush=True)
            ready = True
        busy = any(child.deadline < float("inf") for child in children.values())
        watched = [taken, sys.stdin, *(child.ended for child in children.values())]
        readable, _, _ = select.select(watched, [], [], _LOOK_S if busy else None)
        if sys.stdin in readable:
            _reap(children, taken, limits, now=float("inf"))
            shutil.rmtree(folder, ignore_errors=True)
            return
        _hear(taken, children, limits)
        _reap(children, taken, limits, now=time.monotonic())


def missing_isolation(folder: Path) -> str:
    """Try in a process what an upload must not be able to do; return what it could do, nothing if all is denied."""
    if landlock_version() == 0:
        return "this kernel has no Landlock (Linux 5.13 and later have it, where it is enabled)"
    job = Path(tempfile.mkdtemp(prefix="job-", dir=folder))
    (folder / "outside").write_text("not for readers")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pid = os.fork()
        if pid == 0:
            os._exit(_attempts(folder, job, listener.getsockname()))
        _, status = os.waitpid(pid, 0)
    shutil.rmtree(job, ignore_errors=True)
    (folder / "outside").unlink()
    if os.waitstatus_to_exitcode(status) == 0:
        return ""
    return f"Landlock is there, but does not hold (attempt {os.waitstatus_to_exitcode(status)} was not denied)"


def _attempts(folder: Path, job: Path, address: tuple[str, int]) -> int:
    """Return 0, or the number of the first attempt that the isolation failed to deny."""
    try:
        keep_only()
        isolate(job)
        (job / "own").write_text("allowed")
        attempts: list[Callable[[], object]] = [
            lambda: (folder / "outside").read_text(),
            lambda: (folder / "new").write_text(""),
            lambda: os.listdir("/"),
            lambda: os.execv(sys.executable, [sys.executable, "-c", "raise SystemExit(4)"]),
        ]
        if landlock_version() >= _TCP_SINCE:
            attempts.append(lambda: socket.create_connection(address, timeout=1.0))
        for number, attempt in enumerate(attempts, start=1):
            try:
                attempt()
                return number
            except PermissionError:
                continue
    except Exception:
        return 99
    return 0


def _warm(folder: Path) -> None:
    """Write small recordings into ``folder`` and read them, so that forks find the readers imported."""
    import_readers()
    epochs = SignalEpochs(
        data=np.zeros((2, 2, 32), dtype=np.float32),
        sfreq=100.0,
        tmin=0.0,
        ch_names=("Cz", "Pz"),
        ch_types=("eeg", "eeg"),
        positions=np.full((2, 3), np.nan, dtype=np.float32),
    )
    for name in ("warm-epo.fif", "warm.npz"):
        epochs.save(folder / name)
        read_epochs(folder / name)
    for file_format in FORMATS:
        # every reader meets an empty file once, which imports what it needs; what it says of it does not matter
        (folder / f"warm{file_format.suffix}").write_bytes(b"")
        if file_format.read is not None and file_format.suffix not in (".npz", ".fif"):
            with contextlib.suppress(Exception):
                file_format.read(folder / f"warm{file_format.suffix}")
    epochs.save(folder / "warm.npz")
    (folder / "warm.edf").write_bytes(_flat_edf())
    rehearse(folder)


def _flat_edf() -> bytes:
    """Return an EDF file of one channel that is 0 for 40 seconds, at 100 Hz."""
    fixed = f"{'0':168}{'01.01.20':8}{'00.00.00':8}{'512':52}{'40':8}{'1':8}{'1':4}"
    signal = f"{'EEG Cz':96}{'uV':8}{'-100':8}{'100':8}{'-32768':8}{'32767':88}{'100':40}"
    return f"{fixed}{signal}".encode() + bytes(40 * 100 * 2)


def _hear(taken: socket.socket, children: dict[int, _Child], limits: ParseLimits) -> None:
    """Note which children have a client by now."""
    with contextlib.suppress(BlockingIOError):
        while True:
            message, descriptors, _, _ = socket.recv_fds(taken, HEADER.size, 1)
            child = children[HEADER.unpack(message)[0]]
            child.deadline = time.monotonic() + RECEIVE_TIMEOUT_S + limits.wall_s
            if descriptors:  # none where this process has no room for another
                child.client = socket.socket(fileno=descriptors[0])


def _reap(children: dict[int, _Child], taken: socket.socket, limits: ParseLimits, now: float) -> None:
    """Collect children that ended, kill those past their deadline or with too many files, remove their folders."""
    for pid, child in list(children.items()):
        at_work = child.deadline < float("inf")
        ended_for = "time" if now >= child.deadline else ""
        if not ended_for and at_work and _too_much(child.folder, limits.n_files):
            ended_for = "files"
        if ended_for:
            os.kill(pid, signal.SIGKILL)
        ended, status, usage = os.wait4(pid, 0 if ended_for else os.WNOHANG)
        if ended == 0:
            continue
        _hear(taken, children, limits)  # it may have announced itself since
        # a process that was taken over may leave folders too deep to walk; they go with the server's own folder
        with contextlib.suppress(RecursionError):
            shutil.rmtree(child.folder, ignore_errors=True)
        if child.client is not None:
            reason = reason_of(status, usage.ru_utime + usage.ru_stime, limits, ended_for=ended_for)
            if reason is not None and now < float("inf"):
                _tell(child.client, *reason)
            child.client.close()
        os.close(child.ended)
        del children[pid]


def _tell(client: socket.socket, code: str, detail: str) -> None:
    """Answer in place of a process that ended; whoever does not take it at once gets no reason."""
    head = json.dumps({"code": code, "detail": detail, "n_bytes": 0}).encode()
    with contextlib.suppress(OSError):
        client.send(HEADER.pack(len(head)) + head, socket.MSG_DONTWAIT)


def _too_much(folder: Path, n_files: int) -> bool:
    """Return whether more than ``n_files`` files and folders, or too many bytes, lie beneath ``folder``."""
    seen, n_bytes, left = 0, 0, [folder]
    while left and seen <= n_files and n_bytes <= _MAX_FOLDER_BYTES:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    seen += 1
                    with contextlib.suppress(FileNotFoundError):
                        n_bytes += 512 * entry.stat(follow_symlinks=False).st_blocks
                    if entry.is_dir(follow_symlinks=False):
                        left.append(Path(entry.path))
                    if seen > n_files:
                        break
        except OSError:  # it may be removed while we look
            continue
    return seen > n_files or n_bytes > _MAX_FOLDER_BYTES


def _end_with(parent: int) -> None:
    """Let the kernel end this process when its parent ends, so that no fork outlives a killed server."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), ParseLimits.model_validate_json(sys.argv[2]), int(sys.argv[3]))
