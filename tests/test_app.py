"""The HTTP interface over a backend without models: answers, refusals, limits, streams and cancelling."""

import asyncio
import base64
import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from fake_service import CH_NAMES, IMAGE_SIZE, FakeBackend, fake_service, make_epochs
from PIL import Image
from tiny_bundle import make_tiny_bundle

from serving.access_settings import EncryptionSettings
from serving.job_blobs import JobBlobs
from serving.rendering import SOURCE_TYPE
from serving.sandbox import Refused, Sandbox
from serving.schema import EmbeddingResponse, GenerationResponse, Problem
from serving.settings import JobSettings, ParseLimits, ReplicaSettings, ServingSettings
from serving.vault import new_master_key


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture(scope="module")
def http(backend: FakeBackend) -> Iterator[httpx.Client]:
    settings = ServingSettings(
        bundle=Path("unused"),
        max_in_flight=4,
        max_upload_mb=2.0,
        max_epochs=20,
        request_timeout_s=3.0,
        parse=ParseLimits(n_processes=2),
    )
    with fake_service(settings, backend) as url, httpx.Client(base_url=url, timeout=30.0, trust_env=False) as client:
        yield client


def post(http: httpx.Client, *contents: bytes, route: str = "/v1/generations", **fields: object) -> httpx.Response:
    files = [("file", ("../../etc/passwd", content)) for content in contents]
    return http.post(route, files=files, data={name: str(value) for name, value in fields.items()})


def check_problem(response: httpx.Response, status: int, code: str) -> Problem:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.content)
    assert (problem.status, problem.code) == (status, code)
    assert "Traceback" not in problem.detail and "/tmp" not in problem.detail
    return problem


def test_a_recording_comes_back_as_marked_pictures(http: httpx.Client) -> None:
    response = post(http, make_epochs(3).to_bytes(), images=2, seed=5)
    assert response.status_code == 200, response.text
    answer = GenerationResponse.model_validate_json(response.content)
    assert (len(answer.epochs), answer.seed, answer.bundle_id) == (3, 5, "fake-1")
    assert answer.num_inference_steps == 4
    for epoch in answer.epochs:
        assert len(epoch.images) == 2
        with Image.open(io.BytesIO(base64.b64decode(epoch.images[0]))) as picture:
            assert picture.size == (IMAGE_SIZE, IMAGE_SIZE)
            assert SOURCE_TYPE in picture.text["XML:com.adobe.xmp"]
            assert picture.text["phosphene:seed"] == "5"
    assert "no better than noise" in answer.epochs[0].confidence_words
    assert answer.timings.total_ms >= answer.timings.read_ms > 0
    assert "not what a person saw" in answer.notice


def test_the_order_of_channels_does_not_matter(http: httpx.Client) -> None:
    epochs = make_epochs()
    shuffled = epochs.pick(np.random.default_rng(1).permutation(CH_NAMES).tolist())
    first, second = (post(http, item.to_bytes(), route="/v1/embeddings").json() for item in (epochs, shuffled))
    assert [epoch["embedding"] for epoch in first["epochs"]] == [epoch["embedding"] for epoch in second["epochs"]]


