"""Where jobs are handed in, looked at and erased: the store and the blobs behind answers that come within 2 s.

The upload is on disk before the row, and the row before the answer. A crash in between leaves an upload without a row,
which `serving.job_sweep` removes; a request that was answered 503 although its row came through late is undone.
"""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serving.job_blobs import erase_blobs, open_blobs, pack_upload
from serving.job_store import JobStore, Submission
from serving.job_table import Job, open_engine
from serving.schema import GenerationFields
from serving.settings import JobSettings
from serving.vault import KeyDestroyed

logger = logging.getLogger(__name__)
Value = TypeVar("Value")

# with the hashing of a body and the answer itself this stays below 2 s
_ANSWER_S = 1.7
_BYTES_PER_S = 20e6
_ERASE_ALL_S = 30.0
_N_THREADS = 16


class JobDesk:
    """Jobs as the HTTP interface sees them. Methods raise `OSError` when the store cannot be used.

    Parameters
    ----------
    settings : JobSettings
    """

    def __init__(self, settings: JobSettings) -> None:
        self._settings = settings
        self._store = JobStore(open_engine(settings.database, settings.folder))
        self._blobs = open_blobs(settings)
        # of its own: a database that hangs must not use up the threads of everything else
        self._threads = ThreadPoolExecutor(_N_THREADS, thread_name_prefix="jobs")

    def close(self) -> None:
        """Close the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._store.close()

    async def submit(
        self, fields: GenerationFields, contents: Sequence[bytes], *, bundle: str, owner: str = "",
        key: str | None = None,
    ) -> Submission:  # fmt: skip
        """Store a job durably, or find the one that was handed in under `key` before.

        It is decoded with the bundle whose id is `bundle`, whatever is the default by the time it runs.
        """
        n_bytes = sum(map(len, contents))
        given_up = False
        job_id = secrets.token_hex(24)

        def work() -> Submission:
            done = self._submit(job_id, fields, contents, bundle, owner, key)
            if given_up and done.outcome == "created":
                self._erase(job_id, owner)
            return done

        try:
            return await self._within(work, _ANSWER_S + n_bytes / _BYTES_PER_S)
        except TimeoutError:
            given_up = True
            raise

    async def get(self, job_id: str, owner: str = "") -> Job | None:
        """Return a job, or None."""
        return await self._within(lambda: self._store.get(job_id, owner))

    async def ending(self, job: Job) -> bytes | None:
        """Return the stored result or problem of an ended job; None if it was erased meanwhile."""
        try:
            return await self._within(lambda: self._blobs.read("results", job.result, owner=job.owner))
        except (FileNotFoundError, KeyDestroyed):
            return None

    async def preview(self, job: Job) -> bytes | None:
        """Return the newest preview of a job, a PNG; None if there is none any more."""
        try:
            return await self._within(lambda: self._blobs.read("previews", job.id, owner=job.owner))
        except (FileNotFoundError, KeyDestroyed):
            return None

    async def erase(self, job_id: str, owner: str = "") -> bool:
        """Remove a job and everything of it; False if there is none."""
        return await self._within(lambda: self._erase(job_id, owner))

    async def erase_all(self, owner: str = "") -> int:
        """Remove every job of an owner, everything of them, and the owner's key; return how many jobs there were."""
        return await self._within(lambda: self._erase_all(owner), _ERASE_ALL_S)

    async def counts(self) -> dict[str, int]:
        """Return how many jobs are in each state."""
        return await self._within(self._store.counts)

    async def _within(self, work: Callable[[], Value], seconds: float = _ANSWER_S) -> Value:
        """Run blocking work in a thread and stop waiting for it after `seconds`, with TimeoutError (an OSError)."""

        def prepared() -> Value:
            self._blobs.prepare()
            return work()

        return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self._threads, prepared), seconds)

    def _submit(
        self, job_id: str, fields: GenerationFields, contents: Sequence[bytes], bundle: str, owner: str, key: str | None
    ) -> Submission:
        body_hash = _body_hash(fields, contents)
        # the key may hold anything, a name even: only its hash is kept
        key_hash = None if key is None else hashlib.sha256(key.encode()).hexdigest()
        known = self._store.with_key(owner, key_hash)
        if known is not None:
            return Submission("known" if known.body_hash == body_hash else "other_body", known)
        blob = pack_upload(fields, contents)
        job = Job(job_id, owner, key_hash, body_hash, bundle, len(blob))
        self._blobs.write("uploads", job_id, blob, owner=owner)
        try:
            done = self._store.submit(
                job,
                keep_s=self._settings.keep_s,
                max_jobs=self._settings.max_unfinished,
                max_bytes=int(self._settings.max_unfinished_mb * 2**20),
            )
        except OSError:
            # a connection can be lost after the commit: the upload goes only if there is surely no row
            if self._store.get(job_id, owner) is None:
                self._blobs.remove("uploads", job_id)
            raise
        if done.outcome != "created":
            self._blobs.remove("uploads", job_id)
        return done

    def _erase(self, job_id: str, owner: str) -> bool:
        job = self._store.erase(job_id, owner)
        if job is not None:
            erase_blobs(self._blobs, job)
        return job is not None

    def _erase_all(self, owner: str) -> int:
        jobs = self._store.erase_all(owner)
        # before the files: from here on nobody can read what is left, in backups either
        self._blobs.destroy_key(owner)
        for job in jobs:
            erase_blobs(self._blobs, job)
        self._store.shrink()
        return len(jobs)


def _body_hash(fields: GenerationFields, contents: Sequence[bytes]) -> str:
    digest = hashlib.sha256(fields.model_dump_json().encode())
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
