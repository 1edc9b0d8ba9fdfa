"""Workers in processes of their own that are killed, raced, starved of their store and fed poison."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from job_process import BUNDLE
from postgres_server import PostgresServer

from serving.access_settings import EncryptionSettings
from serving.job_desk import JobDesk
from serving.job_schema import ENDED
from serving.job_table import Job
from serving.job_worker import JobWorker
from serving.problems import refusal
from serving.schema import GenerationFields, GenerationResponse
from serving.settings import JobSettings
from serving.vault import Vault, new_master_key

ROOT = Path(__file__).resolve().parents[1]


class Workers:
    """Worker processes on one folder, and a desk to hand jobs in."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        fast = {"folder": str(folder), "lease_s": 1.0, "beat_s": 0.1, "sweep_s": 0.5}
        self.settings = JobSettings.model_validate(fast | settings)
        self.desk = JobDesk(self.settings)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, stack: str = "stack") -> subprocess.Popen[bytes]:
        command = [sys.executable, str(ROOT / "tests" / "job_process.py"), self.settings.model_dump_json(), stack]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        self.processes.append(process)
        return process

    def submit(self, order: str, seed: int = 0, *, bundle: str = BUNDLE) -> str:
        done = asyncio.run(self.desk.submit(GenerationFields(seed=seed), [order.encode()], bundle=bundle))
        assert done.outcome == "created"
        return done.job.id

    def job(self, job_id: str) -> Job | None:
        return asyncio.run(self.desk.get(job_id))

    def wait(self, job_id: str, *, until: Callable[[Job], bool] | None = None, seconds: float = 30.0) -> Job:
        deadline = time.monotonic() + seconds
        while True:
            job = self.job(job_id)
            assert job is not None
            if (until or (lambda one: one.status in ENDED))(job):
                return job
            assert time.monotonic() < deadline, job
            time.sleep(0.05)

    def result(self, job_id: str) -> dict[str, Any]:
        job = self.wait(job_id)
        content = asyncio.run(self.desk.ending(job))
        return json.loads(content) if content else {}

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self.desk.close()


@pytest.fixture
def workers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workers]:
    """On SQLite, or on a real server where a test asks for "postgresql"."""
    database = ""
    if getattr(request, "param", "sqlite") == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        server.empty()
        database = server.url
    opened = Workers(tmp_path / "jobs", database=database)
    yield opened
    opened.close()


on_both_stores = pytest.mark.parametrize("workers", ["sqlite", "postgresql"], indirect=True)


def files(workers: Workers, kind: str) -> list[str]:
    return sorted(os.listdir(Path(workers.settings.folder) / kind))


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_ends_with_its_result_and_its_upload_is_erased(workers: Workers) -> None:
    job_id = workers.submit("ok 7")
    refused = workers.submit("refuse")
    assert len(files(workers, "uploads")) == 2
    workers.start()
    answer = workers.result(job_id)
    assert (answer["seed"], answer["id"]) == (7, job_id)
    problem = workers.result(refused)
    assert problem["code"] == workers.wait(refused).code == "epochs_mismatch"
    wait_until(lambda: files(workers, "uploads") == [])


