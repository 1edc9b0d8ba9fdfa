"""Jobs in the words of the HTTP interface: status, result or problem, and the events of one that is being followed."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
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
_POLL_S = 0.25
_SILENCE_S = 15.0
_SENTENCES = {
    "quarantined": "the processes that worked on this job were lost at every attempt, so it is not tried again; "
    "the recording or the options may be what ends them",
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


async def events_of(desk: JobDesk, job: Job, *, owner: str, seconds: float) -> AsyncIterator[str]:
    """Yield server-sent events: `status`, `progress` and `preview` when they change, one `result` or `problem` last.

    After `seconds` the stream ends although the job may not have; who still wants to know asks again.
    """
    deadline = time.monotonic() + seconds
    told: dict[str, str] = {}
    spoke = time.monotonic()
    try:
        while True:
            for name, data in await _news(desk, job):
                if told.get(name) != data:
                    told[name] = data
                    spoke = time.monotonic()
                    yield _event(name, data)
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
                found = await desk.get(job.id, owner)
            except OSError:
                continue  # the store may be back before the stream ends
            if found is None:
                raise unknown_job()
            job = found
    except HTTPException as error:
        yield _event("problem", problem_of(error).model_dump_json())


async def _news(desk: JobDesk, job: Job) -> list[tuple[str, str]]:
    status = status_of(job)
    news = [("status", status.model_dump_json(exclude={"progress", "result", "problem"}))]
    if status.progress is not None:
        news.append(("progress", status.progress.model_dump_json()))
    if job.preview_step:
        try:
            png = await desk.preview(job)
        except OSError:
            png = None
        if png is not None:
            preview = JobPreview(step=job.preview_step, image=to_base64(png))
            news.append(("preview", preview.model_dump_json()))
    return news


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
