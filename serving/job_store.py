"""The queue of jobs in a database: taken in once, leased to workers, ended once, erased.

Every method is one transaction and raises `OSError` when the database cannot be used, whatever its reason. The rule
of retries: a run counts as an attempt unless it was cut off together with the whole service; a job whose first run was
cut off runs again with nothing beside it, so that the one that kills its process is known after two attempts.
"""

import errno
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from sqlalchemy import Connection, Engine, Select, func, select, update
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from serving.job_schema import ENDED
from serving.job_table import JOBS, METADATA, Job, clock, serialise, shrink

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 2
# A job that was running whenever the whole service died is not blamed at once, but not for ever either.
MAX_INTERRUPTIONS = 10


@dataclass(frozen=True)
class Submission:
    """What became of a job that was handed in; only ``created`` and ``known`` mean that it is stored."""

    outcome: Literal["created", "known", "other_body", "full", "share_full"]
    job: Job


@dataclass(frozen=True)
class Step:
    """How far a running job is."""

    stage: str
    step: int
    n_steps: int
    preview_step: int = 0


class JobStore:
    """Jobs in a database.

    Parameters
    ----------
    engine : Engine
        From `serving.job_table.open_engine`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prepared = False

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def submit(self, job: Job, *, keep_s: float, max_jobs: int, max_bytes: int) -> Submission:
        """Store a job unless its key is known or the queue is full; durable once this returns.

        One of several owners may fill half of the queue. A service without keys has one owner, whose name is empty.
        """
        with self._writing() as (connection, now):
            known = _with_key(connection, job.owner, job.key_hash)
            if known is not None and known.expires > now:
                return Submission("known" if known.body_hash == job.body_hash else "other_body", known)
            if known is not None:
                connection.execute(JOBS.delete().where(JOBS.c.id == known.id))
            waiting = select(func.count(), func.coalesce(func.sum(JOBS.c.n_bytes), 0)).where(_unfinished())
            n_jobs, n_bytes = connection.execute(waiting).one()
            if n_jobs >= max_jobs or n_bytes + job.n_bytes > max_bytes:
                return Submission("full", job)
            n_jobs, n_bytes = connection.execute(waiting.where(JOBS.c.owner == job.owner)).one()
            if job.owner and (2 * n_jobs >= max_jobs or 2 * (n_bytes + job.n_bytes) > max_bytes):
                return Submission("share_full", job)
            job = replace(job, created=now, expires=now + keep_s)
            connection.execute(JOBS.insert().values(**asdict(job)))
        return Submission("created", job)

    def with_key(self, owner: str, key_hash: str | None) -> Job | None:
        """Return the job that was handed in under a key."""
        with self._reading() as connection:
            job = _with_key(connection, owner, key_hash)
            return job if job is not None and job.expires > clock(connection) else None

    def get(self, job_id: str, owner: str) -> Job | None:
        """Return a job of an owner; None if there is none, or it has expired."""
        with self._reading() as connection:
            job = _one(connection, select(JOBS).where(JOBS.c.id == job_id, JOBS.c.owner == owner))
            return job if job is not None and job.expires > clock(connection) else None

    def erase(self, job_id: str, owner: str) -> Job | None:
        """Remove a job in whatever state; its worker notices at its next beat."""
        with self._writing() as (connection, _):
            job = _one(connection, select(JOBS).where(JOBS.c.id == job_id, JOBS.c.owner == owner))
            if job is not None:
                connection.execute(JOBS.delete().where(JOBS.c.id == job_id))
        return job

    def erase_all(self, owner: str) -> list[Job]:
        """Remove all jobs of an owner and return them."""
        with self._writing() as (connection, _):
            rows = connection.execute(select(JOBS).where(JOBS.c.owner == owner)).mappings().all()
            connection.execute(JOBS.delete().where(JOBS.c.owner == owner))
        return [Job.of(row) for row in rows]

    def work_waits(self, bundles: Sequence[str]) -> bool:
        """Tell, without locking anything, whether `lease` might give a job."""
        with self._reading() as connection:
            now = clock(connection)
            queued = (JOBS.c.status == "queued") & (JOBS.c.not_before <= now)
            lost = (JOBS.c.status == "running") & (JOBS.c.lease_until < now)
            wanted = select(JOBS.c.id).where(JOBS.c.bundle.in_(bundles), queued | lost).limit(1)
            return connection.execute(wanted).first() is not None

    def lease(
        self,
        worker: str,
        stack: str,
        bundles: Sequence[str],
        *,
        n: int,
        lease_s: float,
        keep_s: float,
        held: Sequence[str] = (),
    ) -> list[Job]:
        """Give up to `n` jobs to a worker, after taking back those whose worker was lost.

        Owners take turns: who has fewer jobs running comes first. Within an owner the oldest job comes first.
        Jobs that the worker holds stay its own even if it was held up for longer than its lease. A job that was cut
        off before is given alone: when nothing runs, and nothing is given while it runs.
        """
        with self._writing() as (connection, now):
            running = JOBS.c.status == "running"
            lost = select(JOBS).where(running, JOBS.c.lease_until < now, JOBS.c.id.not_in(held))
            for row in connection.execute(lost).mappings().all():
                alone = row["stack"] == stack
                _take_back(connection, Job.of(row), now, keep_s, blamed=alone, interrupted=not alone)
            here = JOBS.c.bundle.in_(bundles)
            attempts = connection.execute(select(JOBS.c.attempts).where(here, running)).scalars().all()
            if any(n_attempts >= MAX_ATTEMPTS for n_attempts in attempts):
                return []
            ready = select(JOBS).where(here, JOBS.c.status == "queued", JOBS.c.not_before <= now)
            ready = ready.order_by(_turn(), JOBS.c.created)
            suspect = _one(connection, ready.where(JOBS.c.attempts > 0).limit(1))
            if suspect is not None:
                given = [] if attempts else [suspect]
            else:
                given = [Job.of(row) for row in connection.execute(ready.limit(n)).mappings()]
            changes: dict[str, Any] = {"status": "running", "worker": worker, "stack": stack}
            changes |= {"lease_until": now + lease_s, "stage": "", "step": 0, "n_steps": 0, "preview_step": 0}
            changes["attempts"] = JOBS.c.attempts + 1
            if given:
                _change(connection, [job.id for job in given], changes)
        return [replace(job, status="running", attempts=job.attempts + 1, worker=worker) for job in given]

    def beat(self, worker: str, steps: dict[str, Step], held: Sequence[str], *, lease_s: float) -> set[str]:
        """Prolong the leases of the jobs that a worker runs and note progress; return which it still holds."""
        with self._writing() as (connection, now):
            mine = (JOBS.c.worker == worker) & (JOBS.c.status == "running") & JOBS.c.id.in_(held)
            connection.execute(update(JOBS).where(mine).values(lease_until=now + lease_s))
            for job_id, step in steps.items():
                connection.execute(update(JOBS).where(mine, JOBS.c.id == job_id).values(**asdict(step)))
            return set(connection.execute(select(JOBS.c.id).where(mine)).scalars())

    def finish(self, job_id: str, result: str, *, keep_s: float, step: Step | None = None) -> bool:
        """End a job with the name of its result; False if another worker was first or the job was erased."""
        last = {} if step is None else {"stage": step.stage, "step": step.step, "n_steps": step.n_steps}
        return self._end(job_id, {"status": "finished", "result": result} | last, keep_s)

    def fail(self, job_id: str, code: str, result: str, *, keep_s: float) -> bool:
        """End a job with a problem's code; False as for `finish`."""
        return self._end(job_id, {"status": "failed", "code": code, "result": result}, keep_s)

    def give_back(self, job: Job, *, blamed: bool, code: str = "", delay_s: float = 0.0, keep_s: float) -> None:
        """Return a job that this worker could not finish; when `blamed`, its run counts as an attempt.

        At the last attempt it ends as failed, with `code` or as quarantined.
        """
        with self._writing() as (connection, now):
            mine = (JOBS.c.id == job.id) & (JOBS.c.worker == job.worker) & (JOBS.c.status == "running")
            current = _one(connection, select(JOBS).where(mine))
            if current is not None:
                _take_back(connection, current, now, keep_s, blamed=blamed, delay_s=delay_s, code=code)

    def end_without_bundle(self, bundles: Sequence[str], *, waited_s: float, keep_s: float) -> list[Job]:
        """End jobs that no worker runs, were handed in `waited_s` ago or longer, and want none of `bundles`."""
        with self._writing() as (connection, now):
            idle = (JOBS.c.status == "queued") | ((JOBS.c.status == "running") & (JOBS.c.lease_until < now))
            old = (JOBS.c.created < now - waited_s) & JOBS.c.bundle.not_in(bundles)
            rows = connection.execute(select(JOBS).where(idle, old).limit(500)).mappings().all()
            values = {"status": "failed", "code": "bundle_gone", "worker": "", "expires": now + keep_s}
            if rows:
                _change(connection, [row["id"] for row in rows], values)
        return [Job.of(row) for row in rows]

    def sweep(self) -> list[Job]:
        """Remove rows that have expired and return them."""
        with self._writing() as (connection, now):
            rows = connection.execute(select(JOBS).where(JOBS.c.expires <= now).limit(500)).mappings().all()
            jobs = [Job.of(row) for row in rows]
            connection.execute(JOBS.delete().where(JOBS.c.id.in_([job.id for job in jobs])))
        return jobs

    def known(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """Return those of some jobs that exist."""
        found: dict[str, Job] = {}
        with self._reading() as connection:
            for start in range(0, len(job_ids), 500):
                rows = select(JOBS).where(JOBS.c.id.in_(job_ids[start : start + 500]))
                found |= {row["id"]: Job.of(row) for row in connection.execute(rows).mappings()}
        return found

    def counts(self) -> dict[str, int]:
        """Return how many jobs are in each state."""
        with self._reading() as connection:
            rows = connection.execute(select(JOBS.c.status, func.count()).group_by(JOBS.c.status)).all()
            return {status: n for status, n in rows}

    def shrink(self) -> None:
        """Remove what the database keeps of deleted rows, as far as it can be done beside other work."""
        with self._reporting():
            shrink(self._engine)

    def _end(self, job_id: str, values: dict[str, Any], keep_s: float) -> bool:
        with self._writing() as (connection, now):
            values = values | {"worker": "", "expires": now + keep_s}
            done = connection.execute(update(JOBS).where(JOBS.c.id == job_id, _unfinished()).values(**values))
        return done.rowcount == 1

    @contextmanager
    def _writing(self) -> Iterator[tuple[Connection, float]]:
        with self._reporting():
            with self._engine.begin() as connection:
                serialise(connection)
                if not self._prepared:
                    METADATA.create_all(connection)
                yield connection, clock(connection)
            self._prepared = True

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        if not self._prepared:
            with self._writing():
                pass
        with self._reporting(), self._engine.connect().execution_options(reads=True) as connection:
            yield connection

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:  # `shrink` goes past SQLAlchemy
            if type(error) is DatabaseError:
                # the file is damaged; what connections remember of it must not outlast its mending
                self._engine.dispose()
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            if JOBS.name in reason:
                self._prepared = False  # the table is missing: this is another, empty database
            logger.warning("the job store failed: %s: %s", type(error).__name__, reason)
            raise OSError(errno.EIO, f"the job store cannot be used: {reason}") from error


def _turn() -> Any:
    """Number the jobs of each owner from the oldest on, and from those on that the owner has running."""
    others = JOBS.alias()
    running = select(func.count()).where(others.c.owner == JOBS.c.owner, others.c.status == "running")
    line = func.row_number().over(partition_by=JOBS.c.owner, order_by=JOBS.c.created)
    return line + running.scalar_subquery()


def _unfinished() -> Any:
    return JOBS.c.status.not_in(ENDED)


def _one(connection: Connection, query: Select[Any]) -> Job | None:
    row = connection.execute(query).mappings().first()
    return None if row is None else Job.of(row)


def _with_key(connection: Connection, owner: str, key_hash: str | None) -> Job | None:
    if key_hash is None:
        return None
    return _one(connection, select(JOBS).where(JOBS.c.owner == owner, JOBS.c.key_hash == key_hash))


def _change(connection: Connection, job_ids: Sequence[str], values: dict[str, Any]) -> None:
    connection.execute(update(JOBS).where(JOBS.c.id.in_(job_ids)).values(**values))


def _take_back(
    connection: Connection,
    job: Job,
    now: float,
    keep_s: float,
    *,
    blamed: bool,
    interrupted: bool = False,
    delay_s: float = 0.0,
    code: str = "",
) -> None:
    """Queue a running job again, or end it when its attempts are used up."""
    attempts = job.attempts if blamed else job.attempts - 1
    interruptions = job.interruptions + interrupted
    values: dict[str, Any] = {"status": "queued", "worker": "", "not_before": now + delay_s}
    if (blamed and attempts >= MAX_ATTEMPTS) or interruptions > MAX_INTERRUPTIONS:
        values = {"status": "failed", "code": code or "quarantined", "worker": "", "expires": now + keep_s}
    _change(connection, [job.id], values | {"attempts": attempts, "interruptions": interruptions})
