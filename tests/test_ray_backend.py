"""The deployments from the side of who asks them: a generator without replicas sleeps, and a request wakes it."""

import time
from pathlib import Path

import pytest
from tiny_bundle import make_tiny_bundle, tiny_recording

from serving.client import PhospheneClient
from serving.cluster import APPLICATION, free_port, local_service
from serving.settings import ReplicaSettings, ServingSettings

RECORDING = tiny_recording("eeg", 1).to_bytes()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


def n_generators() -> int:
    from ray import serve

    return sum(serve.status().applications[APPLICATION].deployments["Generator"].replica_states.values())


@pytest.mark.faults
def test_a_generator_sleeps_and_a_request_wakes_it(bundle: Path) -> None:
    asleep = ReplicaSettings(n_replicas=0, max_replicas=1, idle_s=5.0, cold_start_s=100.0)
    with local_service(ServingSettings(bundle=bundle, port=free_port(), generator=asleep)) as url:
        with PhospheneClient(url, n_retries=0) as client:
            for _ in range(3):
                assert client.ready() and client.bundles()
            assert n_generators() == 0
            started = time.monotonic()
            cold = client.generate(RECORDING, num_inference_steps=1)
            print(f"a cold start took {time.monotonic() - started:.1f} s")
            assert len(cold.epochs) == 1 and n_generators() == 1
            deadline = time.monotonic() + 90.0
            while n_generators():
                assert client.ready() and time.monotonic() < deadline, "the generator does not go to sleep"
                time.sleep(1.0)
            assert client.generate(RECORDING, num_inference_steps=1).epochs == cold.epochs


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"generator": {"n_replicas": 0}}, "set max_replicas"),
        ({"encoder": {"n_replicas": 0, "max_replicas": 1}}, "only the generator"),
        ({"generator": {"n_replicas": 0, "max_replicas": 1}, "request_timeout_s": 30.0}, "would always fail"),
    ],
)
def test_a_sleep_that_nobody_could_wake_from_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ServingSettings.model_validate({"bundle": "unused"} | given)
