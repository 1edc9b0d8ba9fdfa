"""What both clients send and how they read answers: everything about the interface that opens no connection.

Importing it needs neither torch nor ray nor a server.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote

import httpx

from serving.job_schema import JobPreview, JobStatus
from serving.schema import GenerationResponse, Problem, Progress

Recording = Path | str | bytes
JobEvent = JobStatus | Progress | JobPreview
Part = tuple[str, tuple[str, bytes]]

POLL_S = 0.5


class EmbeddingOptions(TypedDict, total=False):
    """How recordings become embeddings; what is left out is off or empty.

    ``average`` averages the epochs of one stimulus first. ``bundle`` is the id of one of `bundles()`; left out, the
    first is used. ``subject`` is a person the bundle knows. ``onsets`` tell where to cut a continuous file, in seconds.
    ``preview`` asks for sensor traces. ``purpose`` is what the recording is decoded for, for instance "research", and
    ``consent`` says that the recorded person agreed to it; some services require both.
    """

    average: bool
    bundle: str
    subject: str
    onsets: Sequence[float]
    preview: bool
    purpose: str
    consent: bool


class GenerationOptions(EmbeddingOptions, total=False):
    """How recordings become pictures: ``images`` per epoch, from ``seed`` (same seed, same pictures).

    Without ``num_inference_steps`` and ``guidance_scale`` the bundle's values are used.
    """

    images: int
    seed: int
    num_inference_steps: int | None
    guidance_scale: float | None


class Connection(TypedDict):
    """Arguments of the HTTP clients."""

    base_url: str
    timeout: float
    trust_env: bool
    headers: dict[str, str]


class Sendable(TypedDict):
    """Arguments of one request."""

    method: str
    url: str
    data: dict[str, str]
    files: list[Part]
    headers: dict[str, str]


@dataclass(frozen=True)
class Call:
    """One request; `repeatable` if it may be sent again although the service may have begun to work on it."""

    method: str
    path: str
    fields: dict[str, str] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list, repr=False)
    headers: dict[str, str] = field(default_factory=dict)
    repeatable: bool = False

    def sendable(self) -> Sendable:
        """Return the arguments of `build_request`."""
        return Sendable(method=self.method, url=self.path, data=self.fields, files=self.parts, headers=self.headers)


def connection(base_url: str, timeout_s: float, api_key: str) -> Connection:
    """Return how to connect; the key goes to `base_url` only, because redirects are not followed."""
    key = api_key.strip()  # read from a file it ends with a line's end, which no header may hold
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return Connection(base_url=base_url, timeout=timeout_s, trust_env=False, headers=headers)


def get(path: str) -> Call:
    """Ask for something."""
    return Call("GET", path, repeatable=True)


def generation(recordings: Sequence[Recording], options: GenerationOptions, *, streamed: bool) -> Call:
    """Ask for pictures; reads recordings that are paths."""
    headers = {"Accept": "text/event-stream"} if streamed else {}
    return Call("POST", "/v1/generations", _generation_fields(options), _parts(recordings), headers)


def embedding(recordings: Sequence[Recording], options: EmbeddingOptions) -> Call:
    """Ask for embeddings; reads recordings that are paths."""
    return Call("POST", "/v1/embeddings", _embedding_fields(options), _parts(recordings))


def submission(recordings: Sequence[Recording], key: str, options: GenerationOptions) -> Call:
    """Hand a job in, under a new key if none is given, so that repeating the call makes no second job."""
    headers = {"Idempotency-Key": key or uuid.uuid4().hex}
    return Call("POST", "/v1/jobs", _generation_fields(options), _parts(recordings), headers, repeatable=True)


def job_path(job_id: str) -> str:
    """Return where a job is found."""
    return f"/v1/jobs/{quote(job_id, safe='')}"


def erasure(job_id: str) -> Call:
    """Ask to erase a job."""
    return Call("DELETE", job_path(job_id), repeatable=True)


def erasure_of_caller(*, confirm: bool) -> Call:
    """Ask to erase everything that is kept of whoever asks; ValueError unless that is confirmed."""
    if not confirm:
        raise ValueError("this erases all jobs of whoever has the key, for good; pass confirm=True if that is meant")
    return Call("DELETE", "/v1/me", repeatable=True)


def check_erased(response: httpx.Response) -> None:
    """Raise what was refused; a job that is gone was erased by an earlier attempt whose answer was lost."""
    if response.status_code != 404:
        checked(response)


def checked(response: httpx.Response) -> httpx.Response:
    """Return a response that is a success, and raise a refusal with the service's sentence."""
    if response.is_success:
        return response
    error = httpx.HTTPStatusError("", request=response.request, response=response)
    problem = problem_of(error)
    sentence = f"{problem.code}: {problem.detail}" if problem else f"HTTP {response.status_code}: {response.text[:200]}"
    raise httpx.HTTPStatusError(sentence, request=response.request, response=response)


