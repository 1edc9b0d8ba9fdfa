"""A small typed client of the service; it imports neither torch nor ray."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import httpx

from serving.schema import BundleInfo, BundleList, EmbeddingResponse, GenerationResponse, Problem, Progress

Recording = Path | str | bytes


class PhospheneClient:
    """Talk to a running service.

    A refusal raises `httpx.HTTPStatusError` whose message is the service's sentence; `problem_of` gives its code.

    Parameters
    ----------
    base_url : str
        For instance ``http://127.0.0.1:8000``.
    timeout_s : float
        Per request; generation of many pictures takes long.
    api_key : str
        Key for a service that asks for one. It goes to `base_url` only: redirects are not followed.
    """

    def __init__(
        self, base_url: str = "http://127.0.0.1:8000", *, timeout_s: float = 180.0, api_key: str = ""
    ) -> None:
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
        return BundleList.model_validate_json(_checked(self._http.get("/v1/bundles")).content).bundles

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
        fields = _fields(average=average, subject=subject, onsets=onsets, preview=preview)
        fields |= _use(purpose, consent)
        fields |= {"images": str(images), "seed": str(seed)}
        if num_inference_steps is not None:
            fields["num_inference_steps"] = str(num_inference_steps)
        if guidance_scale is not None:
            fields["guidance_scale"] = str(guidance_scale)
        if on_progress is None:
            response = self._http.post("/v1/generations", data=fields, files=_parts(recordings))
            return GenerationResponse.model_validate_json(_checked(response).content)
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
        response = self._http.post("/v1/embeddings", data=fields, files=_parts(recordings))
        return EmbeddingResponse.model_validate_json(_checked(response).content)

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
