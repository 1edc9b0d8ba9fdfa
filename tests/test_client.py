"""Both Python clients against the HTTP interface; the one for event loops is driven from outside its loop."""

import asyncio
import inspect
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_service import FakeBackend, fake_service, make_epochs

from serving.async_client import AsyncPhospheneClient
from serving.backend import BundlePlace, ServedBundle
from serving.client import PhospheneClient, problem_of
from serving.job_schema import JobPreview, JobStatus
from serving.schema import Progress
from serving.settings import JobSettings, ServingSettings


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return FakeBackend()


class Driven:
    """An `AsyncPhospheneClient` whose methods can be called as those of `PhospheneClient`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncPhospheneClient(*arguments, **options)

    def __enter__(self) -> "Driven":
        self._runner.run(self._client.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self._runner.run(self._client.__aexit__(None, None, None))
        self._runner.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            found = method(*arguments, **options)
            return [item async for item in found] if inspect.isasyncgen(found) else await found

        return lambda *arguments, **options: self._runner.run(call(*arguments, **options))


CLIENTS: dict[str, Any] = {"sync": PhospheneClient, "async": Driven}


@pytest.fixture(scope="module")
def url(backend: FakeBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    jobs = JobSettings(folder=str(tmp_path_factory.mktemp("jobs")), beat_s=0.1)
    with fake_service(ServingSettings(bundle=Path("unused"), jobs=jobs), backend) as url:
        yield url


@pytest.fixture(scope="module", params=sorted(CLIENTS))
def client(url: str, request: pytest.FixtureRequest) -> Iterator[PhospheneClient]:
    with CLIENTS[request.param](url) as client:
        yield client


def test_both_clients_have_the_same_methods_and_arguments() -> None:
    def arguments(kind: type) -> dict[str, list[str]]:
        methods = {name: value for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}
        return {name: list(map(str, inspect.signature(method).parameters.values())) for name, method in methods.items()}

    assert arguments(PhospheneClient) == arguments(AsyncPhospheneClient)
    names = {"generate", "embed", "submit", "job", "wait", "events", "cancel", "erase_me", "bundles", "ready", "close"}
    assert names == set(arguments(PhospheneClient))


@pytest.mark.parametrize("module", ["client", "async_client"])
def test_it_imports_neither_torch_nor_ray_nor_a_server(module: str) -> None:
    code = f"import sys, serving.{module}; print({{'torch', 'ray', 'fastapi', 'mne', 'starlette'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_pictures_come_back_typed(client: PhospheneClient, tmp_path: Path) -> None:
    path = tmp_path / "recording.npz"
    make_epochs(2).save(path)
    from_path = client.generate(path, images=2, seed=3, average=True)
    from_bytes = client.generate(path.read_bytes(), images=2, seed=3, average=True)
    assert from_path.epochs == from_bytes.epochs
    assert (len(from_path.epochs), len(from_path.epochs[0].images), from_path.seed) == (1, 2, 3)
    assert client.ready() and client.bundles()[0].id == "fake-1"


def test_progress_is_called_and_the_answer_is_the_same(client: PhospheneClient) -> None:
    content = make_epochs().to_bytes()
    seen: list[Progress] = []
    streamed = client.generate(content, seed=4, on_progress=seen.append)
    assert streamed.epochs == client.generate(content, seed=4).epochs
    assert [event.stage for event in seen][:2] == ["read", "embed"]
    assert (seen[-2].step, seen[-2].n_steps) == (4, 4)


def test_embeddings_and_preview(client: PhospheneClient) -> None:
    answer = client.embed(make_epochs().to_bytes(), preview=True)
    assert len(answer.epochs[0].embedding) == 8
    assert answer.preview[0].ch_names == make_epochs().ch_names


@pytest.mark.parametrize("streamed", [False, True])
def test_a_refusal_is_an_error_with_the_sentence_and_the_code(client: PhospheneClient, streamed: bool) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="lacks the channels") as caught:
        content = make_epochs(ch_names=("Cz", "Pz")).to_bytes()
        client.generate(content, on_progress=(lambda event: None) if streamed else None)
    problem = problem_of(caught.value)
    assert problem is not None and (problem.status, problem.code) == (422, "epochs_mismatch")


@pytest.mark.parametrize("kind", sorted(CLIENTS))
def test_an_absent_service_is_not_ready(kind: str) -> None:
    with CLIENTS[kind]("http://127.0.0.1:9") as client:
        assert not client.ready()


def test_a_job_is_handed_in_waited_for_and_erased(client: PhospheneClient) -> None:
    content = make_epochs().to_bytes()
    submitted = client.submit(content, seed=4, images=2)
    ended = client.wait(submitted.id, timeout_s=30.0)
    assert ended.result is not None and ended.result.epochs == client.generate(content, seed=4, images=2).epochs
    assert client.job(submitted.id) == ended
    client.cancel(submitted.id)
    client.cancel(submitted.id)
    with pytest.raises(httpx.HTTPStatusError, match="not_found"):
        client.job(submitted.id)


@pytest.mark.parametrize("kind", sorted(CLIENTS))
def test_everything_of_the_caller_is_erased_once_it_is_confirmed(
    kind: str, backend: FakeBackend, tmp_path: Path
) -> None:
    jobs = JobSettings(folder=str(tmp_path / "jobs"), beat_s=0.1)
    with (
        fake_service(ServingSettings(bundle=Path("unused"), jobs=jobs), backend) as address,
        CLIENTS[kind](address) as client,
    ):
        mine = [client.wait(client.submit(make_epochs().to_bytes()).id, timeout_s=30.0).id for _ in range(2)]
        with pytest.raises(ValueError, match="confirm=True"):
            client.erase_me()
        assert {client.job(one).status for one in mine} == {"finished"}
        assert client.erase_me(confirm=True).n_jobs == 2
        for one in mine:
            with pytest.raises(httpx.HTTPStatusError, match="not_found"):
                client.job(one)
        assert client.erase_me(confirm=True).n_jobs == 0


def test_a_key_makes_one_job_and_no_key_makes_two(client: PhospheneClient) -> None:
    content, key = make_epochs().to_bytes(), f"key-{type(client).__name__}"
    assert client.submit(content, key=key).id == client.submit(content, key=key).id
    assert client.submit(content).id != client.submit(content).id
    with pytest.raises(httpx.HTTPStatusError, match="key_reused"):
        client.submit(content, key=key, seed=1)


def test_events_of_a_job_are_typed_and_end_with_its_result(client: PhospheneClient, backend: FakeBackend) -> None:
    backend.step_s = 0.3
    try:
        events = list(client.events(client.submit(make_epochs().to_bytes()).id))
    finally:
        backend.step_s = 0.0
    assert {JobStatus, Progress, JobPreview} == {type(event) for event in events}
    last = events[-1]
    assert isinstance(last, JobStatus) and last.status == "finished" and last.result is not None


def test_waiting_too_long_is_told_and_the_job_goes_on(client: PhospheneClient, backend: FakeBackend) -> None:
    backend.step_s = 0.5
    try:
        job_id = client.submit(make_epochs().to_bytes()).id
        with pytest.raises(TimeoutError, match="wait for it again"):
            client.wait(job_id, timeout_s=0.0)
    finally:
        backend.step_s = 0.0
    assert client.wait(job_id, timeout_s=30.0).status == "finished"


@pytest.mark.parametrize("kind", sorted(CLIENTS))
@pytest.mark.parametrize("streamed", [False, True])
def test_a_busy_service_is_asked_again_after_the_seconds_it_names(kind: str, streamed: bool) -> None:
    backend = FakeBackend()
    describe, n_asked = backend.describe, 0

    async def busy_once(place: BundlePlace) -> ServedBundle:
        nonlocal n_asked
        n_asked += 1
        if n_asked == 1:
            raise asyncio.QueueFull
        return await describe(place)

    backend.describe = busy_once  # type: ignore[method-assign]
    settings = ServingSettings(bundle=Path("unused"))
    with fake_service(settings, backend) as url, CLIENTS[kind](url) as client, CLIENTS[kind](url, n_retries=0) as once:
        with pytest.raises(httpx.HTTPStatusError, match="queue_full"):
            once.embed(make_epochs().to_bytes())
        n_asked, started = 0, time.monotonic()
        if streamed:  # such a refusal comes inside the stream, after its status: it is told, not repeated
            with pytest.raises(httpx.HTTPStatusError, match="queue_full"):
                client.generate(make_epochs().to_bytes(), on_progress=lambda event: None)
            return
        assert len(client.generate(make_epochs().to_bytes()).epochs) == 2
        assert n_asked == 2 and 2.0 <= time.monotonic() - started < 20.0


@pytest.mark.parametrize("job_id", ["../me", "../../v1/me", "..%2Fme", "a?b", "a#b", "\u00e9/.."])
def test_whatever_is_given_as_an_id_reaches_no_other_address(client: PhospheneClient, job_id: str) -> None:
    kept = client.submit(make_epochs().to_bytes()).id
    client.cancel(job_id)  # as good as erased: there is no such job
    with pytest.raises(httpx.HTTPStatusError, match="not_found"):
        client.job(job_id)
    assert client.job(kept).id == kept


@pytest.mark.parametrize("kind", sorted(CLIENTS))
def test_a_key_as_it_stands_in_a_file_is_sent_without_the_end_of_its_line(kind: str) -> None:
    client = CLIENTS[kind]("http://planted", api_key="phk_1\n")
    inner = client if kind == "sync" else client._client
    assert inner._http.headers["authorization"] == "Bearer phk_1"


@pytest.mark.parametrize("kind", sorted(CLIENTS))
def test_a_job_whose_answer_was_lost_is_handed_in_once(kind: str) -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["idempotency-key"])
        if len(seen) == 1:
            raise httpx.ReadError("the connection was cut after the service had the job")
        status = {"id": "a", "status": "queued", "bundle_id": "b", "attempts": 0}
        return httpx.Response(202, json=status | dict.fromkeys(("created", "expires"), "2026-01-01T00:00:00Z"))

    with CLIENTS[kind]("http://planted") as client:
        inner = client if kind == "sync" else client._client
        transport = httpx.MockTransport(answer)
        inner._http = (httpx.Client if kind == "sync" else httpx.AsyncClient)(
            base_url="http://planted", transport=transport
        )
        assert client.submit(b"content").id == "a"
    assert len(seen) == 2 and seen[0] == seen[1] != ""
