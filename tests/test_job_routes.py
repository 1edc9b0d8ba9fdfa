"""Jobs over HTTP: durable ids, one job per key, events, erasing, and a store that is down, full or slow."""

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import s3fs
from fake_service import FakeBackend, fake_service, make_epochs, never_read
from fastapi import Request
from fastapi.responses import StreamingResponse
from postgres_server import PostgresServer
from starlette.exceptions import HTTPException

from serving import routes
from serving.access import NOBODY
from serving.access_settings import AccessSettings
from serving.gate import Gate
from serving.job_blobs import KINDS, JobBlobs
from serving.job_desk import JobDesk
from serving.job_routes import JobCounter
from serving.job_schema import JobPreview, JobStatus
from serving.metrics import Metrics
from serving.schema import GenerationFields, Problem, Progress
from serving.settings import JobSettings, ServingSettings
from serving.user_groups import AccessFile, GroupDescription, create_group, write_access_file

RECORDING = make_epochs(2).to_bytes()


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "jobs"


@pytest.fixture(scope="module")
def http(backend: FakeBackend, folder: Path) -> Iterator[httpx.Client]:
    jobs = JobSettings(folder=str(folder), beat_s=0.1, sweep_s=0.5, max_unfinished=12)
    settings = ServingSettings(bundle=Path("unused"), jobs=jobs, max_in_flight=64)
    with fake_service(settings, backend) as url, httpx.Client(base_url=url, timeout=30.0, trust_env=False) as client:
        yield client


def submit(http: httpx.Client, content: bytes = RECORDING, *, key: str | None = None, seed: int = 0) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return http.post("/v1/jobs", files={"file": content}, data={"seed": str(seed)}, headers=headers)


def accepted(response: httpx.Response) -> str:
    assert response.status_code == 202, response.text
    status = JobStatus.model_validate_json(response.content)
    assert response.headers["location"] == f"/v1/jobs/{status.id}"
    return status.id


def wait(http: httpx.Client, job_id: str) -> JobStatus:
    deadline = time.monotonic() + 30.0
    while True:
        response = http.get(f"/v1/jobs/{job_id}")
        assert response.status_code == 200, response.text
        status = JobStatus.model_validate_json(response.content)
        if status.status in ("finished", "failed"):
            return status
        assert response.headers["retry-after"] == "1"
        assert time.monotonic() < deadline, status
        time.sleep(0.05)


def check_problem(response: httpx.Response, status: int, code: str) -> Problem:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.content)
    assert problem.code == code
    return problem


def test_a_job_gives_what_the_same_request_gives(http: httpx.Client) -> None:
    direct = http.post("/v1/generations", files={"file": RECORDING}, data={"seed": "3"}).json()
    status = wait(http, accepted(submit(http, seed=3)))
    assert status.result is not None and status.problem is None
    assert status.result.model_dump(mode="json")["epochs"] == direct["epochs"]
    assert status.result.id == status.id and status.attempts == 1
    assert abs((status.expires - status.created).total_seconds() - 86400) < 60
    first, again = (http.get(f"/v1/jobs/{status.id}").content for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    "preferred",
    [["wait=5, Respond-Async"], ["wait=5", "respond-async"], ["respond-async; x=1"], ["respond-async, wait=5"]],
)
def test_generations_answer_later_when_asked_to(http: httpx.Client, preferred: list[str]) -> None:
    headers = [("Prefer", one) for one in preferred]
    response = http.post("/v1/generations", files={"file": RECORDING}, headers=headers)
    assert response.headers["preference-applied"] == "respond-async"
    assert wait(http, accepted(response)).status == "finished"


def test_a_bad_recording_fails_with_the_problem_of_the_direct_request(http: httpx.Client) -> None:
    direct = check_problem(http.post("/v1/generations", files={"file": b"junk"}), 422, "epochs_mismatch")
    status = wait(http, accepted(submit(http, b"junk")))
    assert (status.status, status.problem, status.result) == ("failed", direct, None)
    check_problem(http.post("/v1/jobs", files={"seed": (None, "1")}), 422, "no_file")
    check_problem(http.post("/v1/jobs", files={"file": b"x"}, data={"images": "99"}), 422, "bad_field")