def test_fields_reach_the_work(http: httpx.Client) -> None:
    epochs = make_epochs(4)
    averaged = EmbeddingResponse.model_validate_json(
        post(http, epochs.to_bytes(), route="/v1/embeddings", average="true", preview="true").content
    )
    assert [epoch.n_averaged for epoch in averaged.epochs] == [2, 2]
    (preview,) = averaged.preview
    assert (preview.kind, preview.unit, len(preview.traces)) == ("eeg", "uV", len(CH_NAMES))
    assert np.allclose(np.mean(preview.traces[0]) * preview.scale, epochs.data[:, 0].mean(), rtol=0.05, atol=1e-8)
    answer = post(http, epochs.to_bytes(), num_inference_steps=2, guidance_scale=1.5).json()
    assert (answer["num_inference_steps"], answer["guidance_scale"], answer["preview"]) == (2, 1.5, [])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"images": 9}, "images"),
        ({"images": "many"}, "images"),
        ({"seed": -1}, "seed"),
        ({"num_inference_steps": 1000}, "num_inference_steps"),
        ({"guidance_scale": "nan"}, "guidance_scale"),
        ({"onsets": "1,two"}, "onsets"),
        ({"onsets": "-1"}, "onsets"),
        ({"subject": "x" * 100}, "subject"),
        ({"colour": "red"}, "colour"),
        ({"subject": "nobody"}, "sim-01"),
    ],
)
def test_a_bad_field_is_named(http: httpx.Client, fields: dict[str, object], named: str) -> None:
    problem = check_problem(post(http, make_epochs().to_bytes(), **fields), 422, "bad_field")
    assert named in problem.detail


def test_files_are_counted(http: httpx.Client) -> None:
    content = make_epochs().to_bytes()
    check_problem(http.post("/v1/generations", files={"seed": (None, "1")}), 422, "no_file")
    check_problem(post(http, content, content, content), 422, "too_many_files")
    check_problem(http.post("/v1/generations", files={"file": (None, "text")}), 422, "bad_field")
    broken = http.post("/v1/generations", content=b"junk", headers={"content-type": "multipart/form-data"})
    check_problem(broken, 400, "bad_body")


def test_recordings_that_do_not_fit_are_refused_with_their_sentence(http: httpx.Client) -> None:
    lacking = make_epochs(ch_names=CH_NAMES[2:])
    assert "'Fp1', 'F1'" in check_problem(post(http, lacking.to_bytes()), 422, "epochs_mismatch").detail
    check_problem(post(http, b""), 422, "epochs_mismatch")
    check_problem(post(http, b"\x00" * 1000), 422, "epochs_mismatch")
    second = check_problem(post(http, make_epochs().to_bytes(), b"junk"), 422, "epochs_mismatch")
    assert second.detail.startswith("file 2: ")
    assert "onsets" in check_problem(post(http, make_epochs().to_bytes(), onsets="0.5"), 422, "epochs_mismatch").detail


def test_too_much_is_refused_with_the_limit(http: httpx.Client) -> None:
    assert "20" in check_problem(post(http, make_epochs(21).to_bytes()), 422, "too_many_epochs").detail
    assert "2 MB" in check_problem(post(http, bytes(3 * 2**20)), 413, "upload_too_large").detail


def test_an_undeclared_large_body_is_cut_off(http: httpx.Client) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    chunks = iter([head, *(bytes(2**19) for _ in range(8)), b"\r\n--x--\r\n"])
    response = http.post("/v1/generations", content=chunks, headers={"content-type": "multipart/form-data; boundary=x"})
    check_problem(response, 413, "upload_too_large")


def test_slow_work_is_ended_and_answered_504(http: httpx.Client, backend: FakeBackend) -> None:
    backend.step_s = 5.0
    try:
        started = time.monotonic()
        check_problem(post(http, make_epochs().to_bytes()), 504, "timed_out")
        assert time.monotonic() - started < 4.5
        assert backend.n_started > backend.n_finished
    finally:
        backend.step_s = 0.0


def test_work_is_cancelled_when_the_client_leaves(http: httpx.Client, backend: FakeBackend) -> None:
    backend.step_s = 0.4
    started, finished = backend.n_started, backend.n_finished
    try:
        with pytest.raises(httpx.ReadTimeout):
            http.post(
                "/v1/generations", files={"file": make_epochs().to_bytes()}, timeout=httpx.Timeout(30.0, read=0.6)
            )
        time.sleep(1.6)
    finally:
        backend.step_s = 0.0
    assert (backend.n_started, backend.n_finished) == (started + 1, finished)


