"""The published OpenAPI document against what the service does: requests made from it get answers that it describes.

Seeded, with and without keys. Every status, content type and body is one that the document has, and none is a 5xx.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from fake_service import FakeBackend, fake_service, make_epochs
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.access_settings import AccessSettings
from serving.settings import JobSettings, ServingSettings
from serving.user_groups import AccessFile, GroupDescription, Quota, create_group, write_access_file

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ENOUGH = Quota(requests_per_minute=100_000, decodes_per_day=100_000)
SEEDED = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    jobs = JobSettings(folder=str(tmp_path_factory.mktemp("jobs")), beat_s=0.1)
    with fake_service(ServingSettings(bundle=Path("unused"), jobs=jobs), FakeBackend()) as url:
        yield url


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A service with keys: its address, and the header of somebody who may do everything."""
    folder = tmp_path_factory.mktemp("keys")
    group = GroupDescription(
        group="lab", users=("anna",), scopes=("decode", "embed", "stream", "metrics"), quota=ENOUGH
    )
    access, made = create_group(AccessFile(), group)
    write_access_file(folder / "access.yaml", access)
    jobs = JobSettings(folder=str(folder / "jobs"), beat_s=0.1)
    guarded = AccessSettings(file=str(folder / "access.yaml"), require_purpose=True)
    with fake_service(ServingSettings(bundle=Path("unused"), jobs=jobs, access=guarded), FakeBackend()) as url:
        yield url, {"Authorization": f"Bearer {made['anna']}"}


def ask(url: str, check: Callable[[schemathesis.Case], None], **headers: str) -> set[str]:
    """Make requests of every operation from the document at a service; return the operations."""
    asked = set()
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json", headers=headers).get_all_operations():
        operation = found.ok()

        @SEEDED
        @given(case=operation.as_strategy())
        def one(case: schemathesis.Case) -> None:
            check(case)

        one()
        asked.add(operation.label)
    return asked


def test_every_answer_is_one_that_the_document_describes(url: str) -> None:
    asked = ask(url, lambda case: case.call_and_validate(checks=CHECKS) and None)
    assert {"POST /v1/generations", "POST /v1/embeddings", "POST /v1/jobs", "GET /v1/jobs/{job_id}"} <= asked


def described(operation: schemathesis.schemas.APIOperation, response: httpx.Response) -> None:
    """Check that the document has this status and media type of an operation, and the body follows it."""
    answer = operation.definition.raw["responses"][str(response.status_code)]
    media = response.headers.get("content-type", "").split(";")[0]
    assert not response.content or media in answer["content"], (operation.label, media)
    if media != "text/event-stream":  # documented as one text; the clients' tests read its events
        response.request.read()
        operation.validate_response(response)


def test_good_requests_get_answers_that_the_document_describes(url: str) -> None:
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    recording = {"file": make_epochs(2).to_bytes()}
    with httpx.Client(base_url=url, timeout=60.0, trust_env=False) as http:
        for path, headers, status in (
            ("/v1/generations", {}, 200),
            ("/v1/generations", {"Accept": "text/event-stream"}, 200),
            ("/v1/generations", {"Prefer": "respond-async"}, 202),
            ("/v1/embeddings", {}, 200),
            ("/v1/jobs", {}, 202),
        ):
            response = http.post(path, files=recording, data={"preview": "true"}, headers=headers)
            assert response.status_code == status, response.text
            described(document[path]["POST"], response)
        job = response.json()["id"]
        for path in ("/v1/jobs/{job_id}/events", "/v1/jobs/{job_id}"):
            described(document[path]["GET"], http.get(path.format(job_id=job)))
        described(document["/v1/jobs/{job_id}"]["DELETE"], http.delete(f"/v1/jobs/{job}"))


def test_with_a_key_every_answer_is_one_that_the_document_describes(keys: tuple[str, dict[str, str]]) -> None:
    url, headers = keys
    assert len(ask(url, lambda case: case.call_and_validate(checks=CHECKS, headers=headers) and None, **headers)) > 5


def test_without_a_key_only_health_answers(keys: tuple[str, dict[str, str]]) -> None:
    def check(case: schemathesis.Case) -> None:
        # what is made at random may not bring a key either
        response = case.call_and_validate(checks=CHECKS)
        assert response.status_code == (200 if case.operation.path in ("/healthz", "/readyz") else 401)

    url, headers = keys
    ask(url, check, **headers)
