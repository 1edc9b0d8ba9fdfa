"""Bundles change in a running service on Ray: no process is replaced, no request is lost, no answer is of two."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from fake_service import fake_service
from tiny_bundle import make_tiny_bundle, tiny_recording

from generation.bundle import Bundle, BundleError
from serving.client import PhospheneClient
from serving.cluster import APPLICATION, free_port, local_ray, served
from serving.local_backend import LocalBackend
from serving.schema import GenerationResponse
from serving.settings import JobSettings, ServingSettings

pytestmark = pytest.mark.faults
RECORDING = tiny_recording("eeg", 1, subject="").to_bytes()
FIELDS = {"seed": "3", "num_inference_steps": "2"}
N_CLIENTS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("tiny")
    return [make_tiny_bundle(place / f"bundle-{seed}", seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def alone(folders: list[Path]) -> dict[str, str]:
    """The first picture that each bundle makes in a service of its own, by its id."""
    pictures = {}
    for folder in folders:
        settings = ServingSettings(bundle=folder)
        with fake_service(settings, LocalBackend(settings)) as url, PhospheneClient(url) as client:
            answer = client.generate(RECORDING, seed=3, num_inference_steps=2)
            pictures[answer.bundle_id] = answer.epochs[0].images[0]
    assert len(set(pictures.values())) == 2
    return pictures


@pytest.fixture(scope="module")
def settings(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> ServingSettings:
    jobs = JobSettings(folder=str(tmp_path_factory.mktemp("jobs")), sweep_s=0.5, unserved_s=3.0, n_at_once=2)
    return ServingSettings(bundle=folders[0], port=free_port(), jobs=jobs)


@pytest.fixture(scope="module")
def url(settings: ServingSettings) -> Iterator[str]:
    from serving.app import build

    with local_ray(max(8, os.cpu_count() or 1)), served(build(settings), settings) as address:
        yield address


def replicas() -> dict[str, set[tuple[int, float]]]:
    """Processes of every deployment's replicas, of this test's own cluster: process id and start."""
    found: dict[str, set[tuple[int, float]]] = {name: set() for name in ("Encoder", "Generator", "Ingress", "Jobs")}
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
            for name in found:
                if f"ServeReplica:{APPLICATION}:{name}" in title:
                    found[name].add((process.pid, process.create_time()))
        except psutil.Error:
            continue
    return found


class Load:
    """Clients that ask without a pause until they are told to stop, in threads."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(N_CLIENTS)
        self.answers: list[tuple[int, str, str]] = []
        self._tasks = [self._pool.submit(self._ask) for _ in range(N_CLIENTS)]

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60.0, trust_env=False) as http:
            while not self._stop.is_set():
                response = http.post("/v1/generations", files={"file": RECORDING}, data=FIELDS)
                if response.status_code != 200:
                    self.answers.append((response.status_code, response.text[:200], ""))
                    continue
                answer = GenerationResponse.model_validate_json(response.content)
                self.answers.append((200, answer.bundle_id, answer.epochs[0].images[0]))

    def end(self) -> list[tuple[int, str, str]]:
        self._stop.set()
        for task in self._tasks:
            task.result(timeout=90.0)
        self._pool.shutdown()
        return self.answers


def redeploy(settings: ServingSettings) -> None:
    from ray import serve

    from serving.app import build

    serve.run(build(settings), name=APPLICATION, route_prefix="/")


def test_a_swap_replaces_no_process_and_loses_no_request(
    url: str, settings: ServingSettings, folders: list[Path], alone: dict[str, str]
) -> None:
    old, new = [Bundle.load(folder).id for folder in folders]
    before = replicas()
    assert all(before.values())
    load = Load(url)
    time.sleep(2.0)
    redeploy(settings.model_copy(update={"bundle": folders[1], "more_bundles": (folders[0],)}))
    n_before = len(load.answers)
    with PhospheneClient(url) as client:
        assert [one.id for one in client.bundles()] == [new, old]
        assert client.generate(RECORDING, bundle=old, seed=3, num_inference_steps=2).epochs[0].images[0] == alone[old]
    time.sleep(2.0)
    answers = load.end()
    counts = Counter((status, bundle_id) for status, bundle_id, _ in answers)
    print(f"{len(answers)} answers around a swap: {counts}")
    assert {status for status, _ in counts} == {200}, counts
    assert all(picture == alone[bundle_id] for _, bundle_id, picture in answers)
    assert counts[200, old] and counts[200, new] and n_before < len(answers)
    assert {bundle_id for _, bundle_id, _ in answers[-N_CLIENTS:]} == {new}
    assert replicas() == before


