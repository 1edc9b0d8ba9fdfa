"""The whole service on a real Ray Serve cluster, with a tiny bundle of random weights."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from tiny_bundle import make_tiny_bundle, tiny_recording

from encoders.epochs import SignalEpochs
from serving.client import PhospheneClient, problem_of
from serving.cluster import free_port, local_service
from serving.settings import ReplicaSettings, ServingSettings

STEPS = 2


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = ServingSettings(
        bundle=make_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle"),
        port=free_port(),
        max_in_flight=12,
        generator=ReplicaSettings(max_ongoing_requests=6, max_queued_requests=4),
    )
    with local_service(settings) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[PhospheneClient]:
    with PhospheneClient(url) as connected:
        yield connected


def test_a_started_service_is_ready_and_tells_its_bundle(client: PhospheneClient) -> None:
    assert client.ready()
    (bundle,) = client.bundles()
    assert set(bundle.modalities) == {"eeg", "meg"} and len(bundle.preprocessing_hash) == 64


def test_same_seed_same_pictures(client: PhospheneClient) -> None:
    content = tiny_recording("eeg", 2).to_bytes()
    first, again, other = (
        client.generate(content, images=2, seed=seed, num_inference_steps=STEPS) for seed in (1, 1, 2)
    )
    assert first.epochs == again.epochs
    assert first.epochs[0].images[0] != other.epochs[0].images[0]
    assert len({image for epoch in first.epochs for image in epoch.images}) == 4
    assert first.epochs[0].neighbours[0].thumbnail


def test_the_order_of_channels_does_not_matter(client: PhospheneClient) -> None:
    epochs = tiny_recording("eeg", 2)
    order = np.random.default_rng(0).permutation(epochs.ch_names).tolist()
    straight, shuffled = (
        client.generate(item.to_bytes(), seed=3, num_inference_steps=STEPS) for item in (epochs, epochs.pick(order))
    )
    assert straight.epochs == shuffled.epochs


def test_two_recordings_are_fused(client: PhospheneClient) -> None:
    both = [tiny_recording(kind, 2).to_bytes() for kind in ("eeg", "meg")]
    answer = client.generate(*both, num_inference_steps=STEPS)
    assert set(answer.report.modalities) == {"eeg", "meg"} and len(answer.epochs) == 2


def test_a_recording_that_does_not_fit_is_refused_with_its_sentence(client: PhospheneClient) -> None:
    few = tiny_recording("eeg", 1)
    with pytest.raises(httpx.HTTPStatusError, match="channels") as caught:
        client.generate(few.pick(few.ch_names[:20]).to_bytes())
    problem = problem_of(caught.value)
    assert problem is not None and problem.code == "epochs_mismatch" and "Traceback" not in problem.detail


def test_steps_are_streamed_through_the_deployments(client: PhospheneClient) -> None:
    steps: list[tuple[int, int]] = []
    client.generate(
        tiny_recording("eeg", 1).to_bytes(),
        num_inference_steps=4,
        on_progress=lambda event: steps.append((event.step, event.n_steps)) if event.stage == "generate" else None,
    )
    assert steps[1:] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_many_clients_get_an_answer_or_are_told_to_come_back(url: str) -> None:
    content = tiny_recording("eeg", 1).to_bytes()

    async def one(http: httpx.AsyncClient, seed: int) -> httpx.Response:
        fields = {"seed": str(seed), "num_inference_steps": "4"}
        return await http.post("/v1/generations", data=fields, files={"file": content})

    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=120.0, trust_env=False) as http:
            return list(await asyncio.gather(*(one(http, seed) for seed in range(32))))

    responses = asyncio.run(flood())
    counts = Counter(response.status_code for response in responses)
    assert set(counts) <= {200, 429, 503} and counts[200] >= 6, counts
    assert all(int(response.headers["Retry-After"]) >= 1 for response in responses if response.status_code != 200)


def test_work_ends_when_the_client_leaves(client: PhospheneClient, url: str) -> None:
    content = tiny_recording("eeg", 64).to_bytes()
    fields = {"images": "8", "num_inference_steps": "100"}
    with httpx.Client(base_url=url, trust_env=False) as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/generations", data=fields, files={"file": content}, timeout=httpx.Timeout(60.0, read=3.0))
    started = time.monotonic()
    client.generate(tiny_recording("eeg", 1).to_bytes(), num_inference_steps=1)
    # the abandoned work would have kept the only decoder busy for minutes
    assert time.monotonic() - started < 20.0


def test_real_files_come_back_as_pictures_or_with_a_reason(client: PhospheneClient, shared_data: Path) -> None:
    files = [path for path in sorted((shared_data / "formats").rglob("*")) if path.is_file()]
    for path in files:
        try:
            answer = client.generate(path, num_inference_steps=1)
            assert answer.epochs, path
        except httpx.HTTPStatusError as error:
            problem = problem_of(error)
            assert problem is not None and 400 <= problem.status < 500 and len(problem.detail) > 20, path
    assert client.ready()


def test_real_erps_of_63_channels_come_back_as_pictures(client: PhospheneClient, shared_data: Path) -> None:
    with np.load(shared_data / "things_eeg1" / "erp_by_category_36subjects.npz", allow_pickle=False) as stored:
        erps, times = stored["erp_uV"], stored["times"]
        ch_names, sfreq = tuple(stored["ch_names"].tolist()), float(stored["sfreq"])
    recording = SignalEpochs(
        data=(erps.reshape(-1, *erps.shape[-2:])[:5] * 1e-6).astype(np.float32),
        sfreq=sfreq,
        tmin=float(times[0]),
        ch_names=ch_names,
        ch_types=("eeg",) * len(ch_names),
        positions=np.full((len(ch_names), 3), np.nan, dtype=np.float32),
    )
    answer = client.generate(recording.to_bytes(), num_inference_steps=STEPS)
    assert len(answer.epochs) == 5 and answer.report.modalities == ("eeg",)
