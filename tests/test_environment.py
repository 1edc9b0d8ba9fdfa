import json
import os
import platform
import socket
import subprocess
from pathlib import Path

import torch

from alignment.environment import environment, write_environment
from alignment.runtime import Runtime


def test_versions_and_device_but_no_names_of_machines_or_people(tmp_path: Path) -> None:
    found = environment(Runtime(device="cpu"), tmp_path)
    assert found["packages"]["torch"] == torch.__version__ and found["python"] == platform.python_version()
    assert found["packages"]["mne"] and found["packages"]["accelerate"] and found["git"] is None
    assert found["runtime"]["device"] == "cpu" and found["runtime"]["mixed_precision"] == "no"
    names = {socket.gethostname(), str(Path.home()), os.environ.get("USER", "")} - {"", "/", "localhost"}
    assert not [name for name in names if name in json.dumps(found)]


def test_revision_of_a_checkout_and_whether_it_was_changed(tmp_path: Path) -> None:
    def git(*command: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *who, *command], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    runtime = Runtime(device="cpu")
    assert environment(runtime, tmp_path)["git"] == {"revision": git("rev-parse", "HEAD"), "changed": False}
    (tmp_path / "a").write_text("2")
    assert environment(runtime, tmp_path)["git"]["changed"]


def test_a_run_resumed_elsewhere_lists_both(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    for found in ({"python": "3.11"}, {"python": "3.11"}, {"python": "3.12"}):
        write_environment(path, found)
    assert json.loads(path.read_text()) == [{"python": "3.11"}, {"python": "3.12"}]
