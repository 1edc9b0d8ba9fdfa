"""A small typed client of the service; it imports neither torch nor ray."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypedDict, Unpack

import httpx

from serving.job_schema import ENDED, JobPreview, JobStatus
from serving.retries import send_again
from serving.schema import BundleInfo, BundleList, EmbeddingResponse, GenerationResponse, Problem, Progress

Recording = Path | str | bytes

_POLL_S = 0.5


class GenerationOptions(TypedDict, total=False):
    """What `PhospheneClient.generate` and `PhospheneClient.submit` take beside the recordings."""

    images: int
    seed: int
    num_inference_steps: int | None
    guidance_scale: float | None
    average: bool
    subject: str
    onsets: Sequence[float]
    preview: bool
    purpose: str
    consent: bool


class PhospheneClient:
    """Talk to a running service.

    A refusal raises `httpx.HTTPStatusError` whose message is the service's sentence; `problem_of` gives its code.

    Parameters
    ----------
    base_url : str
        For instance ``http://127.0.0.1:8000``.
    timeout_s : float
        Per request; generation of many pictures takes long.
    n_retries : int
        How often a request is sent again that was refused for the moment (429 and 503, after the seconds that the
        service names) or whose connection was lost; 0 sends everything once. `generate` and `embed` are not sent
        again after a lost connection, because the service may be working on them: use `submit` for that.
    api_key : str
        Key for a service that asks for one. It goes to `base_url` only: redirects are not followed.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        timeout_s: float = 180.0,
        n_retries: int = 4,
        api_key: str = "",
    ) -> None:
        self._n_retries = n_retries
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=base_url, timeout=timeout_s, trust_env=False, headers=headers)

    def __enter__(self) -> "PhospheneClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Tell whether the service answers and its models are loaded."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def bundles(self) -> tuple[BundleInfo, ...]:
        """Return the bundles being served."""
        return BundleList.model_validate_json(self._get("/v1/bundles").content).bundles

    def generate(
        self,
        *recordings: Recording,
        images: int = 1,
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        average: bool = False,
        subject: str = "",
        onsets: Sequence[float] = (),
        preview: bool = False,
        purpose: str = "",
        consent: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> GenerationResponse:
        """Decode one recording, or an EEG and a MEG recording of the same stimuli, to pictures.

        Parameters
        ----------
        recordings : path or bytes
            One or two files.
        images : int
            Pictures per epoch.
        seed : int
            Same seed, same pictures.
        num_inference_steps, guidance_scale : optional
            Left out, the bundle's values are used.
        average : bool
            Average the epochs of one stimulus first.
        subject : str
            A person the bundle knows, or empty.
        onsets : sequence of float
            Where to cut a continuous file, in seconds.
        preview : bool
            Ask for sensor traces.
        purpose : str
            What the recording is decoded for, for instance "research"; some services require it.
        consent : bool
            That the recorded person agreed to this purpose; some services require it.
        on_progress : callable, optional
            Called with every step of the work.

        Returns
        -------
        GenerationResponse

        Raises
        ------
        httpx.HTTPStatusError
            If the service refuses.
        """
        fields = _generation_fields(
            {
                "images": images,
                "seed": seed,
                "num_inference_steps": num_inference_steps,
                "guidance_scale": guidance_scale,
                "average": average,
                "subject": subject,
                "onsets": onsets,
                "preview": preview,
                "purpose": purpose,
                "consent": consent,
            }
        )
        if on_progress is None:
            response = self._post("/v1/generations", fields, recordings)
            return GenerationResponse.model_validate_json(response.content)
        return self._generate_streamed(fields, recordings, on_progress)

    def embed(
        self,
        *recordings: Recording,
        average: bool = False,
        subject: str = "",
        onsets: Sequence[float] = (),
        preview: bool = False,
        purpose: str = "",
        consent: bool = False,
    ) -> EmbeddingResponse:
        """Decode recordings to CLIP image embeddings; the arguments are those of `generate`."""
        fields = _fields(average=average, subject=subject, onsets=onsets, preview=preview)
        fields |= _use(purpose, consent)
        response = self._post("/v1/embeddings", fields, recordings)
        return EmbeddingResponse.model_validate_json(response.content)

    def submit(self, *recordings: Recording, key: str = "", **options: Unpack[GenerationOptions]) -> JobStatus:
        """Hand a job in; it is on the service's disk when this returns.

        Parameters
        ----------
        recordings : path or bytes
            One or two files.
        key : str
            Idempotency-Key; left out, a new one is made, so that repeating inside this call makes no second job.
        options
            As for `generate`.

        Returns
        -------
        JobStatus

        Raises
        ------
        httpx.HTTPStatusError
            If the service refuses.
        """
        fields = _generation_fields(options)
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        response = self._post("/v1/jobs", fields, recordings, headers=headers, repeatable=True)
        return JobStatus.model_validate_json(response.content)

    def job(self, job_id: str) -> JobStatus:
        """Return the state of a job, with its result or problem once it has ended."""
        return JobStatus.model_validate_json(self._get(f"/v1/jobs/{job_id}").content)

    def wait(self, job_id: str, *, timeout_s: float = 3600.0) -> JobStatus:
        """Return a job once it has ended; TimeoutError if that takes longer. The job goes on all the same."""
        deadline = time.monotonic() + timeout_s
        while (status := self.job(job_id)).status not in ENDED:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is {status.status} after {timeout_s:g} s; wait for it again")
            time.sleep(_POLL_S)
        return status

    def events(self, job_id: str) -> Iterator[JobStatus | Progress | JobPreview]:
        """Yield what happens to a job until it has ended; the last one yielded is its status as of `job`.

        Streams that end early, with a restart of the service for instance, are opened again.
        """
        while True:
            try:
                yield from self._stream(job_id)
            except httpx.TransportError:
                time.sleep(_POLL_S)
            status = self.job(job_id)
            if status.status in ENDED:
                yield status
                return

    def cancel(self, job_id: str) -> None:
        """Stop a job and erase everything the service keeps of it, also when it has ended."""
        path = f"/v1/jobs/{job_id}"
        response = send_again(lambda: self._http.delete(path), n_retries=self._n_retries, repeatable=True)
        if response.status_code != 404:  # erased by an earlier attempt whose answer was lost
            _checked(response)

    def _stream(self, job_id: str) -> Iterator[JobStatus | Progress | JobPreview]:
        with self._http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            if response.status_code != 200:
                response.read()
                _checked(response)
            for name, data in _events(response.iter_lines()):
                if name == "status":
                    yield JobStatus.model_validate_json(data)
                elif name == "progress":
                    yield Progress.model_validate_json(data)
                elif name == "preview":
                    yield JobPreview.model_validate_json(data)

    def _get(self, path: str) -> httpx.Response:
        return _checked(send_again(lambda: self._http.get(path), n_retries=self._n_retries, repeatable=True))

    def _post(
        self,
        path: str,
        fields: dict[str, str],
        recordings: Sequence[Recording],
        *,
        headers: dict[str, str] | None = None,
        repeatable: bool = False,
    ) -> httpx.Response:
        parts = _parts(recordings)
        return _checked(
            send_again(
                lambda: self._http.post(path, data=fields, files=parts, headers=headers),
                n_retries=self._n_retries,
                repeatable=repeatable,
            )
        )

    def _generate_streamed(
        self, fields: dict[str, str], recordings: Sequence[Recording], on_progress: Callable[[Progress], None]
    ) -> GenerationResponse:
        headers = {"Accept": "text/event-stream"}
        parts = _parts(recordings)
        with self._http.stream("POST", "/v1/generations", data=fields, files=parts, headers=headers) as response:
            if response.status_code != 200:
                response.read()
                _checked(response)
            for name, data in _events(response.iter_lines()):
                if name == "progress":
                    on_progress(Progress.model_validate_json(data))
                elif name == "result":
                    return GenerationResponse.model_validate_json(data)
                elif name == "problem":
                    problem = Problem.model_validate_json(data)
                    refused = httpx.Response(problem.status, content=data, request=response.request)
                    refused.headers["content-type"] = "application/problem+json"
                    _checked(refused)
        raise httpx.RemoteProtocolError("the service ended the stream without a result", request=response.request)


def problem_of(error: httpx.HTTPStatusError) -> Problem | None:
    """Return the problem details of a refusal; None if something other than the service answered."""
    if "problem+json" not in error.response.headers.get("content-type", ""):
        return None
    return Problem.model_validate_json(error.response.content)


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    error = httpx.HTTPStatusError("", request=response.request, response=response)
    problem = problem_of(error)
    sentence = f"{problem.code}: {problem.detail}" if problem else f"HTTP {response.status_code}: {response.text[:200]}"
    raise httpx.HTTPStatusError(sentence, request=response.request, response=response)


def _fields(*, average: bool, subject: str, onsets: Sequence[float], preview: bool) -> dict[str, str]:
    return {
        "average": str(average).lower(),
        "subject": subject,
        "onsets": ",".join(repr(float(onset)) for onset in onsets),
        "preview": str(preview).lower(),
    }


def _generation_fields(options: GenerationOptions) -> dict[str, str]:
    fields = _fields(
        average=options.get("average", False),
        subject=options.get("subject", ""),
        onsets=options.get("onsets", ()),
        preview=options.get("preview", False),
    )
    fields |= _use(options.get("purpose", ""), options.get("consent", False))
    fields |= {"images": str(options.get("images", 1)), "seed": str(options.get("seed", 0))}
    for name in ("num_inference_steps", "guidance_scale"):
        if options.get(name) is not None:
            fields[name] = str(options[name])
    return fields


def _use(purpose: str, consent: bool) -> dict[str, str]:
    return {"purpose": purpose, "consent": str(consent).lower()}


def _parts(recordings: Sequence[Recording]) -> list[tuple[str, tuple[str, bytes]]]:
    # names are not sent: they may hold a person's name, and the service recognises formats by content
    contents = [item if isinstance(item, bytes) else Path(item).read_bytes() for item in recordings]
    return [("file", (f"recording-{number}", content)) for number, content in enumerate(contents)]


def _events(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    name, data = "", ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data += line.removeprefix("data: ")
        elif not line and name:
            yield name, data
            name, data = "", ""
