"""The queue of jobs on SQLite and on a real PostgreSQL server: one owner per job, one end, bounded attempts."""

import hashlib
import multiprocessing
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from postgres_server import PostgresServer

from serving.job_store import MAX_INTERRUPTIONS, JobStore, Step, Submission
from serving.job_table import Job, open_engine

LEASE_S, KEEP_S = 30.0, 600.0
Open = Callable[[], JobStore]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/jobs.sqlite"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    server.empty()
    yield server.url


@pytest.fixture
def store(database: str) -> Iterator[JobStore]:
    opened = JobStore(open_engine(database, ""))
    yield opened
    opened.close()


def job(number: int, *, key: str | None = None, body: str = "body", n_bytes: int = 10, owner: str = "") -> Job:
    job_id = hashlib.sha256(str(number).encode()).hexdigest()[:48]
    return Job(job_id, owner, key, body, "b", n_bytes)


def hand_in(store: JobStore, new: Job, *, keep_s: float = KEEP_S, max_jobs: int = 100) -> Submission:
    return store.submit(new, keep_s=keep_s, max_jobs=max_jobs, max_bytes=10_000)


def take(store: JobStore, worker: str, *, stack: str = "s", n: int = 10, lease_s: float = LEASE_S) -> list[Job]:
    return store.lease(worker, stack, ("b",), n=n, lease_s=lease_s, keep_s=KEEP_S)


def ids(*numbers: int) -> list[str]:
    return [job(number).id for number in numbers]


def test_a_job_is_found_again_by_another_process_and_only_by_its_owner(store: JobStore, database: str) -> None:
    assert hand_in(store, job(1)).outcome == "created"
    code = (
        "import sys; from serving.job_store import JobStore; from serving.job_table import open_engine\n"
        "print(JobStore(open_engine(sys.argv[1], '')).get(sys.argv[2], '').status)"
    )
    command = [sys.executable, "-c", code, database, job(1).id]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "queued"
    assert store.get(job(1).id, "somebody else") is None
    assert store.get(job(2).id, "") is None


def test_one_key_twenty_times_at_once_is_one_job(store: JobStore) -> None:
    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(lambda number: hand_in(store, job(number, key="k")), range(20)))
    assert sorted(one.outcome for one in done) == ["created"] + 19 * ["known"]
    assert len({one.job.id for one in done}) == 1
    assert store.counts() == {"queued": 1}
    assert hand_in(store, job(99, key="k", body="another")).outcome == "other_body"


def test_the_queue_is_bounded_in_jobs_and_bytes(store: JobStore) -> None:
    assert [hand_in(store, job(n), max_jobs=2).outcome for n in range(3)] == ["created", "created", "full"]
    assert hand_in(store, job(4, n_bytes=9_990)).outcome == "full"
    (first,) = take(store, "w", n=1)
    assert hand_in(store, job(5), max_jobs=2).outcome == "full", "a running job takes its place"
    store.finish(first.id, "r", keep_s=KEEP_S)
    assert hand_in(store, job(5), max_jobs=2).outcome == "created"


def test_one_of_several_owners_fills_half_of_the_queue(store: JobStore) -> None:
    heavy = [hand_in(store, job(n, owner="anna"), max_jobs=6).outcome for n in range(4)]
    assert heavy == ["created"] * 3 + ["share_full"]
    assert hand_in(store, job(5, owner="ben", n_bytes=5_001)).outcome == "share_full"
    assert hand_in(store, job(5, owner="ben"), max_jobs=6).outcome == "created"
    (first,) = take(store, "w", n=1)
    store.finish(first.id, "r", keep_s=KEEP_S)
    assert hand_in(store, job(3, owner="anna"), max_jobs=6).outcome == "created"


