"""Several bundles in one service: each answers as if it were alone, and nothing of one gets into another."""

import asyncio
import base64
import gc
import io
import json
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fake_service import FakeBackend, fake_service
from PIL import Image
from starlette.exceptions import HTTPException
from tiny_bundle import make_tiny_bundle, tiny_recording

from generation.bundle import Bundle, BundleError
from serving.async_client import AsyncPhospheneClient
from serving.backend import PictureOrder
from serving.client import PhospheneClient
from serving.local_backend import KeptModels, LocalBackend
from serving.replica_models import Default, keeper
from serving.schema import BundleInfo, GenerationResponse
from serving.served_bundles import choose, find_bundles, open_bundle
from serving.settings import JobSettings, ServingSettings
from serving.stream_client import StreamClient
from serving.stream_schema import StreamEpoch, StreamOptions, StreamStart

EPOCHS = tiny_recording("eeg", 2, subject="")
RECORDING = EPOCHS.to_bytes()
N = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("tiny")
    return [make_tiny_bundle(place / f"bundle-{seed}", seed=seed) for seed in range(N)]


@pytest.fixture(scope="module")
def ids(folders: list[Path]) -> list[str]:
    return [Bundle.load(folder).id for folder in folders]


@pytest.fixture(scope="module")
def url(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    jobs = JobSettings(folder=str(tmp_path_factory.mktemp("jobs")), beat_s=0.1)
    # fewer models are kept than there are bundles
    settings = ServingSettings(
        bundle=folders[0], more_bundles=tuple(folders[1:]), n_models_kept=2, jobs=jobs, batch_wait_ms=50.0
    )
    with fake_service(settings, LocalBackend(settings), folders[0] / "example.npz") as address:
        yield address


@pytest.fixture(scope="module")
def alone(folders: list[Path], ids: list[str]) -> dict[str, GenerationResponse]:
    """What a service with one bundle alone answers."""
    answers = {}
    for folder, bundle_id in zip(folders, ids, strict=True):
        settings = ServingSettings(bundle=folder)
        with fake_service(settings, LocalBackend(settings)) as address, PhospheneClient(address) as client:
            answers[bundle_id] = client.generate(RECORDING, seed=4)
    return answers


def same(answer: GenerationResponse, other: GenerationResponse) -> bool:
    """Compare all but what a request has of its own."""
    own = {"id", "timings"}
    return answer.model_dump(exclude=own) == other.model_dump(exclude=own)


def test_every_bundle_answers_as_if_it_were_alone(
    url: str, ids: list[str], alone: dict[str, GenerationResponse]
) -> None:
    assert len({answer.epochs[0].images for answer in alone.values()}) == N
    with PhospheneClient(url) as client:
        for bundle_id in [*ids, *ids[::-1], ids[1]]:
            answer = client.generate(RECORDING, seed=4, bundle=bundle_id)
            assert same(answer, alone[bundle_id]) and answer.bundle_id == bundle_id
            picture = Image.open(io.BytesIO(base64.b64decode(answer.epochs[0].images[0])))
            assert isinstance(picture, Image.Image) and picture.info["phosphene:bundle"] == bundle_id
            embedded = client.embed(RECORDING, bundle=bundle_id)
            assert embedded.bundle_id == bundle_id and embedded.noise_floor == alone[bundle_id].noise_floor
        assert same(client.generate(RECORDING, seed=4), alone[ids[0]])


def test_requests_for_different_bundles_at_once_are_not_mixed(
    url: str, ids: list[str], alone: dict[str, GenerationResponse]
) -> None:
    async def one(client: AsyncPhospheneClient, bundle_id: str) -> bool:
        return same(await client.generate(RECORDING, seed=4, bundle=bundle_id), alone[bundle_id])

    async def all_at_once() -> list[bool]:
        async with AsyncPhospheneClient(url) as client:
            return list(await asyncio.gather(*(one(client, bundle_id) for bundle_id in ids * 4)))

    assert asyncio.run(all_at_once()) == [True] * (4 * N)


def test_jobs_and_streams_use_the_bundle_that_they_name(
    url: str, ids: list[str], alone: dict[str, GenerationResponse]
) -> None:
    start = StreamStart(modality="eeg", ch_names=EPOCHS.ch_names, sfreq=EPOCHS.sfreq, when_busy="wait")
    with PhospheneClient(url) as client:
        for bundle_id in ids[::-1]:
            job = client.submit(RECORDING, seed=4, bundle=bundle_id)
            assert job.bundle_id == bundle_id
            ended = client.wait(job.id, timeout_s=60.0)
            assert ended.result is not None and same(ended.result, alone[bundle_id])
            options = StreamOptions(bundle=bundle_id, num_inference_steps=1)
            with StreamClient(url, start.model_copy(update={"options": options})) as stream:
                stream.mark(100, "seen")
                stream.push(np.concatenate(list(EPOCHS.data) * 2, axis=1))
                (found,) = stream.finish()
            assert isinstance(found, StreamEpoch) and found.answer.bundle_id == bundle_id
        assert client.submit(RECORDING).bundle_id == ids[0]


def test_all_bundles_are_listed_and_the_default_is_first_and_marked(url: str, ids: list[str]) -> None:
    with PhospheneClient(url) as client:
        listed = client.bundles()
    assert [one.id for one in listed] == ids
    assert [one.default for one in listed] == [True] + [False] * (N - 1)
    with httpx.Client(base_url=url, trust_env=False) as http:
        described = http.get("/openapi.json").json()
    for form in ("GenerationForm", "EmbeddingForm"):
        assert "bundle" in described["components"]["schemas"][form]["properties"]


@pytest.mark.parametrize("route", ["/v1/generations", "/v1/embeddings", "/v1/jobs", "/v1/stream"])
def test_a_bundle_that_is_not_served_is_refused_with_those_that_are(url: str, ids: list[str], route: str) -> None:
    if route == "/v1/stream":
        options = StreamOptions(bundle="another")
        start = StreamStart(modality="eeg", ch_names=EPOCHS.ch_names, sfreq=EPOCHS.sfreq, options=options)
        with pytest.raises(ValueError, match="unknown_bundle"):
            StreamClient(url, start)
        return
    with httpx.Client(base_url=url, trust_env=False, timeout=30.0) as http:
        response = http.post(route, files={"file": RECORDING}, data={"bundle": "another"})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "unknown_bundle")
    assert "'another'" in problem["detail"] and all(bundle_id in problem["detail"] for bundle_id in ids)