def test_a_swap_to_a_damaged_bundle_changes_nothing(
    url: str, settings: ServingSettings, folders: list[Path], tmp_path: Path
) -> None:
    damaged = make_tiny_bundle(tmp_path / "damaged", seed=7)
    weights = next((damaged / "unclip").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    before = replicas()
    with PhospheneClient(url) as client:
        served_before = client.bundles()
        with pytest.raises(BundleError, match="damaged"):
            redeploy(settings.model_copy(update={"bundle": damaged}))
        assert client.bundles() == served_before and replicas() == before


def test_jobs_of_a_bundle_that_has_gone_fail_and_others_do_not(
    url: str, settings: ServingSettings, folders: list[Path], alone: dict[str, str]
) -> None:
    old, new = [Bundle.load(folder).id for folder in folders]
    with PhospheneClient(url) as client:
        redeploy(settings.model_copy(update={"bundle": folders[0], "more_bundles": (folders[1],)}))
        kept = [client.submit(RECORDING, seed=3, num_inference_steps=2, bundle=one) for one in (old, new)]
        for job in kept:
            ended = client.wait(job.id, timeout_s=60.0)
            assert ended.result is not None and ended.result.epochs[0].images[0] == alone[job.bundle_id]
        # more than run at once, so some of these wait while the bundle goes
        waiting = [client.submit(RECORDING, seed=3, num_inference_steps=60, images=8) for _ in range(12)]
        redeploy(settings.model_copy(update={"bundle": folders[1]}))
        after = client.submit(RECORDING, seed=3, num_inference_steps=2)
        ends = [client.wait(job.id, timeout_s=80.0) for job in (*waiting, after)]
    assert ends[-1].result is not None and ends[-1].result.bundle_id == new
    gone = [end for end in ends[:-1] if end.problem is not None]
    assert gone and {end.problem.code for end in gone if end.problem} == {"bundle_gone"}
    assert all(end.result.bundle_id == old for end in ends[:-1] if end.result is not None)
    print(f"{len(gone)} of {len(waiting)} jobs ended without their bundle")


def test_a_wrong_list_ends_nothing_and_lost_replicas_start_under_it(
    url: str, settings: ServingSettings, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    redeploy(settings)
    before = replicas()
    with monkeypatch.context() as patch:
        patch.setattr("serving.app.find_bundles", lambda folders: ())  # a `user_config` is not seen by `build`
        redeploy(settings.model_copy(update={"bundle": Path("/" + "x" * 300)}))  # one that cannot even be looked for
    time.sleep(3.0)
    assert replicas() == before
    assert "phosphene_bundles_rejected 1.0" in httpx.get(f"{url}/metrics", trust_env=False).text
    for name in ("Encoder", "Generator"):
        for pid, _ in before[name]:
            os.kill(pid, signal.SIGKILL)
    with PhospheneClient(url, n_retries=8) as client:
        deadline = time.monotonic() + 90.0
        while not all(now[name] - before[name] for now in [replicas()] for name in ("Encoder", "Generator")):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        job = client.wait(client.submit(RECORDING, seed=3, num_inference_steps=2).id, timeout_s=60.0)
        assert job.result is not None and job.result.bundle_id == Bundle.load(folders[0]).id
        assert client.ready()
    redeploy(settings)
    time.sleep(3.0)
    assert "phosphene_bundles_rejected 0.0" in httpx.get(f"{url}/metrics", trust_env=False).text