def test_a_busy_service_says_when_to_come_back(http: httpx.Client, backend: FakeBackend) -> None:
    async def flood() -> list[httpx.Response]:
        content = make_epochs().to_bytes()
        async with httpx.AsyncClient(base_url=http.base_url, timeout=30.0, trust_env=False) as client:
            posts = (client.post("/v1/generations", files={"file": content}) for _ in range(16))
            return list(await asyncio.gather(*posts))

    backend.step_s = 0.1
    try:
        responses = asyncio.run(flood())
    finally:
        backend.step_s = 0.0
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 429} and statuses.count(200) >= 4
    for response in responses:
        if response.status_code == 429:
            check_problem(response, 429, "too_many_requests")
            assert int(response.headers["Retry-After"]) >= 1


def test_a_service_without_room_to_read_does_not_blame_the_file(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(*_: object, **__: object) -> Refused:
        return Refused("uploads_down", "planted")

    monkeypatch.setattr(Sandbox, "read", read)
    response = post(http, make_epochs().to_bytes())
    check_problem(response, 503, "uploads_down")
    assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (asyncio.QueueFull(), 503, "queue_full"),
        (ConnectionError(), 503, "replica_lost"),
        (RuntimeError("a secret path /root/x"), 500, "internal_error"),
    ],
)
def test_failures_of_the_backend_are_problems_too(
    http: httpx.Client, backend: FakeBackend, failure: Exception, status: int, code: str
) -> None:
    backend.failure = failure
    try:
        response = post(http, make_epochs().to_bytes())
    finally:
        backend.failure = None
    assert "secret" not in check_problem(response, status, code).detail
    assert (status == 503) == ("Retry-After" in response.headers)