def test_a_beat_between_the_end_of_a_job_and_the_erasing_of_its_upload_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Workers(tmp_path / "jobs", sweep_s=3600.0)
    opened.submit("any")

    async def answer(*_: Any, **__: Any) -> GenerationResponse:
        raise refusal("bad_field", "refused")

    async def work() -> None:
        worker = JobWorker(opened.settings, answer, bundles=lambda: (BUNDLE,), stack="stack")
        fail = worker._store.fail

        def slow(*arguments: Any, **options: Any) -> bool:
            first = fail(*arguments, **options)
            time.sleep(5 * opened.settings.beat_s)
            return first

        monkeypatch.setattr(worker._store, "fail", slow)
        running = asyncio.create_task(worker.run())
        await asyncio.to_thread(wait_until, lambda: not files(opened, "uploads"), 10.0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    try:
        asyncio.run(work())
    finally:
        opened.close()


def test_a_job_whose_owner_was_forgotten_and_came_back_has_lost_its_upload(tmp_path: Path) -> None:
    new_master_key(tmp_path / "master.key")
    keys = EncryptionSettings(master_key_file=str(tmp_path / "master.key"), key_folder=str(tmp_path / "keys"))
    opened = Workers(tmp_path / "jobs", encryption=keys)
    try:
        before = opened.submit("ok 1")
        Vault(keys.master_key_file, keys.key_folder).destroy("")  # as if between the upload and the row
        after = opened.submit("ok 2")
        opened.start()
        assert opened.result(after)["seed"] == 2
        job = opened.wait(before)
        assert (job.status, job.code, job.attempts, job.result) == ("failed", "upload_lost", 1, "")
        wait_until(lambda: files(opened, "uploads") == [])
    finally:
        opened.close()


@on_both_stores
def test_a_worker_killed_in_the_middle_of_jobs_loses_none(workers: Workers) -> None:
    jobs = [workers.submit("slow 1", seed=seed) for seed in range(6)]
    victim = workers.start()
    workers.wait(jobs[0], until=lambda job: job.stage == "generate" and job.step > 2)
    victim.send_signal(signal.SIGKILL)
    workers.start(stack="started again")
    assert [workers.result(job_id)["seed"] for job_id in jobs] == list(range(6))
    assert {workers.wait(job_id).attempts for job_id in jobs} == {1}, "the whole service died: nobody is blamed"


@on_both_stores
def test_the_job_that_kills_its_worker_is_found_and_its_mates_finish(workers: Workers) -> None:
    mates = [workers.submit("slow 0.5", seed=seed) for seed in range(3)]
    poison = workers.submit("kill")
    mates += [workers.submit("slow 0.5", seed=seed) for seed in range(3, 7)]
    n_deaths = 0
    deadline = time.monotonic() + 60.0
    process = workers.start()
    while any(workers.wait(job_id, until=lambda job: True).status not in ENDED for job_id in [poison, *mates]):
        if process.poll() is not None:
            n_deaths += 1
            process = workers.start()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ended = workers.wait(poison)
    assert (ended.status, ended.code, ended.attempts) == ("failed", "quarantined", 2)
    assert n_deaths == 2
    assert [workers.result(job_id)["seed"] for job_id in mates] == list(range(7))


@pytest.mark.parametrize(
    ("order", "code"), [("error", "internal_error"), ("lost", "quarantined"), ("no-room", "uploads_down")]
)
def test_what_may_pass_is_tried_twice(workers: Workers, order: str, code: str) -> None:
    bad, good = workers.submit(order), workers.submit("ok 1")
    process = workers.start()
    ended = workers.wait(bad)
    assert (ended.status, ended.code, ended.attempts) == ("failed", code, 2)
    assert workers.wait(good).status == "finished"
    assert process.poll() is None


def test_a_full_queue_of_the_models_costs_no_attempt(workers: Workers, tmp_path: Path) -> None:
    room = tmp_path / "room"
    job_id = workers.submit(f"busy {room}")
    workers.start()
    time.sleep(1.5)
    assert workers.wait(job_id, until=lambda job: True).status in ("queued", "running")
    room.touch()
    assert workers.wait(job_id).attempts == 1


def test_two_workers_share_the_jobs_and_each_runs_once(workers: Workers) -> None:
    workers.start("one")
    workers.start("two")
    jobs = [workers.submit("slow 0.5", seed=seed) for seed in range(30)]
    assert [workers.result(job_id)["seed"] for job_id in jobs] == list(range(30))
    assert {workers.wait(job_id).attempts for job_id in jobs} == {1}
    winners = {name.split(".")[1] for name in files(workers, "results")}
    assert len(files(workers, "results")) == 30 and len(winners) == 2


def test_a_worker_that_was_stopped_for_long_does_no_harm(workers: Workers) -> None:
    job_id = workers.submit("slow 2")
    sleeper = workers.start("one")
    workers.wait(job_id, until=lambda job: job.step > 1)
    sleeper.send_signal(signal.SIGSTOP)
    workers.start("two")
    workers.wait(job_id, until=lambda job: job.stack == "two")
    sleeper.send_signal(signal.SIGCONT)
    assert workers.wait(job_id).status == "finished"
    wait_until(lambda: len(files(workers, "results")) == 1)
    assert sleeper.poll() is None


def test_erasing_a_running_job_stops_it_and_leaves_nothing(workers: Workers) -> None:
    job_id = workers.submit("slow 30")
    workers.start()
    workers.wait(job_id, until=lambda job: job.preview_step > 0)
    assert asyncio.run(workers.desk.erase(job_id))
    assert workers.job(job_id) is None and not asyncio.run(workers.desk.erase(job_id))
    assert files(workers, "uploads") == []
    time.sleep(0.5)
    started = time.monotonic()
    assert workers.result(workers.submit("ok 1"))["seed"] == 1
    assert time.monotonic() - started < 5.0
    assert len(files(workers, "results")) == 1


def test_a_worker_asked_to_end_gives_its_jobs_back_unblamed(workers: Workers) -> None:
    job_id = workers.submit("slow 2")
    first = workers.start()
    workers.wait(job_id, until=lambda job: job.step > 1)
    first.send_signal(signal.SIGINT)
    first.wait(timeout=10.0)
    queued = workers.wait(job_id, until=lambda job: job.status == "queued", seconds=0.5)
    assert queued.attempts == 0
    workers.start()
    assert workers.wait(job_id).attempts == 1


def test_a_job_that_runs_too_long_is_ended(tmp_path: Path) -> None:
    workers = Workers(tmp_path / "jobs", timeout_s=0.5)
    try:
        job_id = workers.submit("slow 60")
        workers.start()
        assert workers.result(job_id)["code"] == "timed_out"
    finally:
        workers.close()


def test_results_expire_across_restarts(workers: Workers) -> None:
    job_id = workers.submit("ok 1")
    workers.start()
    workers.wait(job_id)
    workers.processes[0].kill()
    with sqlite3.connect(Path(workers.settings.folder) / "jobs.sqlite") as database:
        (kept_s,) = database.execute("SELECT expires - created FROM phosphene_jobs").fetchone()
        database.execute("UPDATE phosphene_jobs SET expires = expires - 86400")
    database.close()
    assert 86400 <= kept_s < 86460, "a day by default, from its end on"
    assert workers.job(job_id) is None
    assert len(files(workers, "results")) == 1
    workers.start("again")
    wait_until(lambda: files(workers, "results") == [])


def test_a_store_taken_away_is_waited_for_with_the_result_in_hand(workers: Workers) -> None:
    job_id = workers.submit("slow 1", seed=5)
    process = workers.start()
    workers.wait(job_id, until=lambda job: job.step > 1)
    folder = Path(workers.settings.folder)
    (folder / "results").rename(folder / "away")
    time.sleep(3.0)
    assert workers.wait(job_id, until=lambda job: True).status == "running"
    (folder / "away").rename(folder / "results")
    assert workers.result(job_id)["seed"] == 5
    assert process.poll() is None and workers.wait(job_id).attempts == 1


def test_a_job_whose_bundle_has_gone_fails_after_a_while_and_is_never_run(tmp_path: Path) -> None:
    workers = Workers(tmp_path, unserved_s=1.5)
    try:
        gone, kept = workers.submit("ok 1", bundle="another"), workers.submit("ok 2")
        workers.start()
        assert workers.wait(kept).status == "finished"
        job = workers.wait(gone)
        assert (job.status, job.code, job.attempts) == ("failed", "bundle_gone", 0)
        waited_s = job.expires - workers.settings.keep_s - job.created
        assert waited_s >= 1.5, "who takes jobs in may know a bundle earlier than who runs them"
        wait_until(lambda: files(workers, "uploads") == [])
    finally:
        workers.close()


def test_jobs_of_other_bundles_can_be_left_alone(tmp_path: Path) -> None:
    workers = Workers(tmp_path, unserved_s=0.0)
    try:
        other = workers.submit("ok 1", bundle="another")
        workers.start()
        workers.wait(workers.submit("slow 1.5"))
        job = workers.job(other)
        assert job is not None and job.status == "queued"
    finally:
        workers.close()