def test_one_bundle_twice_and_a_damaged_one_are_refused_at_the_start(folders: list[Path], tmp_path: Path) -> None:
    copy = make_tiny_bundle(tmp_path / "copy", seed=1)
    with pytest.raises(BundleError, match="the same bundle") as caught:
        LocalBackend(ServingSettings(bundle=folders[0], more_bundles=(folders[1], copy)))
    assert str(folders[1]) in str(caught.value) and str(copy) in str(caught.value)
    weights = next((copy / "unclip").rglob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"copy.*sha256"):
        LocalBackend(ServingSettings(bundle=folders[0], more_bundles=(copy,)))


def test_a_folder_that_holds_another_bundle_by_now_is_not_loaded(folders: list[Path]) -> None:
    first, second = find_bundles(folders[:2])
    with pytest.raises(BundleError, match="expected"):
        open_bundle(type(first)(first.id, second.folder))
    assert type(first).of(first.key) == first


def test_the_first_bundle_is_chosen_unless_one_is_named(folders: list[Path]) -> None:
    places = find_bundles(folders)
    assert choose(places, "") == places[0] and choose(places, places[2].id) == places[2]
    with pytest.raises(HTTPException):
        choose(places, places[2].id[:10])


class Weights:
    """Stands for a model."""


def test_the_least_recently_used_model_leaves_once_nobody_uses_it(folders: list[Path]) -> None:
    loaded: list[str] = []

    def load(place: Any) -> Weights:
        loaded.append(place.folder)
        return Weights()

    async def main() -> None:
        places = find_bundles(folders)
        models = KeptModels(load, 2)
        first, second = [await models.get(place) for place in places[:2]]
        assert await models.get(places[0]) is first
        held = weakref.ref(second)
        await models.get(places[2])
        gc.collect()
        assert held() is second, "a request still holds it"
        del second
        gc.collect()
        assert held() is None
        assert await models.get(places[0]) is first
        assert [Path(one) for one in loaded] == folders

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["in a replica", "in one process"])
def test_a_model_that_has_left_is_gone_before_another_is_loaded(folders: list[Path], kind: str) -> None:
    """Two generators may not fit into the memory of a GPU, and the cycles in one outlive their last reference."""
    held: list[weakref.ref[Weights]] = []

    def load(place: Any) -> Weights:
        assert all(one() is None for one in held), "the model that has left is still there"
        model = Weights()
        model.itself = model  # type: ignore[attr-defined]
        held.append(weakref.ref(model))
        return model

    async def main() -> None:
        places = find_bundles(folders)
        if kind == "in a replica":
            worker_of = keeper(load)
            for place in places:
                await worker_of(place.key)
                await asyncio.sleep(0.1)  # the thread lets go of its result a moment after it is there
        else:
            models = KeptModels(load, 1)
            for place in places:
                models.load_now(place)
        assert len(held) == len(places)

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_a_real_generator_is_freed_after_its_last_request(folders: list[Path]) -> None:
    """Its batcher and its threads must not keep it."""

    async def main() -> None:
        settings = ServingSettings(bundle=folders[0], more_bundles=tuple(folders[1:]), n_models_kept=1)
        backend = LocalBackend(settings)
        served = [await backend.describe(place) for place in backend.places()]
        embeds = np.ones((1, served[0].info.embed_dim), dtype=np.float32)
        order = PictureOrder(n_images=1, seed=0, num_inference_steps=4, guidance_scale=1.0)
        (worker,) = backend._generators
        held = weakref.ref(worker)
        del worker
        running = asyncio.create_task(backend.generate(served[0], embeds, order))
        await asyncio.sleep(0.01)
        other = await backend.generate(served[1], embeds, order)
        pictures = await running
        assert not np.array_equal(pictures.images, other.images)
        del running
        deadline = time.monotonic() + 30.0
        while held() is not None:  # a thread lets go of it a moment after its result is there
            assert time.monotonic() < deadline, "something keeps the generator"
            await asyncio.sleep(0.05)
            gc.collect()
        again = await backend.generate(served[0], embeds, order)
        assert np.array_equal(again.images, pictures.images)
        await backend.aclose()

    asyncio.run(main())


