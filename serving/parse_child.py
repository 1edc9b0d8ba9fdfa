"""One upload in one process: rights and resources are given up, the bytes are read, plain numbers go back.

`serving.parse_server` forks the process. What it may still do when it looks at the upload: read the interpreter and the
packages, and read and write its own job folder. It holds one connection and no other descriptor.
"""

import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import encoders
from encoders.durable_files import is_full
from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.readers import read_epochs
from serving.event_names import kept_names
from serving.landlock import allow_files
from serving.plain_epochs import pack_epochs
from serving.reading_ends import DONE, FAILED, status_of
from serving.settings import ParseLimits

HEADER = struct.Struct("!I")
MAX_HEADER = 1 << 20
RECEIVE_TIMEOUT_S = 10.0
_MB = 1 << 20
# Loaded lazily by libraries that readers use, beside the interpreter's own folders; none of it is anybody's data.
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", os.devnull)


def isolate(job: Path) -> None:
    """Leave this process only the interpreter and the packages to read, and ``job`` to read and write.

    Raises
    ------
    OSError
        If the kernel cannot do that.
    """
    paths = sysconfig.get_paths()
    python = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    own = {str(Path(package).parent) for package in (encoders.__file__, __file__) if package}
    base = str(Path(sys.base_prefix) / "lib")
    allow_files(readable=[Path(path) for path in sorted(python | own | {base} | set(_SYSTEM))], writable=[job])


def serve_upload(
    listener: socket.socket,
    announce: socket.socket,
    job: Path,
    examples: Path,
    limits: ParseLimits,
    max_epochs: int,
    *,
    isolated: bool,
) -> None:
    """Wait for one upload and answer it, in a forked process that ends here whatever happens.

    Its exit status says what happened; ``announce`` gets its connection, on which the server tells what it cannot.
    """
    ending = FAILED
    try:
        gc.disable()
        keep_only(listener.fileno(), announce.fileno())
        os.chdir(job)
        tempfile.tempdir = os.environ["HOME"] = os.environ["TMPDIR"] = str(job)
        rehearse(examples)
        idle_pages = os.open("/proc/self/statm", os.O_RDONLY)
        if isolated:
            isolate(job)
        connection, _ = listener.accept()
        socket.send_fds(announce, [HEADER.pack(os.getpid())], [connection.fileno()])
        listener.close()
        announce.close()
        connection.settimeout(RECEIVE_TIMEOUT_S)
        request, upload, presence = _receive_upload(connection, job)
        connection.settimeout(limits.wall_s)
        limit(limits, n_bytes=upload.stat().st_size, statm=idle_pages)
        os.close(idle_pages)
        end_with_client(presence)
        head, parts = read(upload, request, max_epochs)
        packed = json.dumps({**head, "n_bytes": sum(map(len, parts))}).encode()
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        connection.sendall(HEADER.pack(len(packed)) + packed)
        for part in parts:
            connection.sendall(part)
        ending = DONE
    except Exception as error:
        ending = status_of(error)
    finally:
        # no clean-up handlers of the parent run here: end at once, even after MemoryError
        os._exit(ending)


