"""A PostgreSQL server of our own in a temporary folder, as Debian's package `postgresql` brings it."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from serving.cluster import free_port


def find_binaries() -> Path | None:
    """Return the folder of `initdb` and `postgres`; None where there is no server."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


class PostgresServer:
    """A server that can be stopped and started again on its folder and port."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._data = folder / "data"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        # the server refuses to run as root
        self._user = pwd.getpwnam("postgres").pw_name if os.getuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user)
        self.port = free_port()
        command = [str(binaries / "initdb"), "-D", str(self._data), "-U", "phosphene", "-A", "trust", "-E", "UTF8"]
        subprocess.run(command, check=True, capture_output=True, user=self._user, cwd=folder, env=self._environment())

    @property
    def url(self) -> str:
        """URL of the only database."""
        return f"postgresql://phosphene@127.0.0.1:{self.port}/postgres"

    def empty(self) -> None:
        """Remove the table of jobs, if there is one."""
        engine = create_engine(self.url.replace("postgresql", "postgresql+psycopg"))
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS phosphene_jobs"))
        engine.dispose()

    @staticmethod
    def _environment() -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LC_ALL": "C"}

    def start(self) -> None:
        """Start and wait until the server takes connections."""
        self._process = subprocess.Popen(
            [str(self._binaries / "postgres"), "-D", str(self._data), "-p", str(self.port)]
            + ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self._folder}"],
            stderr=subprocess.DEVNULL,
            user=self._user,
            cwd=self._folder,
            env=self._environment(),
            start_new_session=True,
        )
        engine = create_engine(self.url.replace("postgresql", "postgresql+psycopg"))
        deadline = time.monotonic() + 60.0
        while True:
            try:
                with engine.connect() as connection:
                    connection.execute(text("SELECT 1"))
                break
            except OperationalError:
                assert time.monotonic() < deadline and self._process.poll() is None, "PostgreSQL did not start"
                time.sleep(0.05)
        engine.dispose()

    def stop(self) -> None:
        """End the server at once; its children end with it."""
        if self._process is not None:
            self._process.send_signal(3)  # SIGQUIT: immediate shutdown, as after a crash
            self._process.wait(timeout=30.0)
            self._process = None


@contextmanager
def postgres_server(binaries: Path) -> Iterator[PostgresServer]:
    """Start a server; end it and remove its folder afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ph-pg-", dir="/tmp"))
    try:
        server = PostgresServer(binaries, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
