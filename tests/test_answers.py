"""Every answer with pictures says how sure it is and where the noise begins, on every route, with every option."""

import itertools
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
from fake_service import fake_service
from tiny_bundle import make_tiny_bundle, tiny_recording

from serving.local_backend import LocalBackend
from serving.settings import JobSettings, ServingSettings

RECORDINGS = {
    "eeg": (tiny_recording("eeg", 2, subject="").to_bytes(),),
    "meg": (tiny_recording("meg", 2, subject="").to_bytes(),),
    "eeg+meg": (tiny_recording("eeg", 2, subject="").to_bytes(), tiny_recording("meg", 2, subject="").to_bytes()),
}
OPTIONS: dict[str, tuple[dict[str, str], ...]] = {
    "images": ({}, {"images": "2"}),
    "average": ({}, {"average": "true"}),
    "preview": ({}, {"preview": "true"}),
    "subject": ({}, {"subject": "sim-02"}),
}
MAKING: dict[str, tuple[dict[str, str], ...]] = {
    "generated": ({}, {"num_inference_steps": "1"}, {"guidance_scale": "1", "seed": "3"}),
    "nearest": ({},),
}
ROUTES = ("sync", "stream", "preferred", "job", "embedding")


@pytest.fixture(scope="module", params=[pytest.param("generated", marks=pytest.mark.faults), "nearest"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind)
    bundle = make_tiny_bundle(folder / "bundle", retrieves=kind == "nearest")
    jobs = JobSettings(folder=str(folder / "jobs"), beat_s=0.1)
    settings = ServingSettings(bundle=bundle, jobs=jobs, max_in_flight=64)
    with fake_service(settings, LocalBackend(settings)) as url:
        yield kind, url


def post(http: httpx.Client, route: str, recording: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """Send a request down a route and return the answer that it ends with."""
    path = {"job": "/v1/jobs", "embedding": "/v1/embeddings"}.get(route, "/v1/generations")
    headers = {"stream": {"Accept": "text/event-stream"}, "preferred": {"Prefer": "respond-async"}}.get(route, {})
    files = [("file", content) for content in RECORDINGS[recording]]
    response = http.post(path, files=files, data=dict(fields), headers=headers)
    assert response.status_code in (200, 202), response.text
    if route == "stream":
        events = [event.split("\ndata: ") for event in response.text.strip().split("\n\n")]
        assert events[-1][0] == "event: result", events[-1]
        return json.loads(events[-1][1])
    if response.status_code == 200:
        return response.json()
    deadline = time.monotonic() + 60.0
    while (status := http.get(response.headers["location"]).json())["status"] != "finished":
        assert status["status"] != "failed" and time.monotonic() < deadline, status
        time.sleep(0.02)
    return status["result"]


def test_every_answer_carries_confidence_and_noise_floor(service: tuple[str, str]) -> None:
    kind, url = service
    given = [*OPTIONS.values(), MAKING[kind]]
    combinations = [dict(itertools.chain(*(one.items() for one in chosen))) for chosen in itertools.product(*given)]
    n_answers = n_epochs = 0
    with httpx.Client(base_url=url, timeout=60.0, trust_env=False) as http:
        for number, fields in enumerate(combinations):
            # each combination down every route, and the recordings in turn, so that all of them meet all of these
            for place, route in enumerate(ROUTES):
                if route == "embedding" and set(fields) & {"images", "num_inference_steps", "guidance_scale"}:
                    continue
                recording = list(RECORDINGS)[(number + place) % len(RECORDINGS)]
                answer = post(http, route, recording, fields)
                n_answers += 1
                assert isinstance(answer["noise_floor"], float) and -1.0 < answer["noise_floor"] < 1.0
                assert answer["epochs"], (route, recording, fields)
                for epoch in answer["epochs"]:
                    n_epochs += 1
                    assert isinstance(epoch["confidence"], float) and 0.0 <= epoch["confidence"] <= 1.0
                    assert epoch["confidence_words"] and "probability" in epoch and epoch["neighbours"]
                    assert route == "embedding" or len(epoch["images"]) == int(fields.get("images", 1))
                assert ("preview" in fields) is bool(answer["preview"])
                assert answer["report"]["subject"] == fields.get("subject", "")
    assert len(combinations) == 16 * len(MAKING[kind]) and n_epochs == 2 * n_answers > 100
