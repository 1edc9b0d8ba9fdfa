"""Batches come in order and ahead of time, errors come at their step, and waiting is measured."""

import threading
import time

import pytest

from alignment.prefetch import StepTimes, batches_ahead


@pytest.mark.parametrize("n_workers", [0, 1, 4])
def test_batches_come_in_order_once_each(n_workers: int) -> None:
    seen: list[int] = []

    def read(step: int) -> int:
        time.sleep(0.002 * (step % 3))  # later ones finish first
        seen.append(step)
        return step * step

    with batches_ahead(read, 5, 30, n_workers) as batches:
        assert list(batches) == [step * step for step in range(5, 30)]
    assert sorted(seen) == list(range(5, 30))


@pytest.mark.parametrize("n_workers", [0, 3])
def test_an_error_is_raised_where_its_batch_would_have_been(n_workers: int) -> None:
    def read(step: int) -> int:
        if step == 4:
            raise ValueError("shard 7 does not match")
        return step

    got = []
    with pytest.raises(ValueError, match="shard 7"), batches_ahead(read, 0, 10, n_workers) as batches:
        for one in batches:
            got.append(one)
    assert got == [0, 1, 2, 3]


def test_threads_read_no_further_than_twice_their_number_and_end_with_the_loop() -> None:
    started: list[int] = []
    with batches_ahead(lambda step: started.append(step), 0, 1000, 2) as batches:
        next(batches)
        time.sleep(0.05)
        assert len(started) <= 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize(("n_workers", "least", "most"), [(0, 0.6, 0.8), (4, 0.0, 0.2)])
def test_four_workers_hide_a_read_of_50_ms_behind_20_ms_of_computing(n_workers: int, least: float, most: float) -> None:
    """The check of R62: 50 of 70 ms are waiting without workers, next to nothing with four (line: 10 %)."""

    def read(step: int) -> int:
        time.sleep(0.05)
        return step

    times = StepTimes()
    with batches_ahead(read, 0, 40, n_workers) as batches:
        for _ in range(40):
            asked = time.monotonic()
            next(batches)
            arrived = time.monotonic()
            time.sleep(0.02)
            times.add(arrived - asked, time.monotonic() - arrived)
    found = times.summary()
    assert least <= found["wait_share"] < most and found["n_steps"] == 38
    assert found["median_compute"] == pytest.approx(0.02, abs=0.01)


def test_nothing_timed_is_nothing_said() -> None:
    assert StepTimes().summary() == {}
    times = StepTimes()
    times.add(1.0, 3.0)
    assert times.summary()["wait_share"] == 0.25