def problem_of(error: httpx.HTTPStatusError) -> Problem | None:
    """Return the problem details of a refusal; None if something other than the service answered."""
    if "problem+json" not in error.response.headers.get("content-type", ""):
        return None
    return Problem.model_validate_json(error.response.content)


class EventReader:
    """Put server-sent events together from lines."""

    def __init__(self) -> None:
        self._name = self._data = ""

    def feed(self, line: str) -> tuple[str, str] | None:
        """Take a line; return name and data of the event that it ends."""
        if line.startswith("event: "):
            self._name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            self._data += line.removeprefix("data: ")
        elif not line and self._name:
            event = self._name, self._data
            self._name = self._data = ""
            return event
        return None


class JobEvents(EventReader):
    """Read the events of a job."""

    def read(self, line: str) -> JobEvent | None:
        """Take a line; return the event that it ends, if it is one that this release knows."""
        name, data = self.feed(line) or ("", "")
        if name == "status":
            return JobStatus.model_validate_json(data)
        if name == "progress":
            return Progress.model_validate_json(data)
        return JobPreview.model_validate_json(data) if name == "preview" else None


class GenerationEvents(EventReader):
    """Read the events of a generation."""

    def __init__(self, request: httpx.Request) -> None:
        super().__init__()
        self._request = request

    def read(self, line: str) -> Progress | GenerationResponse | None:
        """Take a line; return what it ends, and raise a refusal."""
        name, data = self.feed(line) or ("", "")
        if name == "progress":
            return Progress.model_validate_json(data)
        if name == "result":
            return GenerationResponse.model_validate_json(data)
        if name == "problem":
            problem = Problem.model_validate_json(data)
            refused = httpx.Response(problem.status, content=data, request=self._request)
            refused.headers["content-type"] = "application/problem+json"
            checked(refused)
        return None

    def cut(self) -> httpx.RemoteProtocolError:
        """Return the error of a stream that ended early."""
        return httpx.RemoteProtocolError("the service ended the stream without a result", request=self._request)


def too_late(status: JobStatus, timeout_s: float) -> TimeoutError:
    """Return the error of waiting too long."""
    return TimeoutError(f"job {status.id} is {status.status} after {timeout_s:g} s; wait for it again")


def _embedding_fields(options: EmbeddingOptions) -> dict[str, str]:
    return {
        "average": str(options.get("average", False)).lower(),
        "bundle": options.get("bundle", ""),
        "subject": options.get("subject", ""),
        "onsets": ",".join(repr(float(onset)) for onset in options.get("onsets", ())),
        "preview": str(options.get("preview", False)).lower(),
        "purpose": options.get("purpose", ""),
        "consent": str(options.get("consent", False)).lower(),
    }


def _generation_fields(options: GenerationOptions) -> dict[str, str]:
    fields = _embedding_fields(options)
    fields |= {"images": str(options.get("images", 1)), "seed": str(options.get("seed", 0))}
    for name in ("num_inference_steps", "guidance_scale"):
        if options.get(name) is not None:
            fields[name] = str(options[name])
    return fields


def _parts(recordings: Sequence[Recording]) -> list[Part]:
    # names are not sent: they may hold a person's name, and the service recognises formats by content
    contents = [item if isinstance(item, bytes) else Path(item).read_bytes() for item in recordings]
    return [("file", (f"recording-{number}", content)) for number, content in enumerate(contents)]