def test_owners_take_turns(store: JobStore) -> None:
    for number in range(6):
        assert hand_in(store, job(number, owner="anna")).outcome == "created"
    for number, owner in ((6, "ben"), (7, "ben"), (8, "cleo")):
        assert hand_in(store, job(number, owner=owner)).outcome == "created"
    assert [one.id for one in take(store, "w1", n=3)] == ids(0, 6, 8), "late owners do not wait for anna's six"
    assert [one.id for one in take(store, "w2", n=4)] == ids(1, 7, 2, 3), "anna and ben have one running each"
    for number in (0, 1, 2, 3):
        store.finish(job(number).id, "r", keep_s=KEEP_S)
    hand_in(store, job(9, owner="ben"))
    assert [one.id for one in take(store, "w1", n=9)] == ids(4, 5, 9), "ben has two running"


def _drain(database: str, name: str, taken: "multiprocessing.Queue[str]") -> None:
    store = JobStore(open_engine(database, ""))
    while True:
        leased = take(store, name, n=3)
        if not leased:
            break
        for one in leased:
            taken.put(one.id)
            store.finish(one.id, name, keep_s=KEEP_S)
    store.close()


def test_processes_that_race_take_every_job_once(store: JobStore, database: str) -> None:
    for number in range(60):
        hand_in(store, job(number))
    context = multiprocessing.get_context("spawn")
    taken: multiprocessing.Queue[str] = context.Queue()
    racers = [context.Process(target=_drain, args=(database, f"w{n}", taken)) for n in range(2)]
    for racer in racers:
        racer.start()
    got = [taken.get(timeout=60.0) for _ in range(60)]
    for racer in racers:
        racer.join(timeout=30.0)
        assert racer.exitcode == 0
    assert sorted(got) == sorted(ids(*range(60))) and taken.empty()
    assert store.counts() == {"finished": 60}


def test_the_oldest_goes_first_and_other_bundles_are_left_alone(store: JobStore) -> None:
    for number in (3, 1, 2):
        hand_in(store, job(number))
    assert store.lease("w", "s", ("another",), n=5, lease_s=LEASE_S, keep_s=KEEP_S) == []
    assert [one.id for one in take(store, "w", n=2)] == ids(3, 1)


def test_a_lease_that_ran_out_is_given_again_and_the_second_loss_is_quarantine(store: JobStore) -> None:
    hand_in(store, job(1))
    (first,) = take(store, "w1", lease_s=0.05)
    assert first.attempts == 1
    time.sleep(0.1)
    (second,) = take(store, "w2", lease_s=0.05)
    assert second.attempts == 2
    time.sleep(0.1)
    assert take(store, "w3") == []
    ended = store.get(job(1).id, "")
    assert ended is not None and (ended.status, ended.code, ended.attempts) == ("failed", "quarantined", 2)


def test_a_death_of_the_whole_service_is_not_held_against_a_job(store: JobStore) -> None:
    hand_in(store, job(1))
    for number in range(MAX_INTERRUPTIONS + 1):
        (again,) = take(store, f"w{number}", stack=f"stack {number}", lease_s=0.02)
        assert again.attempts == 1
        time.sleep(0.04)
    assert take(store, "last", stack="last") == []
    ended = store.get(job(1).id, "")
    assert ended is not None and ended.code == "quarantined"


def test_a_worker_that_beats_keeps_its_jobs_and_tells_progress(store: JobStore) -> None:
    hand_in(store, job(1))
    take(store, "w1", lease_s=0.2)
    for step in range(6):
        time.sleep(0.1)
        steps = {job(1).id: Step("generate", step, 6)}
        assert store.beat("w1", steps, ids(1), lease_s=0.2) == set(ids(1))
        assert take(store, "w2") == []
    running = store.get(job(1).id, "")
    assert running is not None and (running.stage, running.step, running.n_steps) == ("generate", 5, 6)


def test_a_worker_held_up_beyond_its_lease_does_not_take_its_own_job_twice(store: JobStore) -> None:
    hand_in(store, job(1))
    take(store, "w1", lease_s=0.01)
    time.sleep(0.05)
    assert store.lease("w1", "s", ("b",), n=5, lease_s=LEASE_S, keep_s=KEEP_S, held=ids(1)) == []