def test_a_job_keeps_the_bundle_that_was_the_default_when_it_came(tmp_path: Path) -> None:
    backend = FakeBackend(bundle_ids=("old", "new"))
    settings = ServingSettings(bundle=Path("unused"), jobs=JobSettings(folder=str(tmp_path), beat_s=0.1))
    headers = {"Idempotency-Key": "k"}
    with fake_service(settings, backend, worker=False) as url, httpx.Client(base_url=url, trust_env=False) as http:
        before = http.post("/v1/jobs", files={"file": RECORDING}, headers=headers).json()
        backend.bundle_ids = ("new", "old")
        repeated = http.post("/v1/jobs", files={"file": RECORDING}, headers=headers).json()
        after = http.post("/v1/jobs", files={"file": RECORDING}).json()
    assert (before["bundle_id"], after["bundle_id"]) == ("old", "new") and repeated["id"] == before["id"]
    with fake_service(settings, backend) as url, PhospheneClient(url) as client:
        done = [client.wait(job["id"]).result for job in (before, after)]
    assert [result and result.bundle_id for result in done] == ["old", "new"], "run with the bundle it came for"


def test_info_of_bundles_is_json(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False) as http:
        listed = json.loads(http.get("/v1/bundles").text)["bundles"]
    assert all(BundleInfo.model_validate(one) for one in listed)
    assert "/" not in "".join(str(one["id"]) for one in listed), "folders of the service are nobody's business"


@pytest.mark.parametrize("config", [{"bundels": ["/a"]}, {"bundles": ["/nowhere"]}, {"bundles": [f"/{'x' * 300}"]}])
def test_a_new_replica_works_under_a_configuration_that_names_no_good_bundle(
    folders: list[Path], config: dict[str, list[str]]
) -> None:
    async def loaded() -> list[str]:
        asked: list[str] = []

        async def worker_of(key: str) -> None:
            asked.append(key)
            raise RuntimeError("no memory")

        default = Default(worker_of)
        await default.change(config)
        assert not asked
        with pytest.raises(RuntimeError, match="no memory"):
            await Default(worker_of).change({"bundles": [str(folders[0])]})
        return asked

    assert len(asyncio.run(loaded())) == 1
