"""Routes of jobs: hand one in (202, and durable by then), look at it, follow it, erase it."""

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Annotated, get_args

from fastapi import FastAPI, Form, Header, Request, Response
from fastapi.responses import StreamingResponse

from serving.access import caller_of
from serving.backend import BundlePlace
from serving.forms import AT_THE_DOOR, GenerationForm, refusals, responses_with, stream_of_events
from serving.job_answers import events_of, full_status, status_of, stored, unknown_job
from serving.job_desk import JobDesk
from serving.job_schema import ENDED, MAX_KEY, ErasedJobs, JobState, JobStatus
from serving.job_table import Job
from serving.metrics import Metrics
from serving.problems import refusal
from serving.purpose import check_use
from serving.schema import GenerationFields
from serving.served_bundles import choose
from serving.settings import ServingSettings

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=MAX_KEY,
        description="makes repeating a request safe: the same key with the same body gives the same job",
    ),
]

_RETRY_FULL_S = 5
# Of events, that one owner may have open however small the service is.
_LEAST_STREAMS = 4
_ID = re.compile(r"[0-9a-f]{48}")
_EXAMPLE: dict[str, object] = {
    "id": "4f1c09d9a3f44a2a8a3d4d8f0b1a6e2f7c5b9d10e3f2a4c6",
    "status": "queued",
    "bundle_id": "demo-1",
    "created": "2026-01-01T12:00:00Z",
    "expires": "2026-01-02T12:00:00Z",
    "attempts": 0,
}


