"""The process that reads uploads: warmed once, with one fork per upload standing by (`serving.sandbox` starts it).

It imports the readers and nothing that holds a model, ends when its standard input closes, and kills what overruns.
Forks are made before they are needed and read a small recording first: forking, and touching the pages that Python
then copies, would otherwise be most of the time that a small upload takes.
"""

import ctypes
import gc
import json
import os
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.readers import read_epochs
from serving.settings import ParseLimits

_HEADER = struct.Struct("!I")
_MAX_HEADER = 1 << 20
_MB = 1 << 20
_PR_SET_PDEATHSIG = 1
_RECEIVE_TIMEOUT_S = 10.0


@dataclass
class _Child:
    """A fork: its folder, a descriptor that becomes readable when it ends, and when it is killed (monotonic)."""

    folder: Path
    ended: int
    deadline: float = float("inf")


def main(folder: Path, limits: ParseLimits, max_epochs: int) -> None:
    """Serve reads on the socket `folder`/s until standard input closes, then remove `folder`."""
    for ignored in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    example = _warm(folder)
    # what exists now lives as long as the process: the collector need not write into its pages
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(folder / "s"))
    os.chmod(folder / "s", 0o600)
    listener.listen(64)
    taken, announce = os.pipe()
    children: dict[int, _Child] = {}
    server = os.getpid()
    ready = False
    while True:
        while len(children) < limits.n_processes + 1:
            job = Path(tempfile.mkdtemp(prefix="job-", dir=folder))
            pid = os.fork()
            if pid == 0:
                _end_with(server)
                _serve(listener, announce, job, example, limits, max_epochs)
            children[pid] = _Child(job, os.pidfd_open(pid))
        if not ready:
            print("ready", flush=True)
            ready = True
        wait = min(child.deadline for child in children.values()) - time.monotonic()
        watched = [taken, sys.stdin, *(child.ended for child in children.values())]
        readable, _, _ = select.select(watched, [], [], None if wait == float("inf") else max(0.0, wait))
        if sys.stdin in readable:
            _reap(children, now=float("inf"))
            shutil.rmtree(folder, ignore_errors=True)
            return
        if taken in readable:
            (pid,) = _HEADER.unpack(os.read(taken, _HEADER.size))
            if pid in children:
                children[pid].deadline = time.monotonic() + _RECEIVE_TIMEOUT_S + limits.wall_s
        _reap(children, now=time.monotonic())


def _warm(folder: Path) -> Path:
    """Read one small recording of each of our own kinds, so that forks find the readers imported; return one."""
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
    return folder / "warm.npz"


def _reap(children: dict[int, _Child], now: float) -> None:
    """Collect children that ended, kill those past their deadline, and remove their folders."""
    for pid, child in list(children.items()):
        if now >= child.deadline or now == float("inf"):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        elif os.waitpid(pid, os.WNOHANG)[0] == 0:
            continue
        os.close(child.ended)
        shutil.rmtree(child.folder, ignore_errors=True)
        del children[pid]


def _serve(
    listener: socket.socket, announce: int, job: Path, example: Path, limits: ParseLimits, max_epochs: int
) -> None:
    """Wait for one upload and answer it, in a forked child that ends here whatever happens."""
    try:
        gc.disable()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.chdir(job)
        tempfile.tempdir = str(job)
        read_epochs(example).to_bytes()
        connection, _ = listener.accept()
        os.write(announce, _HEADER.pack(os.getpid()))
        listener.close()
        os.close(announce)
        connection.settimeout(_RECEIVE_TIMEOUT_S)
        (n_head,) = _HEADER.unpack(_receive(connection, _HEADER.size))
        if n_head > _MAX_HEADER:
            return
        request = json.loads(_receive(connection, n_head))
        content = _receive(connection, request["n_bytes"])
        connection.settimeout(limits.wall_s)
        upload = job / "upload"
        upload.write_bytes(content)
        _limit(limits, n_bytes=len(content))
        del content
        head, body = _read(upload, request, max_epochs)
        packed = json.dumps({**head, "n_bytes": len(body)}).encode()
        connection.sendall(_HEADER.pack(len(packed)) + packed + body)
    finally:
        # no clean-up handlers of the parent run here: end at once, even after MemoryError
        os._exit(0)


def _end_with(parent: int) -> None:
    """Let the kernel end this process when its parent ends, so that no fork outlives a killed server."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _read(upload: Path, request: dict[str, object], max_epochs: int) -> tuple[dict[str, str], bytes]:
    """Read the file and say in one sentence why not, if not."""
    window, onsets = request["window"], request["onsets"]
    assert isinstance(window, dict)
    assert onsets is None or isinstance(onsets, list)
    try:
        epochs = read_epochs(upload, onsets=onsets, **window)
        if epochs.n_epochs > max_epochs:
            return _refused(
                "too_many_epochs",
                f"the recording holds {epochs.n_epochs} epochs, at most {max_epochs} are taken; send fewer",
            )
        return {"code": "ok", "detail": ""}, epochs.to_bytes()
    except EpochsMismatch as error:
        return _refused("epochs_mismatch", str(error).replace(str(upload), "the file"))
    except MemoryError:
        return _refused("reading_failed", "reading the file needs more memory than allowed; send a shorter recording")
    except Exception as error:
        # a reader met bytes it does not understand; its own words may hold paths, so only the kind is passed on
        return _refused(
            "epochs_mismatch",
            f"the file could not be read as a recording ({type(error).__name__}); it is damaged or of another format",
        )


def _refused(code: str, detail: str) -> tuple[dict[str, str], bytes]:
    return {"code": code, "detail": detail}, b""


def _limit(limits: ParseLimits, *, n_bytes: int) -> None:
    """Limit this process; the kernel ends or refuses what exceeds it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + limits.memory_mb * _MB + 6 * n_bytes
    spent = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime)
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, spent + limits.cpu_s),
        (resource.RLIMIT_NOFILE, limits.n_files_open),
        (resource.RLIMIT_FSIZE, 64 * _MB + 4 * n_bytes),
    ):
        resource.setrlimit(kind, (value, value))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limits.wall_s)


def _receive(connection: socket.socket, n_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < n_bytes:
        chunk = connection.recv(min(n_bytes - len(received), _MB))
        if not chunk:
            os._exit(0)
        received += chunk
    return bytes(received)


if __name__ == "__main__":
    main(Path(sys.argv[1]), ParseLimits.model_validate_json(sys.argv[2]), int(sys.argv[3]))
