"""Jobs on the whole stack: poison among mates, a failing device, and kills of every kind under load."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from poisoned_generator import BREAKS_DEVICE, KILLS, RAISES, PoisonedGenerator
from tiny_bundle import make_tiny_bundle, tiny_recording

from serving.cluster import free_port, local_service
from serving.settings import JobSettings, ServingSettings

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[1]
RECORDING = tiny_recording("eeg", 1).to_bytes()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="module")
def http(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    jobs = JobSettings(folder=str(tmp_path_factory.mktemp("store")), n_at_once=8)
    settings = ServingSettings(bundle=bundle, port=free_port(), jobs=jobs, batch_wait_ms=100.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.app.Generator", PoisonedGenerator)
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")  # the replicas import the poisoned one too
        with local_service(settings) as url, httpx.Client(base_url=url, timeout=60.0, trust_env=False) as client:
            yield client


def submit(http: httpx.Client, seed: int) -> str:
    data = {"seed": str(seed), "num_inference_steps": "8"}
    response = http.post("/v1/jobs", files={"file": RECORDING}, data=data)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def wait(http: httpx.Client, job_id: str, seconds: float = 150.0) -> dict[str, object]:
    deadline = time.monotonic() + seconds
    while True:
        status: dict[str, object] = http.get(f"/v1/jobs/{job_id}").json()
        if status["status"] in ("finished", "failed"):
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.1)


@pytest.mark.parametrize(("poison", "code"), [(RAISES, "internal_error"), (KILLS, "quarantined")])
def test_poison_in_a_batch_of_eight_fails_alone(http: httpx.Client, poison: int, code: str) -> None:
    jobs = {seed: submit(http, seed) for seed in (1, 2, 3, poison, 4, 5, 6, 7)}
    ends = {seed: wait(http, job_id) for seed, job_id in jobs.items()}
    failed = ends.pop(poison)
    assert failed["status"] == "failed" and failed["problem"]["code"] == code  # type: ignore[index]
    assert failed["attempts"] == 2
    assert {end["status"] for end in ends.values()} == {"finished"}
    assert all(end["attempts"] <= 2 for end in ends.values())  # type: ignore[operator]


def test_a_failing_device_costs_a_replica_and_no_job(http: httpx.Client) -> None:
    jobs = [submit(http, seed) for seed in (1, BREAKS_DEVICE, 2)]
    started = time.monotonic()
    ends = [wait(http, job_id) for job_id in jobs]
    assert {end["status"] for end in ends} == {"finished"}
    assert ends[1]["attempts"] == 2
    took_s = time.monotonic() - started
    print(f"replica replaced and jobs done after {took_s:.1f} s")
    assert took_s <= 90.0, "goal: 30 s on a machine that has nothing else to do"


def test_every_kind_of_process_is_killed_under_load_and_no_job_is_lost(bundle: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "soak_serve.py"), "--bundle", str(bundle)]
    out = tmp_path / "figures.json"
    command = [*script, "--jobs", "200", "--kills", "7", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=570)
    print(done.stdout, done.stderr[-2000:])
    figures = json.loads(out.read_text())
    assert figures["missed"] == [] and done.returncode == 0
    assert figures["jobs"] >= 200 and figures["finished"] == figures["jobs"]
    assert set(figures["kills"]) == {"proxy", "ingress", "generator", "controller", "jobs", "stack", "encoder"}
