"""A process that gave up its files can open none, and keeps what it had open."""

import os
import socket
import subprocess
import sys

import pytest

from serving.landlock import forbid_files, landlock_version

needs_landlock = pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")

_TRY = """
import os, socket, sys
from serving.landlock import forbid_files
kept = open(sys.argv[1])
forbid_files()
outcomes = [kept.read()]
for attempt in (
    lambda: open(sys.argv[1]).read(),
    lambda: open(sys.argv[1] + ".new", "w"),
    lambda: os.listdir(os.path.dirname(sys.argv[1])),
    lambda: os.mkdir(sys.argv[1] + ".folder"),
    lambda: os.unlink(sys.argv[1]),
    lambda: os.execv("/bin/true", ["true"]),
    lambda: socket.create_connection(("127.0.0.1", int(sys.argv[2]))),
):
    try:
        attempt()
        outcomes.append("done")
    except PermissionError:
        outcomes.append("denied")
print(outcomes)
"""


@needs_landlock
def test_nothing_can_be_opened_afterwards(tmp_path):
    file = tmp_path / "secret"
    file.write_text("kept open")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = subprocess.run([sys.executable, "-c", _TRY, str(file), port], capture_output=True, text=True, check=True)
    network = "denied" if landlock_version() >= 4 else "done"
    assert done.stdout.strip() == str(["kept open", *["denied"] * 6, network])
    assert file.read_text() == "kept open" and os.listdir(tmp_path) == ["secret"]


def test_a_kernel_without_it_is_told(monkeypatch):
    monkeypatch.setattr("serving.landlock.landlock_version", lambda: 0)
    with pytest.raises(OSError, match="no Landlock"):
        forbid_files()
