"""The Python client against the HTTP interface."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fake_service import FakeBackend, fake_service, make_epochs

from serving.client import PhospheneClient, problem_of
from serving.job_schema import JobPreview, JobStatus
from serving.schema import Progress
from serving.settings import JobSettings, ServingSettings


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture(scope="module")
def client(backend: FakeBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PhospheneClient]:
    jobs = JobSettings(folder=str(tmp_path_factory.mktemp("jobs")), beat_s=0.1)
    settings = ServingSettings(bundle=Path("unused"), jobs=jobs)
    with fake_service(settings, backend) as url, PhospheneClient(url) as client:
        yield client


def test_it_imports_neither_torch_nor_ray_nor_a_server() -> None:
    code = "import sys, serving.client; print({'torch', 'ray', 'fastapi', 'mne', 'starlette'} & set(sys.modules))"
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


def test_an_absent_service_is_not_ready() -> None:
    with PhospheneClient("http://127.0.0.1:9") as client:
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


def test_a_key_makes_one_job_and_no_key_makes_two(client: PhospheneClient) -> None:
    content = make_epochs().to_bytes()
    assert client.submit(content, key="a").id == client.submit(content, key="a").id
    assert client.submit(content).id != client.submit(content).id
    with pytest.raises(httpx.HTTPStatusError, match="key_reused"):
        client.submit(content, key="a", seed=1)


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