def test_a_job_that_was_cut_off_runs_alone(store: JobStore) -> None:
    for number in range(4):
        hand_in(store, job(number))
    mates = take(store, "w1", n=3)
    for one in mates:
        store.give_back(one, blamed=True, keep_s=KEEP_S)
    for number in range(3):
        (alone,) = take(store, "w2", n=10)
        assert alone.id == ids(number)[0] and alone.attempts == 2
        assert take(store, "w3", n=10) == [], "nothing beside a suspect"
        store.finish(alone.id, "r", keep_s=KEEP_S)
    assert [one.id for one in take(store, "w3")] == ids(3)


def test_a_suspect_waits_until_nothing_runs(store: JobStore) -> None:
    for number in range(3):
        hand_in(store, job(number))
    first, second = take(store, "w1", n=2)
    store.give_back(first, blamed=True, keep_s=KEEP_S)
    assert take(store, "w2") == [], "one is still running, and fresh jobs must not keep the suspect waiting"
    store.finish(second.id, "r", keep_s=KEEP_S)
    assert [one.id for one in take(store, "w2")] == [first.id]


def test_a_job_given_back_unblamed_is_as_new(store: JobStore) -> None:
    hand_in(store, job(1))
    for _ in range(4):
        (one,) = take(store, "w")
        assert one.attempts == 1
        store.give_back(one, blamed=False, keep_s=KEEP_S)
    (one,) = take(store, "w")
    store.give_back(one, blamed=False, delay_s=0.3, keep_s=KEEP_S)
    assert take(store, "w") == [] and not store.work_waits(("b",))
    time.sleep(0.35)
    assert store.work_waits(("b",)) and len(take(store, "w")) == 1


def test_the_first_to_end_a_job_wins(store: JobStore) -> None:
    hand_in(store, job(1))
    take(store, "w1", lease_s=0.01)
    time.sleep(0.05)
    take(store, "w2")
    assert store.finish(job(1).id, "by w1", keep_s=KEEP_S), "late, but nobody was faster"
    assert not store.finish(job(1).id, "by w2", keep_s=KEEP_S)
    assert not store.fail(job(1).id, "internal_error", "", keep_s=KEEP_S)
    ended = store.get(job(1).id, "")
    assert ended is not None and (ended.status, ended.result) == ("finished", "by w1")


def test_an_erased_job_is_gone_for_its_worker_too(store: JobStore) -> None:
    hand_in(store, job(1))
    (running,) = take(store, "w1")
    erased = store.erase(running.id, "")
    assert erased is not None and store.erase(running.id, "") is None
    assert store.beat("w1", {}, [running.id], lease_s=LEASE_S) == set()
    assert not store.finish(running.id, "r", keep_s=KEEP_S)
    store.give_back(running, blamed=True, keep_s=KEEP_S)
    assert store.counts() == {}


def test_an_expired_job_is_not_shown_and_then_removed_and_its_key_is_free(store: JobStore) -> None:
    hand_in(store, job(1, key="k"), keep_s=0.1)
    hand_in(store, job(2))
    time.sleep(0.15)
    assert store.get(job(1).id, "") is None
    assert hand_in(store, job(3, key="k", body="another")).outcome == "created"
    hand_in(store, job(4), keep_s=0.05)
    time.sleep(0.1)
    assert [one.id for one in store.sweep()] == ids(4)
    assert sorted(store.known(ids(1, 2, 3, 4))) == sorted(ids(2, 3))


def test_the_end_of_a_job_starts_its_time_again(store: JobStore) -> None:
    hand_in(store, job(1), keep_s=5.0)
    take(store, "w")
    store.finish(job(1).id, "r", keep_s=1000.0)
    ended = store.get(job(1).id, "")
    assert ended is not None and ended.expires - ended.created > 900.0


def test_a_locked_sqlite_is_told_within_two_seconds_and_works_again(tmp_path: Path) -> None:
    store = JobStore(open_engine("", str(tmp_path)))
    hand_in(store, job(1))
    other = sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    with pytest.raises(OSError, match="locked"):
        hand_in(store, job(2))
    assert time.monotonic() - started < 2.0
    other.execute("ROLLBACK")
    other.close()
    assert hand_in(store, job(2)).outcome == "created"
    store.close()


