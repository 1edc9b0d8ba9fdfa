"""The twin of `serving.client` for event loops: the same methods, awaited."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
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
from serving.retries import send_again_async
from serving.schema import BundleInfo, BundleList, EmbeddingResponse, GenerationResponse, Progress

__all__ = ["AsyncPhospheneClient", "problem_of"]


class AsyncPhospheneClient:
    """Talk to a running service from an event loop; arguments and errors are those of `serving.client`.

    Files are read in a thread, so that the loop goes on. Cancelling a task cancels its request, and with it the work.
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
        self._http = httpx.AsyncClient(**calls.connection(base_url, timeout_s, api_key))

    async def __aenter__(self) -> "AsyncPhospheneClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ready(self) -> bool:
        """Tell whether the service answers and its models are loaded."""
        try:
            return (await self._http.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    async def bundles(self) -> tuple[BundleInfo, ...]:
        """Return the bundles being served."""
        return BundleList.model_validate_json((await self._send(calls.get("/v1/bundles"))).content).bundles

    async def generate(
        self,
        *recordings: Recording,
        on_progress: Callable[[Progress], None] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> GenerationResponse:
        """Decode recordings to pictures, as `serving.client.PhospheneClient.generate` does."""
        call = await asyncio.to_thread(calls.generation, recordings, options, streamed=on_progress is not None)
        if on_progress is None:
            return GenerationResponse.model_validate_json((await self._send(call)).content)
        async with self._stream(call) as response:
            events = GenerationEvents(response.request)
            async for line in response.aiter_lines():
                event = events.read(line)
                if isinstance(event, GenerationResponse):
                    return event
                if event is not None:
                    on_progress(event)
            raise events.cut()

    async def embed(self, *recordings: Recording, **options: Unpack[EmbeddingOptions]) -> EmbeddingResponse:
        """Decode recordings to CLIP image embeddings; for the options see `serving.client_calls.EmbeddingOptions`."""
        call = await asyncio.to_thread(calls.embedding, recordings, options)
        return EmbeddingResponse.model_validate_json((await self._send(call)).content)

    async def submit(self, *recordings: Recording, key: str = "", **options: Unpack[GenerationOptions]) -> JobStatus:
        """Hand a job in, as `serving.client.PhospheneClient.submit` does."""
        call = await asyncio.to_thread(calls.submission, recordings, key, options)
        return JobStatus.model_validate_json((await self._send(call)).content)

    async def job(self, job_id: str) -> JobStatus:
        """Return the state of a job, with its result or problem once it has ended."""
        return JobStatus.model_validate_json((await self._send(calls.get(calls.job_path(job_id)))).content)

    async def wait(self, job_id: str, *, timeout_s: float = 3600.0) -> JobStatus:
        """Return a job once it has ended; TimeoutError if that takes longer. The job goes on all the same."""
        deadline = time.monotonic() + timeout_s
        while (status := await self.job(job_id)).status not in ENDED:
            if time.monotonic() > deadline:
                raise calls.too_late(status, timeout_s)
            await asyncio.sleep(POLL_S)
        return status

    async def events(self, job_id: str) -> AsyncIterator[JobEvent]:
        """Yield what happens to a job until it has ended; the last one yielded is its status as of `job`.

        Streams that end early, with a restart of the service for instance, are opened again.
        """
        while True:
            try:
                async with self._stream(calls.get(f"{calls.job_path(job_id)}/events")) as response:
                    events = JobEvents()
                    async for line in response.aiter_lines():
                        event = events.read(line)
                        if event is not None:
                            yield event
            except httpx.TransportError:
                await asyncio.sleep(POLL_S)
            status = await self.job(job_id)
            if status.status in ENDED:
                yield status
                return

    async def cancel(self, job_id: str) -> None:
        """Stop a job and erase everything the service keeps of it, also when it has ended."""
        calls.check_erased(await self._answer(calls.erasure(job_id)))

    async def erase_me(self, *, confirm: bool = False) -> ErasedJobs:
        """Erase everything that is kept of the key's owner, as `serving.client.PhospheneClient.erase_me` does."""
        return ErasedJobs.model_validate_json((await self._send(calls.erasure_of_caller(confirm=confirm))).content)

    async def _send(self, call: Call) -> httpx.Response:
        return checked(await self._answer(call))

    @asynccontextmanager
    async def _stream(self, call: Call) -> AsyncIterator[httpx.Response]:
        response = await self._answer(call, stream=True)
        try:
            if response.status_code != 200:
                await response.aread()
                checked(response)
            yield response
        finally:
            await response.aclose()

    async def _answer(self, call: Call, *, stream: bool = False) -> httpx.Response:
        async def send() -> httpx.Response:
            return await self._http.send(self._http.build_request(**call.sendable()), stream=stream)

        return await send_again_async(send, n_retries=self._n_retries, repeatable=call.repeatable)
