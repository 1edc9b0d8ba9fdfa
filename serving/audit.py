"""A log of who did what, in which a change of any record is found: one JSON line each, chained by hashes.

Every line carries the hash of the one before. With a secret key the hashes cannot be made again by whoever can write
the file; without one they show accidents and clumsy edits only. A second small file, the head, says how far the log
goes, so that lines missing at its end are found as well; an older copy of both is found by a note of the last record
that was kept elsewhere. Lines are on disk before the call returns. No signal, no file name and no name of a recorded
person belongs here; `serving.door` decides what is written.
"""

import fcntl
import glob
import hashlib
import hmac
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

Fact = str | int | bool
START = "0" * 64
_NOTE = re.compile(r"[1-9][0-9]{0,17}:[0-9a-f]{64}")
_TAIL_BYTES = 1 << 16
_HEAD_BYTES = 256
_MIN_KEY_BYTES = 32


@dataclass(frozen=True)
class AuditReport:
    """What `verify` found: records from `first` to `last`; `fault` is empty if all is as it was written.

    `note` is the number and the hash of the last record, to be kept where whoever can write the log cannot.
    """

    first: int
    last: int
    fault: str = ""
    note: str = ""


class AuditLog:
    """Append records; threads and processes may share a file.

    Parameters
    ----------
    path : Path
        The log. Beside it lie ``<name>.head``, ``<name>.lock`` and, when it grew too large, ``<name>.000000000001``
        and so on, named by their first record.
    key : bytes, optional
        Secret of the chain.
    max_bytes : int
        A larger file is put aside.

    Raises
    ------
    ValueError
        On writing, if the log does not end where its head says.
    OSError
        On writing, if the disk does not take the record.
    """

    def __init__(self, path: Path, *, key: bytes | None = None, max_bytes: int = 64 << 20) -> None:
        self._path = path
        self._key = key
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, facts: Mapping[str, Fact]) -> None:
        """Write one record; ``at`` (UTC) and the chain are added."""
        with self._lock, self._only_process():
            n, previous = self._end()
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            record = {"at": now, **facts, "n": n + 1, "previous": previous}
            record["hash"] = _hash(record, self._key)
            line = _canonical(record).encode() + b"\n"
            if self._path.exists() and self._path.stat().st_size + len(line) > self._max_bytes:
                self._put_aside()
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError("the audit record was written in part only")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._write_head(n + 1, str(record["hash"]))

    def _end(self) -> tuple[int, str]:
        """Find the last record, and compare it with the head; a line that a crash cut short is taken away.

        The head is there before the first record, so that a log without one is known to have lost it.
        """
        n, last = 0, START
        if not _head_path(self._path).exists() and not _has_records(self._path):
            self._write_head(n, last)
        n_head, hash_head = read_head(self._path, self._key)
        if self._path.exists() and self._path.stat().st_size:
            line = self._last_line()
            if line:
                record = json.loads(line)
                n, last = record["n"], record["hash"]
        if n == 0 and n_head:
            # nothing in the present file: it was put aside just before
            parts = _parts(self._path)
            lines = parts[-1].read_bytes().splitlines() if parts else []
            if lines:
                record = json.loads(lines[-1])
                n, last = record["n"], record["hash"]
        if n < n_head or (n == n_head and last != hash_head):
            raise ValueError(
                f"the audit log {self._path} ends with record {n}, its head says {n_head}: records were taken away or "
                "changed; run `phosphene audit verify` and begin a new file"
            )
        return n, last

    def _last_line(self) -> bytes:
        with self._path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            tail = file.read()
            whole = tail.rfind(b"\n") + 1
            if whole != len(tail):
                file.truncate(size - len(tail) + whole)
            lines = tail[:whole].splitlines()
            return lines[-1] if lines else b""

    def _put_aside(self) -> None:
        with self._path.open("rb") as file:
            first = json.loads(file.readline())["n"]
        os.rename(self._path, self._path.with_name(f"{self._path.name}.{first:012d}"))

    def _write_head(self, n: int, digest: str) -> None:
        head: dict[str, Fact] = {"n": n, "hash": digest}
        head["mac"] = _hash(head, self._key)
        descriptor = os.open(_head_path(self._path), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, _canonical(head).encode().ljust(_HEAD_BYTES - 1) + b"\n", 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _only_process(self) -> Iterator[None]:
        descriptor = os.open(_lock_path(self._path), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def read_audit_key(path: Path) -> bytes:
    """Read the secret of a chain.

    Raises
    ------
    ValueError
        If it is too short to be one.
    """
    key = path.read_bytes().strip()
    if len(key) < _MIN_KEY_BYTES:
        raise ValueError(f"{path} holds {len(key)} bytes, expected at least {_MIN_KEY_BYTES}; make one anew")
    return key


def verify(path: Path, key: bytes | None = None, note: str = "") -> AuditReport:
    """Check every record of a log, the parts that were put aside included, and that none is missing.

    The log may be in use; whoever writes waits only while its last part is read.

    Parameters
    ----------
    path : Path
    key : bytes, optional
        The secret that it was written with.
    note : str
        Of an earlier report: the log must still hold that record, so that an older copy does not pass for it.

    Returns
    -------
    AuditReport
        Its fault names the first record that is not as it was written.

    Raises
    ------
    ValueError
        If `note` is none.
    """
    if note and not _NOTE.fullmatch(note):
        raise ValueError(f"{note!r} is no note of an audit log, expected NUMBER:HASH as an earlier `verify` printed it")
    with _no_writer(path):
        parts, last = _parts(path), path.read_bytes() if path.exists() else b""
        try:
            head, head_fault = read_head(path, key), ""
        except ValueError as error:
            head, head_fault = (0, START), str(error)
    n, previous = 0, START
    hashes: dict[int, str] = {0: START}
    for part in [*parts, path]:
        content = last if part == path else part.read_bytes()  # what was put aside is not written to any more
        if content and not content.endswith(b"\n"):
            return AuditReport(1, n, f"{part.name}: what follows record {n} is cut short")
        for line in content.split(b"\n")[:-1]:
            fault = _fault(line, n + 1, previous, key)
            if fault:
                return AuditReport(1, n, f"{part.name}: {fault}")
            n, previous = n + 1, json.loads(line)["hash"]
            hashes[n] = previous
    if head_fault:
        return AuditReport(1, n, head_fault)
    n_head, hash_head = head
    # the head is written after its record: a crash in between leaves it one behind
    if hashes.get(n_head) != hash_head or n_head < n - 1:
        return AuditReport(1, n, f"{path.name} ends with record {n}, its head says {n_head}")
    n_noted, _, noted = note.partition(":")
    if note and hashes.get(int(n_noted)) != noted:
        return AuditReport(1, n, f"{path.name} does not hold record {n_noted} as it was noted; it is an older copy")
    return AuditReport(1 if n else 0, n, note=f"{n}:{previous}" if n else "")


def read_head(path: Path, key: bytes | None) -> tuple[int, str]:
    """Read how far a log goes, as (number, hash) of its last record; (0, `START`) if it has none.

    Raises
    ------
    ValueError
        If it is not as it was written, or gone although the log is there.
    """
    try:
        content = _head_path(path).read_bytes()
    except FileNotFoundError:
        if _has_records(path):
            raise ValueError(f"{path.name}.head is gone, so records may be missing at the end") from None
        return 0, START
    try:
        head = json.loads(content)
        digest = head.pop("mac")
        n, last = int(head["n"]), str(head["hash"])
        intact = hmac.compare_digest(str(digest), _hash(head, key))
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact or content != _canonical({**head, "mac": digest}).encode().ljust(_HEAD_BYTES - 1) + b"\n":
        raise ValueError(f"{path.name}.head was changed, or belongs to another key")
    return n, last


def _fault(line: bytes, n: int, previous: str, key: bytes | None) -> str:
    try:
        record = json.loads(line)
        digest = record.pop("hash")
        chained = record["n"] == n and record["previous"] == previous and type(record["n"]) is int
        intact = hmac.compare_digest(str(digest), _hash(record, key))
        same = _canonical({**record, "hash": digest}).encode() == line
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"record {n} is not readable"
    if not (chained and intact and same):
        return f"record {n} was changed, moved or taken away, or belongs to another key"
    return ""


def _canonical(record: Mapping[str, Fact]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"))


def _hash(record: Mapping[str, Fact], key: bytes | None) -> str:
    content = _canonical(record).encode()
    if key is None:
        return hashlib.sha256(content).hexdigest()
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def _head_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def _has_records(path: Path) -> bool:
    return bool(_parts(path)) or (path.exists() and path.stat().st_size > 0)


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


@contextmanager
def _no_writer(path: Path) -> Iterator[None]:
    """Keep all who write waiting; a log without a lock has no writer."""
    if not _lock_path(path).exists():
        yield
        return
    descriptor = os.open(_lock_path(path), os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.{'[0-9]' * 12}"))