def test_one_key_twenty_times_at_once_is_one_job(http: httpx.Client, backend: FakeBackend) -> None:
    n_before = backend.n_started

    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=http.base_url, timeout=30.0, trust_env=False) as client:
            post = {"url": "/v1/jobs", "files": {"file": RECORDING}, "headers": {"Idempotency-Key": "twenty"}}
            return list(await asyncio.gather(*(client.post(**post) for _ in range(20))))

    (job_id,) = {accepted(response) for response in asyncio.run(flood())}
    wait(http, job_id)
    assert accepted(submit(http, key="twenty")) == job_id, "also after its end"
    check_problem(submit(http, key="twenty", seed=9), 422, "key_reused")
    check_problem(submit(http, make_epochs(3).to_bytes(), key="twenty"), 422, "key_reused")
    time.sleep(0.3)
    assert backend.n_started == n_before + 1
    check_problem(submit(http, key="x" * 256), 422, "bad_field")


@pytest.mark.parametrize("job_id", ["0" * 48, "a", "..%2f..%2fjobs.sqlite", "%00", "0" * 5000])
def test_ids_that_were_not_given_out_are_unknown(http: httpx.Client, job_id: str) -> None:
    for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
        check_problem(http.request(method, f"/v1/jobs/{job_id}{path}"), 404, "not_found")


def read_events(http: httpx.Client, job_id: str) -> list[tuple[str, str]]:
    response = http.get(f"/v1/jobs/{job_id}/events")
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [event.split("\n") for event in response.text.strip().split("\n\n")]
    return [(event[0].removeprefix("event: "), event[1].removeprefix("data: ")) for event in lines]


def test_events_tell_steps_and_previews_and_end_with_the_result(http: httpx.Client, backend: FakeBackend) -> None:
    backend.step_s = 0.4
    try:
        job_id = accepted(submit(http))
        events = read_events(http, job_id)
    finally:
        backend.step_s = 0.0
    names = [name for name, _ in events]
    assert names[0] == "status" and names[-1] == "result" and names.count("result") == 1
    steps = [Progress.model_validate_json(data) for name, data in events if name == "progress"]
    generated = [one.step for one in steps if one.stage == "generate"]
    assert len(generated) >= 3 and generated == sorted(generated)
    previews = [JobPreview.model_validate_json(data) for name, data in events if name == "preview"]
    assert len(previews) >= 2 and previews[0].step < previews[-1].step
    assert json.loads(events[-1][1])["id"] == job_id
    assert [name for name, _ in read_events(http, job_id)] == ["status", "result"], "who comes late gets it at once"


CANARY = replace(make_epochs(2), stimulus=("CANARY", "CANARY")).to_bytes()


def test_erasing_cancels_and_leaves_nothing_on_disk(http: httpx.Client, backend: FakeBackend, folder: Path) -> None:
    backend.step_s = 1.0
    try:
        n_finished = backend.n_finished
        job_id = accepted(submit(http, CANARY, key="CANARY-KEY"))
        with http.stream("GET", f"/v1/jobs/{job_id}/events") as events:
            assert any('"generate"' in line for line in events.iter_lines())
        assert http.delete(f"/v1/jobs/{job_id}").status_code == 204
        check_problem(http.get(f"/v1/jobs/{job_id}"), 404, "not_found")
        check_problem(http.delete(f"/v1/jobs/{job_id}"), 404, "not_found")
        finished = accepted(submit(http, CANARY, seed=1))
        time.sleep(1.0)
    finally:
        backend.step_s = 0.0
    assert "CANARY" in wait(http, finished).model_dump_json()
    assert backend.n_finished == n_finished + 1, "the erased one was stopped"
    http.delete(f"/v1/jobs/{finished}")
    time.sleep(1.0)
    left = [file for file in folder.rglob("*") if file.is_file()]
    for needle in (job_id, finished, "CANARY"):
        assert not [file for file in left if needle.encode() in file.read_bytes() or needle in file.name], needle


