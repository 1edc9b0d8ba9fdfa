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


_WITHIN = """
import os, signal, socket, sys
from pathlib import Path
from serving.landlock import allow_files
folder, port = Path(sys.argv[1]), int(sys.argv[2])
allow_files(readable=[folder / "read", folder / "absent"], writable=[folder / "work"])
(folder / "work" / "new").write_text("x")
(folder / "work" / "link").symlink_to(folder / "secret")
outcomes = [(folder / "read" / "a").read_text(), (folder / "work" / "new").read_text()]
quiet = socket.socket(socket.AF_UNIX)
for attempt in (
    lambda: (folder / "work" / "link").read_text(),
    lambda: (folder / "secret").read_text(),
    lambda: (folder / "read" / "b").write_text("x"),
    lambda: os.rename(folder / "work" / "new", folder / "read" / "new"),
    lambda: os.mkfifo(folder / "work" / "pipe"),
    lambda: os.mknod(folder / "work" / "null", 0o600 | 0o020000, os.makedev(1, 3)),
    lambda: os.execv("/bin/true", ["true"]),
    lambda: socket.create_server(("127.0.0.1", 0)),
    lambda: socket.create_connection(("127.0.0.1", port)),
    lambda: os.kill(os.getppid(), 0),
    lambda: quiet.connect("\\0phosphene-test-" + str(port)),
):
    try:
        attempt()
        outcomes.append("done")
    except (PermissionError, OSError) as error:
        outcomes.append("denied" if error.errno in (1, 13, 18) else repr(error))
print(outcomes)
"""


@needs_landlock
def test_what_is_allowed_is_all_that_is_left(tmp_path):
    for name in ("read", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "read" / "a").write_text("mine")
    (tmp_path / "secret").write_text("not yours")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as quiet:
        port = str(server.getsockname()[1])
        quiet.bind(f"\0phosphene-test-{port}")
        quiet.listen(1)
        done = subprocess.run(
            [sys.executable, "-c", _WITHIN, str(tmp_path), port], capture_output=True, text=True, check=True
        )
    network = ["denied" if landlock_version() >= 4 else "done"] * 2
    others = ["denied" if landlock_version() >= 6 else "done"] * 2
    assert done.stdout.strip() == str(["mine", "x", *["denied"] * 7, *network, *others])
    assert sorted(os.listdir(tmp_path / "read")) == ["a"]