def test_a_sqlite_that_was_taken_away_takes_nothing_in_until_it_is_back(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    store = JobStore(open_engine("", str(tmp_path / "jobs")))
    hand_in(store, job(1))
    (tmp_path / "away").mkdir()
    for file in (tmp_path / "jobs").iterdir():
        file.rename(tmp_path / "away" / file.name)
    for _ in range(2):
        with pytest.raises(OSError, match="job store"):
            hand_in(store, job(2))
        with pytest.raises(OSError, match="job store"):
            store.get(job(1).id, "")
        with pytest.raises(OSError, match="job store"):
            store.shrink()
    assert list((tmp_path / "jobs").iterdir()) == [], "an empty database would pass for the one that is gone"
    for file in (tmp_path / "away").iterdir():
        file.rename(tmp_path / "jobs" / file.name)
    assert hand_in(store, job(2)).outcome == "created"
    again = JobStore(open_engine("", str(tmp_path / "jobs")))
    assert set(again.known(ids(1, 2))) == set(ids(1, 2))
    again.close()
    store.close()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_damaged_sqlite_works_again_once_a_copy_is_put_back(tmp_path: Path, in_place: bool) -> None:
    stores = [JobStore(open_engine("", str(tmp_path))) for _ in range(2)]
    hand_in(stores[0], job(1))
    assert stores[1].get(job(1).id, "") is not None
    file, copy = tmp_path / "jobs.sqlite", tmp_path / "copy"
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    for part in tmp_path.glob("jobs.sqlite*"):
        part.write_bytes(b"junk" * 5000)
    for store in stores:
        with pytest.raises(OSError, match="job store"):
            store.get(job(1).id, "")
    for part in tmp_path.glob("jobs.sqlite-*"):
        part.unlink()
    if in_place:
        file.write_bytes(copy.read_bytes())
    else:
        copy.rename(file)
    for number, store in enumerate(stores):
        assert hand_in(store, job(2 + number)).outcome == "created"
    for store in stores:
        assert set(store.known(ids(1, 2, 3))) == set(ids(1, 2, 3))
        store.close()


def test_sqlite_commits_are_synced_and_deleted_rows_are_overwritten(tmp_path: Path) -> None:
    engine = open_engine("", str(tmp_path))
    with engine.connect() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "secure_delete")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1}
    engine.dispose()
    store = JobStore(open_engine("", str(tmp_path)))
    hand_in(store, job(1, body="CANARY-BODY-HASH"))
    store.erase(job(1).id, "")
    store.shrink()
    on_disk = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"CANARY" not in on_disk and job(1).id.encode() not in on_disk
    store.close()


def test_a_postgresql_that_goes_away_is_told_and_used_again_when_back(postgres: PostgresServer) -> None:
    postgres.empty()
    store = JobStore(open_engine(postgres.url, ""))
    hand_in(store, job(1))
    postgres.stop()
    try:
        started = time.monotonic()
        with pytest.raises(OSError, match="job store"):
            store.get(job(1).id, "")
        assert time.monotonic() - started < 2.0
    finally:
        postgres.start()
    found = store.get(job(1).id, "")
    assert found is not None, "what was committed survived the crash of the server"
    store.close()


def test_another_kind_of_database_is_refused() -> None:
    with pytest.raises(ValueError, match="expected postgresql or sqlite"):
        open_engine("mysql://root@localhost/jobs", "")


def test_jobs_end_without_their_bundle_unless_they_are_young_or_run(store: JobStore) -> None:
    for number in range(3):
        hand_in(store, job(number))
    (running,) = take(store, "w", n=1)
    assert store.end_without_bundle(("b", "c"), waited_s=0.0, keep_s=KEEP_S) == []
    assert store.end_without_bundle(("c",), waited_s=60.0, keep_s=KEEP_S) == []
    assert {one.id for one in store.end_without_bundle(("c",), waited_s=0.0, keep_s=KEEP_S)} == set(ids(1, 2))
    found = store.get(job(1).id, "")
    assert found is not None and (found.status, found.code) == ("failed", "bundle_gone")
    assert store.finish(running.id, "r", keep_s=KEEP_S)