def test_what_a_person_sent_is_never_in_the_database(http: httpx.Client, folder: Path) -> None:
    response = http.post("/v1/jobs", files={"file": RECORDING}, data={"subject": "CANARY-SUBJECT"})
    status = wait(http, accepted(response))
    assert status.problem is not None and "CANARY-SUBJECT" in status.problem.detail
    for file in folder.glob("jobs.sqlite*"):
        assert b"CANARY" not in file.read_bytes()


def test_a_full_queue_is_refused_at_once_and_takes_jobs_again(http: httpx.Client, backend: FakeBackend) -> None:
    backend.step_s = 30.0
    jobs, refused, slowest = [], [], 0.0
    try:
        for seed in range(16):
            started = time.monotonic()
            response = submit(http, seed=100 + seed)
            slowest = max(slowest, time.monotonic() - started)
            jobs += [accepted(response)] if response.status_code == 202 else []
            refused += [response] if response.status_code != 202 else []
    finally:
        backend.step_s = 0.0
    assert (len(jobs), len(refused)) == (12, 4)
    for response in refused:
        check_problem(response, 503, "jobs_full")
        assert int(response.headers["retry-after"]) >= 1
    assert slowest < 2.0
    for job_id in jobs:
        http.delete(f"/v1/jobs/{job_id}")
    assert wait(http, accepted(submit(http))).status == "finished"