def test_a_stream_tells_progress_and_ends_with_the_result(http: httpx.Client) -> None:
    headers = {"Accept": "text/event-stream"}
    response = http.post("/v1/generations", files={"file": make_epochs().to_bytes()}, headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [event.split("\n") for event in response.text.strip().split("\n\n")]
    names = [event[0].removeprefix("event: ") for event in events]
    data = [json.loads(event[1].removeprefix("data: ")) for event in events]
    assert names == ["progress"] * (len(names) - 1) + ["result"]
    stages = list(dict.fromkeys(item["stage"] for item in data[:-1]))
    assert stages == ["read", "embed", "generate", "encode"]
    assert [item["step"] for item in data[:-1] if item["stage"] == "generate"] == [0, 1, 2, 3, 4]
    GenerationResponse.model_validate(data[-1])


def test_a_stream_can_end_with_a_problem(http: httpx.Client) -> None:
    response = http.post("/v1/generations", files={"file": b"junk"}, headers={"Accept": "text/event-stream"})
    assert response.text.rstrip().split("\n\n")[-1].startswith("event: problem\n")
    assert '"epochs_mismatch"' in response.text


def test_health_readiness_and_bundles(http: httpx.Client, backend: FakeBackend) -> None:
    assert http.get("/healthz").status_code == 200
    assert http.get("/readyz").status_code == 200
    (bundle,) = http.get("/v1/bundles").json()["bundles"]
    assert bundle["id"] == "fake-1" and bundle["limits"]["max_images"] == 8
    backend.is_ready = False
    try:
        assert http.get("/healthz").status_code == 200
        response = http.get("/readyz")
        check_problem(response, 503, "not_ready")
        assert "Retry-After" in response.headers
    finally:
        backend.is_ready = True


def test_metrics_count_what_happened(http: httpx.Client) -> None:
    post(http, make_epochs().to_bytes())
    post(http, b"junk")
    text = http.get("/metrics").text
    assert 'phosphene_requests_total{route="/v1/generations",status="200"}' in text
    assert 'phosphene_requests_total{route="/v1/generations",status="422"}' in text
    assert 'phosphene_refusals_total{code="epochs_mismatch"}' in text
    assert 'phosphene_stage_seconds_count{stage="read"}' in text
    assert "phosphene_batch_size_bucket" in text
    assert "phosphene_in_flight 0.0" in text


def test_unknown_addresses_and_methods_are_problems(http: httpx.Client) -> None:
    check_problem(http.get("/nothing"), 404, "not_found")
    check_problem(http.get("/v1/generations"), 405, "method_not_allowed")
    check_problem(http.get("/example.npz"), 404, "not_found")


def test_openapi_has_examples_and_every_refusal(http: httpx.Client) -> None:
    described = http.get("/openapi.json").json()
    operation = described["paths"]["/v1/generations"]["post"]
    GenerationResponse.model_validate(operation["responses"]["200"]["content"]["application/json"]["example"])
    assert {"400", "413", "422", "429", "503", "504"} <= set(operation["responses"])
    assert "epochs_mismatch" in operation["responses"]["422"]["description"]
    form = described["components"]["schemas"]["GenerationForm"]
    assert {"file", "images", "seed", "num_inference_steps", "guidance_scale", "average", "subject", "onsets"} <= set(
        form["properties"]
    )


def test_the_page_needs_nothing_from_elsewhere(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text and "https://" not in page.text


def test_subjects_and_stimuli_of_a_file_are_kept_apart(http: httpx.Client) -> None:
    epochs = replace(make_epochs(2), subject="patient 7")
    answer = post(http, epochs.to_bytes()).json()
    assert [epoch["stimulus"] for epoch in answer["epochs"]] == ["scene 0", "scene 0"]
    assert "patient 7" not in json.dumps(answer)


def test_a_replica_that_is_replaced_may_finish_and_its_successor_starts_first(tmp_path: Path) -> None:
    from ray.serve._private.build_app import build_app

    from serving.app import build

    settings = ServingSettings(
        bundle=make_tiny_bundle(tmp_path / "bundle"),
        request_timeout_s=77.0,
        generator=ReplicaSettings(num_gpus=1.0, starts_first=False),
    )
    configs = {one.name: one._deployment_config for one in build_app(build(settings), name="phosphene").deployments}
    assert set(configs) == {"Ingress", "Encoder", "Generator"}
    for name, config in configs.items():
        # Ray Serve's own 20 s would cut requests off that the service still allows
        assert config.graceful_shutdown_timeout_s >= settings.request_timeout_s
        assert bool(config.max_surge_percent) == (name != "Generator")


@pytest.mark.parametrize("database", ["", "postgresql://phosphene@127.0.0.1/phosphene"])
def test_who_uses_a_file_of_one_machine_stands_on_that_machine(tmp_path: Path, database: str) -> None:
    from ray.serve._private.build_app import build_app

    from serving.app import build

    settings = ServingSettings(
        bundle=make_tiny_bundle(tmp_path / "bundle"),
        jobs=JobSettings(folder=str(tmp_path / "jobs"), database=database),
    )
    built = build_app(build(settings), name="phosphene").deployments
    on_head = {one.name for one in built if "node:__internal_head__" in one.ray_actor_options.get("resources", {})}
    assert on_head == (set() if database else {"Ingress", "Jobs"})


def test_a_service_is_not_built_over_jobs_that_it_could_not_read(tmp_path: Path) -> None:
    from serving.app import build

    jobs = JobSettings(folder=str(tmp_path / "jobs"))
    settings = ServingSettings(bundle=make_tiny_bundle(tmp_path / "bundle"), jobs=jobs)
    build(settings)
    assert not (tmp_path / "jobs").exists(), "a look makes no folders"
    JobBlobs(jobs.folder).write("uploads", "a", b"plain")
    build(settings)
    new_master_key(tmp_path / "master.key")
    keys = EncryptionSettings(master_key_file=str(tmp_path / "master.key"), key_folder=str(tmp_path / "keys"))
    with pytest.raises(ValueError, match="holds uploads from when jobs.encryption was off"):
        build(settings.model_copy(update={"jobs": jobs.model_copy(update={"encryption": keys})}))
