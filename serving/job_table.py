"""The table of jobs, and engines on SQLite and PostgreSQL that commit durably and give up in seconds.

A row holds ids, hashes, times and counts only: what a person sent or received lies in blobs, so that erasing a job
is removing files and one row.
"""

import sqlite3
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

# Two waits and a blob must fit into the 2 s within which a request is answered.
_BUSY_S = 1.0
_LOCK = 7_052_026  # any number, the same in every process: the key of PostgreSQL's advisory lock

METADATA = MetaData()
JOBS = Table(
    "phosphene_jobs",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("key_hash", String(64)),
    Column("body_hash", String(64), nullable=False),
    Column("bundle", String(255), nullable=False),
    Column("n_bytes", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("code", String(32), nullable=False),
    Column("result", String(128), nullable=False),
    Column("created", Float(53), nullable=False),
    Column("expires", Float(53), nullable=False),
    Column("not_before", Float(53), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("interruptions", Integer, nullable=False),
    Column("worker", String(64), nullable=False),
    Column("stack", String(64), nullable=False),
    Column("lease_until", Float(53), nullable=False),
    Column("stage", String(16), nullable=False),
    Column("step", Integer, nullable=False),
    Column("n_steps", Integer, nullable=False),
    Column("preview_step", Integer, nullable=False),
    UniqueConstraint("owner", "key_hash"),
    Index("phosphene_jobs_queue", "status", "created"),
)


@dataclass(frozen=True)
class Job:
    """One row; times are seconds since 1970 on the clock of the database."""

    id: str
    owner: str
    key_hash: str | None
    body_hash: str
    bundle: str
    n_bytes: int
    status: str = "queued"
    code: str = ""
    result: str = ""
    created: float = 0.0
    expires: float = 0.0
    not_before: float = 0.0
    attempts: int = 0
    interruptions: int = 0
    worker: str = ""
    stack: str = ""
    lease_until: float = 0.0
    stage: str = ""
    step: int = 0
    n_steps: int = 0
    preview_step: int = 0

    @classmethod
    def of(cls, row: RowMapping) -> "Job":
        """Read a row of `JOBS`."""
        return cls(**row)


def open_engine(database: str, folder: str) -> Engine:
    """Make the engine of a database URL, or of ``jobs.sqlite`` in a local folder when the URL is empty.

    Nothing is connected yet, so a database that is down does not keep the service from starting.
    """
    if not database:
        return _sqlite(Path(folder.removeprefix("file://")).resolve() / "jobs.sqlite")
    url = make_url(database)
    if url.get_backend_name() == "sqlite" and url.database:
        return _sqlite(Path(url.database))
    if url.get_backend_name() != "postgresql":
        raise ValueError(
            f"jobs.database is of kind {url.get_backend_name()!r}, expected postgresql or sqlite with a file; "
            "write postgresql://user@host/name"
        )
    waits = f"-c statement_timeout={int(1000 * _BUSY_S)} -c idle_in_transaction_session_timeout=10000"
    if find_spec("psycopg") is None:
        raise ValueError("jobs.database names PostgreSQL and its driver is missing; install phosphene[postgres]")
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        pool_timeout=_BUSY_S,
        connect_args={
            "client_encoding": "utf8",
            "connect_timeout": 2,
            "tcp_user_timeout": 5000,
            "options": f"{waits} -c synchronous_commit=on",
        },
    )


def _sqlite(file: Path) -> Engine:
    """Make an engine that notices when its file is taken away or another is put in its place.

    SQLite goes on writing to a file that was removed, and what it commits there is lost. So every connection is held
    against the file at its path whenever it is used again. A file that is missing is made at the first connection only:
    in the place of one that is gone an empty one would pass for it.
    """
    engine = create_engine(
        f"sqlite:///{file}",
        pool_timeout=_BUSY_S,
        connect_args={"timeout": _BUSY_S, "check_same_thread": False},
    )
    known = False

    @event.listens_for(engine, "do_connect")
    def connect(dialect: object, record: object, arguments: object, options: dict[str, Any]) -> sqlite3.Connection:
        mode = "rw" if known else "rwc"
        opened: sqlite3.Connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode={mode}", uri=True, **options)
        return opened

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: ConnectionPoolEntry) -> None:
        nonlocal known
        connection.isolation_level = None  # the driver's own BEGIN would come too late to be IMMEDIATE
        _write_ahead(connection)
        for pragma in ("synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")
        record.info["file"] = _file_id(file)
        known = True

    @event.listens_for(engine, "checkout")
    def check(connection: object, record: ConnectionPoolEntry, proxy: object) -> None:
        found = _file_id(file)
        if found is None or found != record.info["file"]:
            raise DisconnectionError("the file of this connection was moved, removed or replaced")  # connects anew

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get("reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch a file to its write-ahead log, for good: where several do so at once, SQLite tells some not to wait."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _file_id(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def serialise(connection: Connection) -> None:
    """Let one writing transaction run at a time; SQLite's BEGIN IMMEDIATE has done so already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def clock(connection: Connection) -> float:
    """Return the database's time, which all machines share."""
    now = "extract(epoch FROM clock_timestamp())"
    if connection.dialect.name == "sqlite":
        now = "(julianday('now') - 2440587.5) * 86400.0"
    return float(connection.execute(text(f"SELECT {now}")).scalar_one())


def shrink(engine: Engine) -> None:
    """Empty SQLite's write-ahead log, in which rows that were deleted can still stand."""
    if engine.dialect.name == "sqlite":
        connection = engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()
