"""Jobs in the words of the HTTP interface: status, result or problem, and the events of one that is being followed."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import TypeAdapter
from starlette.exceptions import HTTPException

from serving.job_desk import JobDesk
from serving.job_schema import ENDED, JobPreview, JobState, JobStatus
from serving.job_table import Job
from serving.problems import problem_of, refusal
from serving.rendering import to_base64
from serving.schema import Progress

Value = TypeVar("Value")

_RETRY_DOWN_S = 5
_POLL_S = 0.1
_SILENCE_S = 15.0
_SENTENCES = {
    "quarantined": "the processes that worked on this job were lost at every attempt, so it is not tried again; "
    "the recording or the options may be what ends them",
    "bundle_gone": "the bundle that this job was handed in for is served no more, and no other is taken instead; send "
    "the recording again, with a bundle of GET /v1/bundles",
    "upload_lost": "the upload of this job is gone from the store, or can be read no more; send it again",
    "internal_error": "the service failed at this job at every attempt; the log has the reason",
}


async def stored(work: Awaitable[Value]) -> Value:
    """Await the desk and turn a store that cannot be used into a refusal."""
    try:
        return await work
    except OSError:
        raise refusal(
            "store_down",
            "the store of jobs cannot be used at the moment; nothing was changed, send the request again after the "
            "seconds in Retry-After",
            retry_after_s=_RETRY_DOWN_S,
        ) from None


def unknown_job() -> HTTPException:
    """Build the refusal of an id that no job has, or no longer, or that belongs to somebody else."""
    return refusal("not_found", "no job has this id; it was never given out, was erased, or has expired")


def status_of(job: Job) -> JobStatus:
    """Describe a job, without what it ended with."""
    progress = None
    if job.stage and job.status == "running":
        progress = Progress.model_validate({"stage": job.stage, "step": job.step, "n_steps": job.n_steps})
    return JobStatus(
        id=job.id,
        status=TypeAdapter(JobState).validate_python(job.status),
        bundle_id=job.bundle,
        created=datetime.fromtimestamp(job.created, UTC),
        expires=datetime.fromtimestamp(job.expires, UTC),
        attempts=job.attempts,
        progress=progress,
    )


async def ending_of(desk: JobDesk, job: Job) -> tuple[str, bytes]:
    """Return "result" or "problem" and its JSON, of a job that has ended."""
    content = b""
    if job.result:
        found = await stored(desk.ending(job))
        if found is None:
            raise unknown_job()
        content = found
    if job.status == "failed" and not content:
        content = problem_of(refusal(job.code, _SENTENCES[job.code])).model_dump_json().encode()
    return ("result" if job.status == "finished" else "problem"), content


async def full_status(desk: JobDesk, job: Job) -> bytes:
    """Return the JSON of a `JobStatus` with result or problem.

    The stored bytes go out as they are, so what was finished reads the same for ever.
    """
    parts = {"result": b"null", "problem": b"null"}
    if job.status in ENDED:
        name, content = await ending_of(desk, job)
        parts[name] = content
    head = status_of(job).model_dump_json(exclude={"result", "problem"}).encode()
    return b"".join([head[:-1], b',"result":', parts["result"], b',"problem":', parts["problem"], b"}"])


async def events_of(
    desk: JobDesk, job: Job, still_allowed: Callable[[], None], *, seconds: float
) -> AsyncIterator[str]:
    """Yield server-sent events: `status`, `progress` and `preview` when they change, one `result` or `problem` last.

    After `seconds` the stream ends although the job may not have; who still wants to know asks again. It ends with a
    `problem` as soon as `still_allowed` raises one.
    """
    deadline = time.monotonic() + seconds
    news = _News(desk)
    spoke = time.monotonic()
    try:
        while True:
            still_allowed()
            for event in await news.of(job):
                spoke = time.monotonic()
                yield event
            if job.status in ENDED:
                name, content = await ending_of(desk, job)
                yield _event(name, content.decode())
                return
            if time.monotonic() >= deadline:
                return
            await asyncio.sleep(_POLL_S)
            if time.monotonic() - spoke > _SILENCE_S:
                spoke = time.monotonic()
                yield ": still here\n\n"
            try:
                found = await desk.get(job.id, job.owner)
            except OSError:
                continue  # the store may be back before the stream ends
            if found is None:
                raise unknown_job()
            job = found
    except HTTPException as error:
        yield _event("problem", problem_of(error).model_dump_json())


class _News:
    """Remembers what was told of a job and finds what is new."""

    def __init__(self, desk: JobDesk) -> None:
        self._desk = desk
        self._status = ""
        self._progress = ("", 0)
        self._preview_step = 0

    async def of(self, job: Job) -> list[str]:
        """Return the events that a look at a job adds."""
        status = status_of(job).model_dump_json(exclude={"progress", "result", "problem"})
        if not self._status and job.status in ENDED:
            return [_event("status", status)]  # who comes late wants the end only
        events = []
        if status != self._status and job.status not in ENDED:
            self._status = status
            events.append(_event("status", status))
        if job.stage and (job.stage, job.step) != self._progress:
            # steps between two looks have been made too, each is told
            told = self._progress[1] if self._progress[0] == job.stage else -1
            for step in range(told + 1 if told < job.step else job.step, job.step + 1):
                progress = Progress.model_validate({"stage": job.stage, "step": step, "n_steps": job.n_steps})
                events.append(_event("progress", progress.model_dump_json()))
            self._progress = (job.stage, job.step)
        if job.preview_step != self._preview_step:
            self._preview_step = job.preview_step
            png = await self._look(job)
            if png is not None:
                preview = JobPreview(step=job.preview_step, image=to_base64(png))
                events.append(_event("preview", preview.model_dump_json()))
        if status != self._status:
            events.append(_event("status", status))
        return events

    async def _look(self, job: Job) -> bytes | None:
        try:
            return await self._desk.preview(job) if job.preview_step else None
        except OSError:
            return None


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