def test_a_locked_store_answers_503_in_two_seconds_and_recovers(http: httpx.Client, folder: Path) -> None:
    finished = accepted(submit(http))
    before = wait(http, finished)
    uploads = set(os.listdir(folder / "uploads"))
    other = sqlite3.connect(folder / "jobs.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        started = time.monotonic()
        response = submit(http, key="while locked")
        assert time.monotonic() - started < 2.0
        check_problem(response, 503, "store_down")
        assert int(response.headers["retry-after"]) >= 1
    finally:
        other.execute("ROLLBACK")
        other.close()
    deadline = time.monotonic() + 2.0
    while not set(os.listdir(folder / "uploads")) <= uploads:
        assert time.monotonic() < deadline, "an upload without a row was left behind"
        time.sleep(0.05)
    assert wait(http, finished) == before
    assert wait(http, accepted(submit(http, key="while locked"))).status == "finished"


def test_a_folder_taken_away_answers_503_and_recovers(http: httpx.Client, folder: Path) -> None:
    finished = accepted(submit(http))
    wait(http, finished)
    content = http.get(f"/v1/jobs/{finished}").content
    away = folder.with_name("away")
    folder.rename(away)
    try:
        for response in (submit(http), http.get(f"/v1/jobs/{finished}")):
            check_problem(response, 503, "store_down")
            assert response.elapsed.total_seconds() < 2.0
    finally:
        away.rename(folder)
    assert http.get(f"/v1/jobs/{finished}").content == content
    assert wait(http, accepted(submit(http))).status == "finished"


def test_a_full_disk_answers_503_keeps_nothing_half_and_recovers(small_disk: Path, backend: FakeBackend) -> None:
    jobs = JobSettings(folder=str(small_disk / "jobs"), beat_s=0.1, sweep_s=0.3)
    settings = ServingSettings(bundle=Path("unused"), jobs=jobs)
    with fake_service(settings, backend) as url, httpx.Client(base_url=url, timeout=30.0, trust_env=False) as http:
        first = accepted(submit(http))
        wait(http, first)
        ballast = small_disk / "ballast"
        for _ in range(3):
            # again each time: the sweep may have erased something since
            with pytest.raises(OSError), open(ballast, "ab", buffering=0) as file:
                while True:
                    file.write(b"x" * 1024)
            response = submit(http)
            check_problem(response, 503, "store_down")
            assert response.elapsed.total_seconds() < 2.0
        assert os.listdir(small_disk / "jobs" / "uploads") == []
        assert http.get(f"/v1/jobs/{first}").status_code in (200, 503)
        ballast.unlink()
        assert wait(http, accepted(submit(http))).status == "finished"
        assert wait(http, first).status == "finished"


def test_one_owner_holds_a_part_of_the_streams_and_without_keys_all(tmp_path: Path) -> None:
    desk = JobDesk(JobSettings(folder=str(tmp_path)))
    settings = ServingSettings(bundle=Path("unused"), max_in_flight=12)
    counter = JobCounter(desk, Metrics(), settings, lambda: ())

    async def follow(owner: str, n: int) -> int:
        """Open up to `n` streams of a job that waits; return how many were let in."""
        fields = GenerationFields()
        job_id = (await desk.submit(fields, [b"x"], bundle="fake-1", owner=owner, key=None)).job.id
        caller = replace(NOBODY, owner=owner)
        state = {"caller": caller, "still_allowed": lambda: None}
        request = Request({"type": "http", "headers": [], "state": state})
        for n_open in range(n):
            try:
                answer = await counter.follow(request, job_id)
            except HTTPException as error:
                assert error.status_code == 429
                return n_open
            assert isinstance(answer, StreamingResponse)
            streams.append(answer.body_iterator)
            await anext(streams[-1])
        return n

    async def together(owner: str, n: int) -> int:
        """Ask for `n` streams at once and read none; return how many were let in."""
        job_id = (await desk.submit(GenerationFields(), [b"x"], bundle="fake-1", owner=owner, key=None)).job.id
        state = {"caller": replace(NOBODY, owner=owner), "still_allowed": lambda: None}
        asked = [counter.follow(Request({"type": "http", "headers": [], "state": state}), job_id) for _ in range(n)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return sum(isinstance(answer, StreamingResponse) for answer in answers)

    async def run() -> None:
        assert [await follow("anna", 24), await follow("olga", 24), await follow("", 24)] == [6, 6, 12]
        assert await follow("carla", 1) == 0
        await streams[0].aclose()
        assert [await follow("anna", 2), await follow("carla", 1)] == [1, 0]
        for stream in streams:
            await stream.aclose()
        assert await follow("", 25) == 24
        for stream in streams:
            await stream.aclose()
        assert await together("anna", 30) == 6

    streams: list[Any] = []
    asyncio.run(run())
    desk.close()


def test_who_does_not_read_events_holds_no_stream(
    tmp_path: Path, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "Gate", lambda app, **given: Gate(app, **{**given, "answer_timeout_s": 1.0}))
    jobs = JobSettings(folder=str(tmp_path / "jobs"), beat_s=0.1)
    settings = ServingSettings(bundle=Path("unused"), jobs=jobs, max_in_flight=1)
    with (
        fake_service(settings, backend) as url,
        httpx.Client(base_url=url, timeout=30.0, trust_env=False) as http,
        ExitStack() as stack,
    ):
        files = {"file": make_epochs(64).to_bytes()}
        events = f"/v1/jobs/{accepted(http.post('/v1/jobs', files=files, data={'images': '8'}))}/events"
        wait(http, events.split("/")[3])
        for _ in range(2):  # as many as may be open
            stack.enter_context(closing(never_read(url, http.build_request("GET", events))))
        deadline = time.monotonic() + 60.0
        while 'route="/v1/jobs/{job_id}/events",status="499"} 2.0' not in http.get("/metrics").text:
            assert time.monotonic() < deadline, "the streams wait for ever"
            time.sleep(0.1)
        assert http.get(events).status_code == 200


def test_jobs_on_postgresql_and_a_server_that_goes_away(
    postgres: PostgresServer, tmp_path: Path, backend: FakeBackend
) -> None:
    postgres.empty()
    jobs = JobSettings(folder=str(tmp_path / "jobs"), database=postgres.url, beat_s=0.1)
    settings = ServingSettings(bundle=Path("unused"), jobs=jobs)
    with fake_service(settings, backend) as url, httpx.Client(base_url=url, timeout=30.0, trust_env=False) as http:
        finished = accepted(submit(http, key="before"))
        wait(http, finished)
        content = http.get(f"/v1/jobs/{finished}").content
        postgres.stop()
        try:
            response = submit(http, key="while down")
            check_problem(response, 503, "store_down")
            assert response.elapsed.total_seconds() < 2.0
        finally:
            postgres.start()
        assert http.get(f"/v1/jobs/{finished}").content == content
        assert accepted(submit(http, key="before")) == finished
        assert wait(http, accepted(submit(http, key="while down"))).status == "finished"
    assert not (tmp_path / "jobs" / "jobs.sqlite").exists()


def test_jobs_keep_their_blobs_in_a_bucket(
    postgres: PostgresServer, s3: s3fs.S3FileSystem, backend: FakeBackend
) -> None:
    postgres.empty()
    jobs = JobSettings(folder="s3://bucket/jobs", database=postgres.url, beat_s=0.1, sweep_s=0.2)
    settings = ServingSettings(bundle=Path("unused"), jobs=jobs)
    with fake_service(settings, backend) as url, httpx.Client(base_url=url, timeout=30.0, trust_env=False) as http:
        job_id = accepted(submit(http, seed=3))
        found = wait(http, job_id)
        now = http.post("/v1/generations", files={"file": RECORDING}, data={"seed": "3"}).json()
        assert found.result is not None
        assert [one.images for one in found.result.epochs] == [tuple(one["images"]) for one in now["epochs"]]
        blobs = JobBlobs("s3://bucket/jobs")
        assert len(blobs.names("results")) == 1
        assert http.delete(f"/v1/jobs/{job_id}").status_code == 204
        deadline = time.monotonic() + 30.0
        while any(blobs.names(kind) for kind in KINDS):
            assert time.monotonic() < deadline, s3.find("bucket/jobs")
            time.sleep(0.1)


def test_a_service_without_a_folder_says_that_it_keeps_no_jobs(backend: FakeBackend) -> None:
    with (
        fake_service(ServingSettings(bundle=Path("unused")), backend) as url,
        httpx.Client(base_url=url, trust_env=False) as http,
    ):
        check_problem(submit(http), 404, "jobs_off")
        check_problem(http.get(f"/v1/jobs/{'0' * 48}"), 404, "jobs_off")
        assert http.post("/v1/generations", files={"file": RECORDING}).status_code == 200


def test_a_database_that_hangs_is_given_up_and_a_late_row_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.job_store import JobStore

    plain = JobStore.submit

    def slow(*arguments: object, **keywords: object) -> object:
        time.sleep(3.0)
        return plain(*arguments, **keywords)  # type: ignore[arg-type]

    desk = JobDesk(JobSettings(folder=str(tmp_path)))
    asyncio.run(desk.counts())
    monkeypatch.setattr(JobStore, "submit", slow)
    started = time.monotonic()
    with pytest.raises(OSError):
        asyncio.run(desk.submit(GenerationFields(), [b"x"], bundle="fake-1"))
    assert time.monotonic() - started < 2.0
    time.sleep(2.5)
    assert asyncio.run(desk.counts()) == {} and os.listdir(tmp_path / "uploads") == []
    desk.close()


def test_metrics_count_jobs(http: httpx.Client) -> None:
    wait(http, accepted(submit(http)))
    text = http.get("/metrics").text
    assert 'phosphene_jobs_total{outcome="created"}' in text
    assert 'phosphene_jobs_state{state="finished"}' in text


def test_a_job_is_there_for_its_owner_alone(backend: FakeBackend, tmp_path: Path) -> None:
    access, keys = create_group(AccessFile(), GroupDescription(group="lab", users=("anna", "ben")))
    write_access_file(tmp_path / "access.yaml", access)
    settings = ServingSettings(
        bundle=Path("unused"),
        jobs=JobSettings(folder=str(tmp_path / "jobs"), beat_s=0.1, sweep_s=0.5),
        access=AccessSettings(file=str(tmp_path / "access.yaml")),
    )
    with fake_service(settings, backend) as url, httpx.Client(base_url=url, timeout=30.0, trust_env=False) as http:
        http.headers["Authorization"] = f"Bearer {keys['anna']}"
        job_id = accepted(submit(http, key="shared"))
        http.headers["Authorization"] = f"Bearer {keys['ben']}"
        for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
            theirs = http.request(method, f"/v1/jobs/{job_id}{path}")
            unknown = http.request(method, f"/v1/jobs/{'0' * 48}{path}")
            assert theirs.status_code == unknown.status_code == 404 and theirs.content == unknown.content
        assert accepted(submit(http, key="shared")) != job_id  # a key belongs to who sent it, too
        http.headers["Authorization"] = f"Bearer {keys['anna']}"
        assert wait(http, job_id).status == "finished"
        assert http.delete(f"/v1/jobs/{job_id}").status_code == 204
