"""Reading of uploads outside the service: one short-lived process per upload, forked from a warmed reader.

`Sandbox` starts `python -m serving.parse_server`, which imports the readers once and then forks for
every upload; the fork gives up its rights to files and network, gets limits of memory, time, files and file size, and
answers with JSON and the bytes of plain numbers. Where the kernel cannot isolate, the reader does not start.
The reader is its own executed process so that a fork inherits neither sockets nor models of the service.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.quotation import printable
from serving.landlock import landlock_version
from serving.plain_epochs import unpack_epochs
from serving.reading_folder import new_folder
from serving.reading_places import ReadingPlaces
from serving.schema import CutWindow
from serving.settings import ParseLimits, ServingSettings

_HEADER = struct.Struct("!I")
_MAX_HEADER = 1 << 20
_MAX_DETAIL = 4000
_CODES = ("epochs_mismatch", "too_many_epochs", "reading_failed", "reading_timed_out", "uploads_down")
BUSY = "too_many_requests"
# Refusals that say nothing against the file: it may be sent again.
PASSING = (BUSY, "uploads_down")
# A child may answer with this many bytes per byte received, plus a constant: files may hold 16-bit samples, or be
# compressed, where the answer is float32.
_ANSWER_RATIO = 16
_ANSWER_MARGIN = 64 << 20
# The process that reads counts its time from when it has the file; whoever waits, from when it was sent.
_GRACE_S = 0.5
_UNSAFE = (
    "run on a kernel and container runtime with Landlock, or, where every file that arrives is trusted, set "
    "`parse: {allow_unsandboxed_uploads: true}` in the settings"
)


@dataclass(frozen=True)
class Refused:
    """Why an upload was not read; `code` is one of `serving.problems.CODES`."""

    code: str
    detail: str


def require_isolation(limits: ParseLimits) -> None:
    """Refuse to go on where uploads could not be isolated, before anything is started.

    Raises
    ------
    OSError
        If the kernel has no Landlock, unless `ParseLimits.allow_unsandboxed_uploads` is set.
    """
    if landlock_version() == 0 and not limits.allow_unsandboxed_uploads:
        raise OSError(f"uploads cannot be read in isolation: this kernel has no Landlock; {_UNSAFE}")


def open_sandbox(settings: ServingSettings) -> "Sandbox":
    """Make the sandbox of a service; with encryption it reads in memory."""
    keys = settings.jobs.encryption
    return Sandbox(settings.parse, max_epochs=settings.max_epochs, memory_folder=keys.memory_folder if keys.on else "")


class Sandbox:
    """Read uploads in processes that hold neither a model nor a connection.

    Parameters
    ----------
    limits : ParseLimits
        What one upload may use.
    max_epochs : int
        Files with more epochs are refused.
    memory_folder : str
        Where uploads lie while they are read, a folder in memory; empty: the temporary folder, whatever it is on.
    keep_subject : bool
        Whether recordings keep the name of a person that their file holds. A service leaves that off: who somebody
        is says the request, and nothing else.

    Raises
    ------
    OSError
        If `memory_folder` is not in memory.
    """

    def __init__(
        self, limits: ParseLimits, *, max_epochs: int, memory_folder: str = "", keep_subject: bool = False
    ) -> None:
        self._limits = limits
        self._max_epochs = max_epochs
        self._places = ReadingPlaces(limits.n_processes, limits.wait_s)
        self._keep_subject = keep_subject
        self._place = new_folder(Path(memory_folder) if memory_folder else None, in_memory=bool(memory_folder))
        self._folder = self._place.path
        self._server: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._starting = asyncio.Lock()

    @property
    def reader_pid(self) -> int:
        """Process id of the reader, 0 before it was started; another one means that it was lost and replaced."""
        return 0 if self._server is None else self._server.pid

    async def start(self) -> None:
        """Start the reader and wait until it has imported everything.

        Raises
        ------
        OSError
            If this machine cannot isolate it, unless `ParseLimits.allow_unsandboxed_uploads` is set.
        """
        async with self._starting:
            if self._server is None or self._server.poll() is not None:
                self._server = await asyncio.to_thread(self._spawn)

    def close(self) -> None:
        """End the reader and remove its folder; what is being read is refused, and may be sent again."""
        self._closed = True
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            try:
                self._server.wait(timeout=5.0)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            if self._server.stdout is not None:
                self._server.stdout.close()
            self._server = None
        self._place.remove()

    async def read(
        self,
        content: bytes,
        *,
        onsets: Sequence[float] | None = None,
        window: CutWindow | None = None,
        owner: str = "",
    ) -> SignalEpochs | Refused:
        """Read one uploaded file.

        Parameters
        ----------
        content : bytes
            The file; its format is recognised by content, its name plays no part.
        onsets : sequence of float, optional
            Where to cut a continuous file, in seconds.
        window : CutWindow, optional
            How to filter and cut a continuous file.
        owner : str
            Who sent it: owners take turns where more is sent than can be read at a time.

        Returns
        -------
        SignalEpochs or Refused
        """
        request: dict[str, object] = {
            "onsets": list(onsets) if onsets else None,
            "window": (window or CutWindow()).model_dump(),
            "n_bytes": len(content),
            "keep_subject": self._keep_subject,
        }
        try:
            async with self._places.place(owner):
                started = asyncio.get_running_loop().time()
                answer = await self._answer(request, content)
                if answer is None and self._server is not None and self._server.poll() is not None:
                    # the server was lost, not this upload's own process: a new one gets one try
                    await self.start()
                    answer = await self._answer(request, content)
                elapsed = asyncio.get_running_loop().time() - started
        except TimeoutError:
            return Refused(BUSY, "too many uploads wait to be read; try again after the seconds in Retry-After")
        if answer is None:
            return self._silent(elapsed)
        header, body = answer
        if header.get("code") != "ok":
            code = str(header.get("code"))
            detail = printable(str(header.get("detail")), _MAX_DETAIL)
            return Refused(code if code in _CODES else "reading_failed", detail)
        # The answer of a process that read hostile bytes is itself checked, value by value.
        try:
            epochs = header.get("epochs")
            epochs = epochs if isinstance(epochs, dict) else {}
            return unpack_epochs(epochs if self._keep_subject else epochs | {"subject": ""}, body)
        except EpochsMismatch:
            return Refused("reading_failed", "the reader gave back something that is not a recording")

    async def _answer(self, request: dict[str, object], content: bytes) -> tuple[dict[str, object], bytes] | None:
        try:
            return await asyncio.wait_for(self._ask(request, content), self._limits.wall_s + _GRACE_S)
        except TimeoutError:
            return None

    def _silent(self, elapsed: float) -> Refused:
        if self._closed:  # a replica that is replaced may still have got a request
            return Refused("uploads_down", "the process that was to read the file is being replaced; send it again")
        if elapsed >= self._limits.wall_s - 0.5:
            return Refused(
                "reading_timed_out",
                f"reading the file took longer than {self._limits.wall_s:g} s; send a shorter recording",
            )
        return Refused("reading_failed", "the process that read the file ended without a word; send the file again")

    async def _ask(self, request: dict[str, object], content: bytes) -> tuple[dict[str, object], bytes] | None:
        """Send one upload; None if the connection ended without an answer."""
        head = json.dumps(request).encode()
        # the process that reads holds the other end of this pipe, and ends when ours is closed, however we end
        theirs, presence = os.pipe()
        with contextlib.ExitStack() as held:
            held.callback(os.close, presence)
            try:
                connection = await self._connect(_HEADER.pack(len(head)), theirs)
            except OSError:
                if self._closed:
                    return None
                await self.start()
                connection = await self._connect(_HEADER.pack(len(head)), theirs)
            finally:
                os.close(theirs)
            reader, writer = await asyncio.open_unix_connection(sock=connection)
            # what is not sent by then is of no use; whoever reads it ends with the connection
            held.callback(writer.transport.abort)
            try:
                writer.write(head)
                writer.write(content)
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                return await _receive(reader, _ANSWER_RATIO * len(content) + _ANSWER_MARGIN)
            except (asyncio.IncompleteReadError, ConnectionError):
                return None

    async def _connect(self, first: bytes, handed_over: int) -> socket.socket:
        """Connect with the reader; the first bytes carry a descriptor with them."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, str(self._folder / "s"))
            socket.send_fds(connection, [first], [handed_over])
        except BaseException:
            connection.close()
            raise
        return connection

    def _spawn(self) -> "subprocess.Popen[bytes]":
        if self._server is not None:
            for pipe in (self._server.stdin, self._server.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._place.clear()
        keep = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
        # a replica may run in any working folder, so the packages are found where this file lies
        keep |= {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
        keep |= {"OPENBLAS_NUM_THREADS": "1", "MNE_DONTWRITE_HOME": "true"}
        # where numba is installed, MNE would compile its transforms again in every fork: more than 9 s for a CTF file
        keep |= {"MNE_USE_NUMBA": "false"}
        keep |= {"TMPDIR": str(self._folder), "HOME": str(self._folder)}
        server = subprocess.Popen(
            [sys.executable, "-m", "serving.parse_server", str(self._folder), self._limits.model_dump_json()]
            + [str(self._max_epochs)],
            pass_fds=[self._place.alive.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=keep,
            cwd=self._folder,
            start_new_session=True,
        )
        assert server.stdout is not None
        line = server.stdout.readline()
        if line.strip() != b"ready":
            server.kill()
            server.wait()
            if line.startswith(b"no isolation: "):
                raise OSError(f"uploads cannot be read in isolation: {line[14:].decode().strip()}; {_UNSAFE}")
            raise RuntimeError("the upload reader did not start; run `python -m serving.parse_server` to see why")
        return server


async def _receive(reader: asyncio.StreamReader, max_bytes: int) -> tuple[dict[str, object], bytes] | None:
    (n_head,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    if n_head > _MAX_HEADER:
        return None
    try:
        header = json.loads(await reader.readexactly(n_head))
        n_bytes = int(header["n_bytes"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    if not 0 <= n_bytes <= max_bytes:
        return {"code": "reading_failed", "detail": "the recording is too large once read; send a shorter one"}, b""
    return header, await reader.readexactly(n_bytes)
