"""Trainings started with `accelerate launch`, on ports of their own, in process groups that can be killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def launch(setup: str, config: Path, run_dir: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `alignment.train` with a file of deploy/accelerate, or with one process when ``setup`` is empty."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    several = [
        *("-m", "accelerate.commands.launch", "--config_file", f"deploy/accelerate/{setup}.yaml"),
        *("--main_process_port", str(port)),
    ]
    command = [
        *(sys.executable, *(several if setup else []), "-m", "alignment.train"),
        *("--config", str(config), "--run-dir", str(run_dir), *arguments),
    ]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)


def kill_at(process: subprocess.Popen[bytes], log: Path, n_lines: int) -> None:
    """Kill a training and all its processes once its log has so many lines."""
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= n_lines):
        time.sleep(0.01)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def losses(run_dir: Path) -> dict[int, float]:
    """Loss of each step in the log of a run."""
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}
