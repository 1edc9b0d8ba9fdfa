"""The loop that runs jobs: it leases them, keeps the leases alive, writes results, and lets go of what was erased.

It knows neither Ray nor a model: `answer` does the work. A process that dies in here loses nothing, because its leases
run out; a store that is down is waited for, with finished results kept in memory.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from starlette.exceptions import HTTPException

from serving.backend import Preview, PreviewCallback
from serving.failures import log_failure
from serving.job_blobs import open_blobs, unpack_upload
from serving.job_store import JobStore, Step
from serving.job_sweep import sweep
from serving.job_table import Job, open_engine
from serving.problems import problem_of, refusal
from serving.schema import GenerationFields, GenerationResponse, Problem, Progress
from serving.settings import JobSettings
from serving.vault import KeyDestroyed

logger = logging.getLogger(__name__)
Value = TypeVar("Value")

OnProgress = Callable[[Progress], None]


class Answer(Protocol):
    """Does the work of a job for whoever owns it."""

    async def __call__(
        self,
        fields: GenerationFields,
        contents: Sequence[bytes],
        on_progress: OnProgress,
        on_preview: PreviewCallback,
        *,
        owner: str,
    ) -> GenerationResponse:
        """Answer, or raise a refusal."""
        ...


_POLL_S = 0.1
_RETRY_S = 1.0


@dataclass
class _Run:
    """One job in work: how far it is, and its newest preview that is not stored yet."""

    job: Job
    task: "asyncio.Task[None] | None" = None
    step: Step | None = None
    preview: Preview | None = None
    preview_step: int = 0
    ending: bool = False

    def on_progress(self, progress: Progress) -> None:
        if progress.stage != "encode":  # takes milliseconds, and would hide the last step of the pictures
            self.step = Step(progress.stage, progress.step, progress.n_steps)

    def on_preview(self, preview: Preview) -> None:
        self.preview = preview

    def cancel(self) -> None:
        assert self.task is not None
        self.task.cancel()


class JobWorker:
    """Run the jobs of the bundles that are served.

    Parameters
    ----------
    settings : JobSettings
    answer : Answer
        Its refusals end a job, but for a full queue and a lost replica; see `_settle`.
    bundles : callable () -> ids
        What is served at the moment. A job of another bundle waits for `settings.unserved_s`, then it fails.
    stack : str
        Names what dies together with this worker when the whole service is killed, so that such a death is not held
        against a job.
    """

    def __init__(
        self, settings: JobSettings, answer: Answer, *, bundles: Callable[[], Sequence[str]], stack: str
    ) -> None:
        self._settings = settings
        self._answer = answer
        self._bundles = bundles
        self._stack = stack
        self._name = secrets.token_hex(8)
        self._store = JobStore(open_engine(settings.database, settings.folder))
        self._blobs = open_blobs(settings)
        self._runs: dict[str, _Run] = {}
        self._beat_due = self._sweep_due = 0.0  # monotonic seconds

    async def run(self) -> None:
        """Work until cancelled; then give back what is unfinished."""
        try:
            while True:
                try:
                    idle = not await self._turn()
                except OSError as error:
                    logger.warning("the jobs worker waits for its store: %s", error)
                    await asyncio.sleep(_RETRY_S)
                    continue
                await asyncio.sleep(_POLL_S if idle or len(self._runs) >= self._settings.n_at_once else 0)
        finally:
            await self._stop()

    async def _turn(self) -> bool:
        """Do what is due and take new jobs; tell whether there were any."""
        now = time.monotonic()
        await asyncio.to_thread(self._blobs.prepare)
        # a new preview is stored soon, so that somebody sees it before the job is done
        early = self._settings.beat_s - _POLL_S if any(run.preview for run in self._runs.values()) else 0.0
        if now >= self._beat_due - early:
            await self._beat()
            self._beat_due = time.monotonic() + self._settings.beat_s
        if now >= self._sweep_due:
            self._sweep_due = now + self._settings.sweep_s
            await asyncio.to_thread(self._end_unserved)
            await asyncio.to_thread(sweep, self._store, self._blobs)
        n_free, bundles = self._settings.n_at_once - len(self._runs), tuple(self._bundles())
        if n_free <= 0 or not await asyncio.to_thread(self._store.work_waits, bundles):
            return False
        jobs = await asyncio.to_thread(
            self._store.lease,
            self._name,
            self._stack,
            bundles,
            n=n_free,
            lease_s=self._settings.lease_s,
            keep_s=self._settings.keep_s,
            held=tuple(self._runs),
        )
        for job in jobs:
            run = self._runs[job.id] = _Run(job)
            run.task = asyncio.create_task(self._work(run))
        return bool(jobs)

    async def _beat(self) -> None:
        """Prolong the leases, tell progress, and cancel jobs that were erased or given to others."""
        if not self._runs:
            return
        for job_id, run in list(self._runs.items()):
            if run.preview is not None:
                preview, run.preview = run.preview, None
                try:
                    await asyncio.to_thread(self._blobs.write, "previews", job_id, preview.png, owner=run.job.owner)
                    run.preview_step = preview.step
                except (OSError, KeyDestroyed) as error:
                    # a lease is worth more than a preview, so the beat goes on
                    logger.warning("a preview could not be stored: %s", error)
        steps = {
            job_id: Step(run.step.stage, run.step.step, run.step.n_steps, run.preview_step)
            for job_id, run in self._runs.items()
            if run.step is not None
        }
        held = await asyncio.to_thread(
            self._store.beat, self._name, steps, tuple(self._runs), lease_s=self._settings.lease_s
        )
        for job_id, run in list(self._runs.items()):
            # one that ends is no longer held either, and still has its upload to erase
            if job_id not in held and not run.ending:
                run.cancel()

    async def _work(self, run: _Run) -> None:
        """Run one job to whatever end."""
        job = run.job
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                upload = await self._insist(self._read, job)
                if upload is None:
                    raise refusal("upload_lost", "the upload of this job is gone from the store; send it again")
                fields, contents = unpack_upload(upload)
                fields = fields.model_copy(update={"bundle": job.bundle})
                answer = await self._answer(fields, contents, run.on_progress, run.on_preview, owner=job.owner)
            await self._end(run, answer.model_copy(update={"id": job.id}))
        except TimeoutError:
            sentence = f"the job ran longer than {self._settings.timeout_s:g} s; ask for fewer pictures or steps"
            await self._end(run, problem_of(refusal("timed_out", sentence)))
        except HTTPException as error:
            await self._settle(run, problem_of(error))
        except KeyDestroyed:
            await self._forget(run)
        except Exception as error:
            log_failure(logger, "a job failed", error)
            await self._insist(self._give_back, job, True, "internal_error", 0.0)
        finally:
            self._runs.pop(job.id, None)

    async def _settle(self, run: _Run, problem: Problem) -> None:
        """Decide what a refusal means: run again later, run again alone, or the end."""
        job = run.job
        if problem.code in ("queue_full", "too_many_requests"):
            await self._insist(self._give_back, job, False, "", _RETRY_S)
        elif problem.code == "replica_lost":
            await self._insist(self._give_back, job, True, "quarantined", 0.0)
        elif problem.code == "uploads_down":
            await self._insist(self._give_back, job, True, problem.code, _RETRY_S)
        elif problem.code == "unknown_bundle":
            # it was served when the job was taken: whether it is gone for good is decided as for jobs that wait
            await self._insist(self._give_back, job, False, "", _RETRY_S)
        else:
            await self._end(run, problem)

    async def _end(self, run: _Run, answer: GenerationResponse | Problem) -> None:
        """Write what came out, then end the job, then erase its upload; the first to end it wins."""
        run.ending, job = True, run.job
        name = f"{job.id}.{self._name}"
        try:
            await self._insist(self._write, name, answer.model_dump_json().encode(), job.owner)
        except KeyDestroyed:
            await self._forget(run)
            return
        if isinstance(answer, Problem):
            first = await self._insist(self._fail, job.id, answer.code, name)
        else:
            first = await self._insist(self._finish, job.id, name, run.step)
        for remove in [("uploads", job.id), ("previews", job.id), *([] if first else [("results", name)])]:
            await self._insist(self._blobs.remove, *remove)

    async def _forget(self, run: _Run) -> None:
        """End a job whose owner's key was destroyed: nothing of it can be read, and nothing new may be kept."""
        run.ending, job = True, run.job
        await self._insist(self._fail, job.id, "upload_lost", "")
        for kind in ("uploads", "previews"):
            await self._insist(self._blobs.remove, kind, job.id)

    def _end_unserved(self) -> None:
        """End jobs whose bundle has gone; a new one may be known to who takes jobs in before it is known here."""
        waited_s = self._settings.unserved_s
        if not waited_s:
            return
        for job in self._store.end_without_bundle(self._bundles(), waited_s=waited_s, keep_s=self._settings.keep_s):
            for kind in ("uploads", "previews"):
                self._blobs.remove(kind, job.id)

    def _read(self, job: Job) -> bytes | None:
        try:
            return self._blobs.read("uploads", job.id, owner=job.owner)
        except FileNotFoundError:
            return None

    def _write(self, name: str, content: bytes, owner: str) -> None:
        self._blobs.write("results", name, content, owner=owner)

    async def _insist(self, work: Callable[..., Value], *arguments: Any) -> Value:
        """Run blocking work in a thread, again and again while the store cannot be used."""
        while True:
            try:
                return await asyncio.to_thread(work, *arguments)
            except OSError as error:
                logger.warning("the jobs worker waits for its store: %s", error)
                await asyncio.sleep(_RETRY_S)

    def _finish(self, job_id: str, name: str, step: Step | None) -> bool:
        return self._store.finish(job_id, name, keep_s=self._settings.keep_s, step=step)

    def _fail(self, job_id: str, code: str, name: str) -> bool:
        return self._store.fail(job_id, code, name, keep_s=self._settings.keep_s)

    def _give_back(self, job: Job, blamed: bool, code: str, delay_s: float) -> None:
        self._store.give_back(job, blamed=blamed, code=code, delay_s=delay_s, keep_s=self._settings.keep_s)

    async def _stop(self) -> None:
        """Cancel what runs and give it back unblamed; what cannot be given back is freed when its lease ends."""
        runs = list(self._runs.values())
        for run in runs:
            run.cancel()
        await asyncio.gather(*(run.task for run in runs if run.task is not None), return_exceptions=True)
        try:
            for run in runs:
                self._give_back(run.job, False, "", 0.0)
        except OSError as error:
            logger.warning("unfinished jobs could not be given back: %s", error)
        self._store.close()
