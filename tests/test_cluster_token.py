"""The cluster that deploy/ray-cluster.yaml starts: without the token, its jobs API answers 401."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from serving.cluster import free_port

CONFIG = Path(__file__).resolve().parents[1] / "deploy/ray-cluster.yaml"
TOKEN = "0123456789abcdef" * 4


def local_command(folder: str, dashboard_port: int) -> list[str]:
    """Return the head's start command of the file, its paths and fixed ports replaced by ones of this test."""
    text = yaml.safe_load(CONFIG.read_text())["head_start_ray_commands"][-1]
    text = text.replace('"$RAY_AUTH_TOKEN"', TOKEN).removeprefix("cd /opt/phosphene && ")
    words = [word for word in shlex.split(text) if not word.startswith(("--port=", "--autoscaling-config="))]
    assert "RAY_AUTH_MODE=token" in words
    ray = str(Path(sys.executable).with_name("ray"))
    words = [ray if word == ".venv/bin/ray" else word for word in words]
    own = [f"--port={free_port()}", f"--dashboard-port={dashboard_port}", f"--temp-dir={folder}", "--num-cpus=1"]
    # blocking, so that ending this one process ends its cluster and no other
    return [*words, *own, "--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}", "--block"]


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="ph-", dir="/tmp")
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    environment |= {"RAY_agent_register_timeout_ms": "120000", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with open(Path(folder) / "head.log", "w") as log:
        head = subprocess.Popen(
            local_command(folder, port), env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 240.0
        while True:
            assert head.poll() is None, (Path(folder) / "head.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the dashboard did not answer"
            try:
                if httpx.get(f"{url}/api/healthz", timeout=5.0, trust_env=False).status_code < 500:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        yield url
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_without_the_token_no_job_is_listed_or_started(dashboard: str) -> None:
    job = {"entrypoint": "true"}
    for headers in ({}, {"Authorization": "Bearer " + "0" * 64}):
        with httpx.Client(base_url=dashboard, headers=headers, timeout=60.0, trust_env=False) as stranger:
            answers = [
                stranger.get("/api/jobs/"),
                stranger.post("/api/jobs/", json=job),
                stranger.get("/api/serve/applications/"),
                stranger.put("/api/serve/applications/", json={"applications": []}),
            ]
        assert all(answer.status_code in {401, 403} for answer in answers), [answer.status_code for answer in answers]
        if not headers:
            assert {answer.status_code for answer in answers} == {401}
    known = {"Authorization": f"Bearer {TOKEN}"}
    answer = httpx.get(f"{dashboard}/api/jobs/", headers=known, timeout=60.0, trust_env=False)
    assert (answer.status_code, answer.json()) == (200, []), answer.text


def test_the_start_command_keeps_the_dashboard_on_loopback() -> None:
    words = local_command("/tmp/unused", 1)
    assert "--dashboard-host=127.0.0.1" in words
    assert not re.search(r"0\.0\.0\.0", " ".join(words))