class JobCounter:
    """Answers about jobs over the counter of one ingress.

    Parameters
    ----------
    desk : JobDesk or None
        None when the operator named no folder for jobs.
    metrics : Metrics
    settings : ServingSettings
    places : callable () -> tuple of BundlePlace
        What is served at the moment.
    """

    def __init__(
        self,
        desk: JobDesk | None,
        metrics: Metrics,
        settings: ServingSettings,
        places: Callable[[], tuple[BundlePlace, ...]],
    ) -> None:
        self._desk = desk
        self._places = places
        self._metrics = metrics
        self._streams: Counter[str] = Counter()
        self._max_streams = 2 * settings.max_in_flight
        self._max_streams_per_owner = max(_LEAST_STREAMS, self._max_streams // 4)
        self._stream_s = settings.request_timeout_s

    async def accept(self, request: Request, form: GenerationForm, key: str | None, *, preferred: bool) -> Response:
        """Store a job of whoever sent the request and answer 202 with its address."""
        desk, place = self._open(), choose(self._places(), form.bundle)
        contents = [await part.read() for part in form.file]
        fields = GenerationFields.model_validate(form.model_dump(exclude={"file"}))
        done = await stored(desk.submit(fields, contents, bundle=place.id, owner=caller_of(request).owner, key=key))
        self._metrics.jobs.labels(done.outcome).inc()
        if done.outcome == "full":
            sentence = "as many jobs wait as this service keeps; try again after the seconds in Retry-After"
            raise refusal("jobs_full", sentence, retry_after_s=_RETRY_FULL_S)
        if done.outcome == "share_full":
            sentence = "half of the jobs that this service keeps are yours; the other half is for others, wait for some"
            raise refusal("too_many_requests", sentence, retry_after_s=_RETRY_FULL_S)
        if done.outcome == "other_body":
            sentence = "this Idempotency-Key came with another recording or other fields before; use a new key"
            raise refusal("key_reused", sentence)
        headers = {"Location": f"/v1/jobs/{done.job.id}", "Cache-Control": "no-store"}
        if preferred:
            headers["Preference-Applied"] = "respond-async"
        return Response(
            status_of(done.job).model_dump_json(), status_code=202, media_type="application/json", headers=headers
        )

    async def tell(self, request: Request, job_id: str) -> Response:
        """Answer with the state of a job and what it ended with."""
        job = await self._find(request, job_id)
        headers = {"Cache-Control": "no-store"} | ({} if job.status in ENDED else {"Retry-After": "1"})
        return Response(await full_status(self._open(), job), media_type="application/json", headers=headers)

    async def follow(self, request: Request, job_id: str) -> Response:
        """Answer with a stream of events."""
        job = await self._find(request, job_id)
        # without keys everybody is one owner, who may have all
        all_theirs = bool(job.owner) and self._streams[job.owner] >= self._max_streams_per_owner
        if all_theirs or self._streams.total() >= self._max_streams:
            sentence = (
                f"{self._max_streams} streams of events are open, or {self._max_streams_per_owner} of yours, the most "
                "this service keeps; poll the job"
            )
            raise refusal("too_many_requests", sentence, retry_after_s=_RETRY_FULL_S)
        told = events_of(self._open(), job, request.state.still_allowed, seconds=self._stream_s)
        events = self._counted(job.owner, told)
        await anext(events)  # it counts from here on: of requests that come together not all find the same room
        return StreamingResponse(
            events,
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def erase(self, request: Request, job_id: str) -> Response:
        """Cancel a job and erase what is kept of it."""
        desk = self._open()
        if not _ID.fullmatch(job_id) or not await stored(desk.erase(job_id, caller_of(request).owner)):
            raise unknown_job()
        return Response(status_code=204)

    async def erase_all(self, request: Request) -> Response:
        """Cancel all jobs of whoever sent the request, and erase what is kept of them."""
        n_jobs = 0 if self._desk is None else await stored(self._desk.erase_all(caller_of(request).owner))
        request.state.record["erased"] = n_jobs
        return Response(ErasedJobs(n_jobs=n_jobs).model_dump_json(), media_type="application/json")

    async def measure(self) -> None:
        """Put the number of jobs in each state into the metrics, as far as the store can be asked."""
        if self._desk is None:
            return
        try:
            counts = await self._desk.counts()
        except OSError:
            return
        for state in get_args(JobState):
            self._metrics.jobs_state.labels(state).set(counts.get(state, 0))

    async def _counted(self, owner: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
        """Count a stream from when the first item, which is empty, is asked for."""
        self._streams[owner] += 1
        try:
            yield ""
            async for event in events:
                yield event
        finally:
            self._streams[owner] -= 1
            self._streams += Counter()  # who has none open is forgotten

    async def _find(self, request: Request, job_id: str) -> Job:
        """Look up a job of the caller's; somebody else's is answered like one that does not exist."""
        desk = self._open()
        job = await stored(desk.get(job_id, caller_of(request).owner)) if _ID.fullmatch(job_id) else None
        if job is None:
            raise unknown_job()
        return job

    def _open(self) -> JobDesk:
        if self._desk is None:
            raise refusal("jobs_off", "this service keeps no jobs; its operator switches them on with jobs.folder")
        return self._desk


def add_jobs(app: FastAPI, counter: JobCounter) -> None:
    """Add the routes below ``/v1/jobs``, and the one that erases everything of its caller."""

    @app.post(
        "/v1/jobs",
        status_code=202,
        response_model=JobStatus,
        responses=responses_with(_EXAMPLE, 202),
        description="The job is durable when 202 is answered; Location is its address.",
    )
    async def submit(
        request: Request,
        form: Annotated[GenerationForm, Form(media_type="multipart/form-data")],
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        check_use(request, form)
        return await counter.accept(request, form, idempotency_key, preferred=False)

    missing = refusals(404, 422, *AT_THE_DOOR)

    @app.get("/v1/jobs/{job_id}", response_model=JobStatus, responses=missing)
    async def status(request: Request, job_id: str) -> Response:
        return await counter.tell(request, job_id)

    @app.get(
        "/v1/jobs/{job_id}/events",
        response_class=StreamingResponse,
        responses={200: stream_of_events("What happens to the job."), **missing},
        description="A stream of `status`, `progress` and `preview` events and one `result` or `problem` event. It "
        "may end before the job does; ask again then.",
    )
    async def events(request: Request, job_id: str) -> Response:
        return await counter.follow(request, job_id)

    @app.delete(
        "/v1/jobs/{job_id}",
        status_code=204,
        responses=missing,
        description="Cancels the job and erases all that is kept of it.",
    )
    async def erase(request: Request, job_id: str) -> Response:
        return await counter.erase(request, job_id)

    @app.delete(
        "/v1/me",
        response_model=ErasedJobs,
        responses=refusals(*AT_THE_DOOR),
        description="Erases everything that is kept of the caller: all jobs, their uploads, results and previews, and "
        "the key that they are encrypted with, where encryption is on. Members of a group that shares act for all.",
    )
    async def forget(request: Request) -> Response:
        return await counter.erase_all(request)
