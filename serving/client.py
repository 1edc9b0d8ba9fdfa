"""A small typed client of the service; it imports neither torch nor ray. `serving.async_client` is its twin."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Unpack

import httpx

from serving import client_calls as calls
from serving.client_calls import (
    POLL_S,
    Call,
    EmbeddingOptions,
    GenerationEvents,
    GenerationOptions,
    JobEvent,
    JobEvents,
    Recording,
    checked,
    problem_of,
)
from serving.job_schema import ENDED, ErasedJobs, JobStatus
from serving.retries import send_again
from serving.schema import BundleInfo, BundleList, EmbeddingResponse, GenerationResponse, Progress

__all__ = ["PhospheneClient", "problem_of"]


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
        How often a request is sent again that was refused for the moment (429 and 503, after the time that the
        service names, if that is at most two minutes) or whose connection was lost; 0 sends everything once.
        `generate` and `embed` are not sent again after a lost connection, because the service may be working on them:
        use `submit` for that.
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
        self._http = httpx.Client(**calls.connection(base_url, timeout_s, api_key))

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
        return BundleList.model_validate_json(self._send(calls.get("/v1/bundles")).content).bundles

    def generate(
        self,
        *recordings: Recording,
        on_progress: Callable[[Progress], None] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> GenerationResponse:
        """Decode one recording, or an EEG and a MEG recording of the same stimuli, to pictures.

        Parameters
        ----------
        recordings : path or bytes
            One or two files.
        on_progress : callable, optional
            Called with every step of the work.
        options
            See `serving.client_calls.GenerationOptions`.

        Returns
        -------
        GenerationResponse

        Raises
        ------
        httpx.HTTPStatusError
            If the service refuses.
        """
        call = calls.generation(recordings, options, streamed=on_progress is not None)
        if on_progress is None:
            return GenerationResponse.model_validate_json(self._send(call).content)
        with self._stream(call) as response:
            events = GenerationEvents(response.request)
            for event in map(events.read, response.iter_lines()):
                if isinstance(event, GenerationResponse):
                    return event
                if event is not None:
                    on_progress(event)
            raise events.cut()

    def embed(self, *recordings: Recording, **options: Unpack[EmbeddingOptions]) -> EmbeddingResponse:
        """Decode recordings to CLIP image embeddings; for the options see `serving.client_calls.EmbeddingOptions`."""
        return EmbeddingResponse.model_validate_json(self._send(calls.embedding(recordings, options)).content)

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
        return JobStatus.model_validate_json(self._send(calls.submission(recordings, key, options)).content)

    def job(self, job_id: str) -> JobStatus:
        """Return the state of a job, with its result or problem once it has ended."""
        return JobStatus.model_validate_json(self._send(calls.get(calls.job_path(job_id))).content)

    def wait(self, job_id: str, *, timeout_s: float = 3600.0) -> JobStatus:
        """Return a job once it has ended; TimeoutError if that takes longer. The job goes on all the same."""
        deadline = time.monotonic() + timeout_s
        while (status := self.job(job_id)).status not in ENDED:
            if time.monotonic() > deadline:
                raise calls.too_late(status, timeout_s)
            time.sleep(POLL_S)
        return status

    def events(self, job_id: str) -> Iterator[JobEvent]:
        """Yield what happens to a job until it has ended; the last one yielded is its status as of `job`.

        Streams that end early, with a restart of the service for instance, are opened again.
        """
        while True:
            try:
                with self._stream(calls.get(f"{calls.job_path(job_id)}/events")) as response:
                    for event in map(JobEvents().read, response.iter_lines()):
                        if event is not None:
                            yield event
            except httpx.TransportError:
                time.sleep(POLL_S)
            status = self.job(job_id)
            if status.status in ENDED:
                yield status
                return

    def cancel(self, job_id: str) -> None:
        """Stop a job and erase everything the service keeps of it, also when it has ended."""
        calls.check_erased(self._answer(calls.erasure(job_id)))

    def erase_me(self, *, confirm: bool = False) -> ErasedJobs:
        """Erase everything that the service keeps of the owner of the key: jobs, uploads, results, and their key.

        Members of a group that shares its jobs act for all of it. Asked again after a lost answer, so the number may
        be that of what was left.

        Parameters
        ----------
        confirm : bool
            Must be True.

        Returns
        -------
        ErasedJobs

        Raises
        ------
        ValueError
            If `confirm` is not True; nothing is sent then.
        httpx.HTTPStatusError
            If the service refuses.
        """
        return ErasedJobs.model_validate_json(self._send(calls.erasure_of_caller(confirm=confirm)).content)

    def _send(self, call: Call) -> httpx.Response:
        return checked(self._answer(call))

    @contextmanager
    def _stream(self, call: Call) -> Iterator[httpx.Response]:
        response = self._answer(call, stream=True)
        try:
            if response.status_code != 200:
                response.read()
                checked(response)
            yield response
        finally:
            response.close()

    def _answer(self, call: Call, *, stream: bool = False) -> httpx.Response:
        def send() -> httpx.Response:
            return self._http.send(self._http.build_request(**call.sendable()), stream=stream)

        return send_again(send, n_retries=self._n_retries, repeatable=call.repeatable)