def end_with_client(presence: int) -> None:
    """Let the kernel end this process when its client leaves, so that nobody's reading costs nobody a place.

    ``presence`` is the end of a pipe that the client holds open and never writes to: its only signal is that it closed.
    The connection would not do: what signals that the last bytes have arrived may run after they were read.
    """
    fcntl.fcntl(presence, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(presence, fcntl.F_SETFL, fcntl.fcntl(presence, fcntl.F_GETFL) | os.O_ASYNC)
    readable, _, _ = select.select([presence], [], [], 0.0)
    if readable:  # gone before the signal was asked for
        os._exit(DONE)


def rehearse(examples: Path) -> None:
    """Read a cut and a continuous recording, which imports the readers and touches the pages that reading writes to."""
    pack_epochs(read_epochs(examples / "warm.npz"))
    window: dict[str, Any] = {"tmin": -0.1, "tmax": 0.1, "l_freq": 1.0, "h_freq": 40.0}
    pack_epochs(read_epochs(examples / "warm.edf", onsets=[20.0], **window))


def keep_only(*descriptors: int) -> None:
    """Close every descriptor but the given ones; standard input, output and error become the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    kept = sorted({0, 1, 2, *descriptors})
    for after, before in zip(kept, [*kept[1:], 1 << 16], strict=True):
        os.closerange(after + 1, before)


def limit(limits: ParseLimits, *, n_bytes: int, statm: int) -> None:
    """Limit this process; the kernel ends or refuses what exceeds it.

    ``statm`` is /proc/self/statm, opened before the right to open it was given up.
    """
    pages = int(os.pread(statm, 64, 0).split()[0])
    memory = pages * resource.getpagesize() + limits.memory_mb * _MB + 6 * n_bytes
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(usage.ru_utime + usage.ru_stime)
    # at the first of these SIGXCPU, which tells the end from others; at the second SIGKILL, whatever was made of that
    resource.setrlimit(resource.RLIMIT_CPU, (spent + limits.cpu_s, spent + limits.cpu_s + 1))
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NOFILE, limits.n_files_open),
        (resource.RLIMIT_FSIZE, 64 * _MB + 4 * n_bytes),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limits.wall_s)


def read(upload: Path, request: dict[str, Any], max_epochs: int) -> tuple[dict[str, Any], Sequence[memoryview]]:
    """Read the file; return its numbers, or in one sentence why not."""
    window, onsets = request["window"], request["onsets"]
    try:
        # onsets may lie outside or within bad stretches, so there may be some more than epochs
        epochs = read_epochs(upload, onsets=onsets, max_onsets=2 * max_epochs, **window)
        if epochs.n_epochs > max_epochs:
            return _refused(
                "too_many_epochs",
                f"the recording holds {epochs.n_epochs} epochs, at most {max_epochs} are taken; "
                "send it in several files, or save it as -epo.fif and run `phosphene decode-dataset` on it",
            )
        return _accepted(epochs if request["keep_subject"] else _unnamed(epochs))
    except EpochsMismatch as error:
        code = "too_many_epochs" if error.too_many else "epochs_mismatch"
        return _refused(code, str(error).replace(str(upload), "the file"))
    except MemoryError:
        return _refused("reading_failed", "reading the file needs more memory than allowed; send a shorter recording")
    except Exception as error:
        if is_full(error):
            raise
        # a reader met bytes it does not understand; its own words may hold paths, so only the kind is passed on
        return _refused(
            "epochs_mismatch",
            f"the file could not be read as a recording ({type(error).__name__}); it is damaged or of another format",
        )


def _unnamed(epochs: SignalEpochs) -> SignalEpochs:
    """Leave out who was recorded, and names of events that may say it."""
    return replace(epochs, subject="", stimulus=kept_names(epochs.stimulus, epochs.subject))


def _accepted(epochs: SignalEpochs) -> tuple[dict[str, Any], Sequence[memoryview]]:
    head, parts = pack_epochs(epochs)
    if len(json.dumps(head)) > MAX_HEADER - 1000:
        return _refused("epochs_mismatch", "the names in the recording are too long; shorten channel and event names")
    return {"code": "ok", "detail": "", "epochs": head}, parts


def _refused(code: str, detail: str) -> tuple[dict[str, Any], Sequence[memoryview]]:
    return {"code": code, "detail": detail}, ()


def _receive_upload(connection: socket.socket, job: Path) -> tuple[dict[str, Any], Path, int]:
    """Return the request, the upload, and a descriptor that the client's leaving ends."""
    first, descriptors, _, _ = socket.recv_fds(connection, HEADER.size, 1)
    if not first:
        os._exit(DONE)
    (n_head,) = HEADER.unpack(first)
    (presence,) = descriptors
    if n_head > MAX_HEADER:
        os._exit(FAILED)
    request: dict[str, Any] = json.loads(_receive(connection, n_head))
    upload = job / "upload"
    left, fault = request["n_bytes"], None
    with upload.open("xb") as file:
        while left:
            chunk = _receive(connection, min(left, _MB))
            left -= len(chunk)
            try:
                if fault is None:
                    file.write(chunk)
            except OSError as error:
                fault = error  # the rest is taken all the same: whoever still sends would not hear why
    if fault is not None:
        raise fault
    return request, upload, presence


def _receive(connection: socket.socket, n_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < n_bytes:
        chunk = connection.recv(n_bytes - len(received))
        if not chunk:
            os._exit(DONE)
        received += chunk
    return bytes(received)
