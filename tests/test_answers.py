"""Every answer with pictures says how sure it is and where the noise begins, on every route, with every option."""

import itertools
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fake_service import fake_service
from tiny_bundle import make_tiny_bundle, tiny_recording
from toy_categories import arguments, write_categories

from serving.cli import main
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
# a bundle of categories knows nobody, so no subject can be named
OF_CATEGORIES = tuple(options for name, options in OPTIONS.items() if name != "subject")
MAKING: dict[str, tuple[dict[str, str], ...]] = {
    "generated": ({}, {"num_inference_steps": "1"}, {"guidance_scale": "1", "seed": "3"}),
    "nearest": ({},),
    "category": ({}, {"seed": "3"}),
}
ROUTES = ("sync", "stream", "preferred", "job", "embedding")


@dataclass(frozen=True)
class Service:
    """One kind of bundle behind the interface, and recordings that it decodes."""

    kind: str
    url: str
    recordings: Mapping[str, tuple[bytes, ...]]


@pytest.fixture(scope="module", params=[pytest.param("generated", marks=pytest.mark.faults), "nearest", "category"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind)
    recordings = RECORDINGS
    if kind == "category":
        study = write_categories(folder / "study")
        left_out = ("--leave-out", "sub-02", "--leave-out", "sub-03", "--recordings", folder)
        assert main(arguments(study, folder / "bundle", study / "plain.yaml", *left_out)) == 0
        recordings = {name: ((folder / f"{name}.npz").read_bytes(),) for name in ("sub-02", "sub-03")}
    else:
        make_tiny_bundle(folder / "bundle", retrieves=kind == "nearest")
    jobs = JobSettings(folder=str(folder / "jobs"), beat_s=0.1)
    settings = ServingSettings(bundle=folder / "bundle", jobs=jobs, max_in_flight=64)
    with fake_service(settings, LocalBackend(settings)) as url:
        yield Service(kind, url, recordings)


def post(http: httpx.Client, route: str, contents: tuple[bytes, ...], fields: Mapping[str, str]) -> dict[str, Any]:
    """Send a request down a route and return the answer that it ends with."""
    path = {"job": "/v1/jobs", "embedding": "/v1/embeddings"}.get(route, "/v1/generations")
    headers = {"stream": {"Accept": "text/event-stream"}, "preferred": {"Prefer": "respond-async"}}.get(route, {})
    files = [("file", content) for content in contents]
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


def test_every_answer_carries_confidence_and_noise_floor(service: Service) -> None:
    kind, recordings = service.kind, service.recordings
    options = OF_CATEGORIES if kind == "category" else tuple(OPTIONS.values())
    given = [*options, MAKING[kind]]
    combinations = [dict(itertools.chain(*(one.items() for one in chosen))) for chosen in itertools.product(*given)]
    n_answers = n_epochs = 0
    with httpx.Client(base_url=service.url, timeout=60.0, trust_env=False) as http:
        for number, fields in enumerate(combinations):
            # each combination down every route, and the recordings in turn, so that all of them meet all of these
            for place, route in enumerate(ROUTES):
                if route == "embedding" and set(fields) & {"images", "num_inference_steps", "guidance_scale", "seed"}:
                    continue
                recording = list(recordings)[(number + place) % len(recordings)]
                answer = post(http, route, recordings[recording], fields)
                n_answers += 1
                assert isinstance(answer["noise_floor"], float) and -1.0 < answer["noise_floor"] < 1.0
                assert len(answer["epochs"]) == (5 if kind == "category" else 2), (route, recording, fields)
                if kind == "category":
                    assert answer["noise_floor"] == pytest.approx(0.2), "five categories: guessing is right in a fifth"
                for epoch in answer["epochs"]:
                    n_epochs += 1
                    assert isinstance(epoch["confidence"], float) and 0.0 <= epoch["confidence"] <= 1.0
                    guessed = "guessing gives 0.20" in epoch["confidence_words"]
                    assert epoch["confidence_words"] and guessed is (kind == "category")
                    assert epoch["neighbours"] and "probability" in epoch
                    assert route == "embedding" or len(epoch["images"]) == int(fields.get("images", 1))
                assert ("preview" in fields) is bool(answer["preview"])
                assert answer["report"]["subject"] == fields.get("subject", "")
    assert len(combinations) == 2 ** len(options) * len(MAKING[kind])
    assert n_epochs == (5 if kind == "category" else 2) * n_answers > 100
