"""Batches of items from concurrent requests: sizes, fairness, errors and cancelling."""

import asyncio
import threading
import time
from collections.abc import Callable, Hashable, Sequence

import pytest

from serving.batching import Batcher


def make_batcher(
    run: Callable[[Sequence[int], Hashable, Callable[[int, int], None]], Sequence[int]],
    *,
    max_batch_size: int = 4,
    max_wait_s: float = 0.05,
    max_waiting: int = 100,
) -> Batcher[int, int]:
    return Batcher(run, max_batch_size=max_batch_size, max_wait_s=max_wait_s, max_waiting=max_waiting)


def test_items_of_concurrent_requests_share_a_batch_and_keep_their_order() -> None:
    batches: list[list[int]] = []

    def double(items: Sequence[int], key: Hashable, on_step: Callable[[int, int], None]) -> list[int]:
        batches.append(list(items))
        return [2 * item for item in items]

    async def main() -> None:
        batcher = make_batcher(double)
        answers = await asyncio.gather(*(batcher.submit([n]) for n in range(4)))
        assert [[result.value for result in answer] for answer in answers] == [[0], [2], [4], [6]]
        assert {result.batch_size for answer in answers for result in answer} == {4}
        await batcher.aclose()

    asyncio.run(main())
    assert batches == [[0, 1, 2, 3]]


def test_a_full_batch_does_not_wait_and_a_lone_item_waits_no_longer_than_told() -> None:
    async def main() -> None:
        batcher = make_batcher(lambda items, key, on_step: list(items), max_batch_size=2, max_wait_s=0.3)
        started = time.monotonic()
        await batcher.submit([1, 2])
        assert time.monotonic() - started < 0.2
        started = time.monotonic()
        await batcher.submit([1])
        assert 0.25 < time.monotonic() - started < 1.0
        await batcher.aclose()

    asyncio.run(main())


def test_requests_take_turns() -> None:
    batches: list[list[int]] = []

    def note(items: Sequence[int], key: Hashable, on_step: Callable[[int, int], None]) -> list[int]:
        batches.append(list(items))
        return list(items)

    async def main() -> None:
        batcher = make_batcher(note, max_batch_size=2, max_wait_s=0.02)
        large = asyncio.create_task(batcher.submit([10, 11, 12, 13]))
        await asyncio.sleep(0)
        small = asyncio.create_task(batcher.submit([20]))
        await asyncio.gather(large, small)
        await batcher.aclose()

    asyncio.run(main())
    assert 20 in batches[0] + batches[1], f"the small request waited behind the large one: {batches}"


def test_different_keys_never_share_a_batch() -> None:
    batches: list[list[int]] = []

    def note(items: Sequence[int], key: Hashable, on_step: Callable[[int, int], None]) -> list[int]:
        batches.append(list(items))
        return list(items)

    async def main() -> None:
        batcher = make_batcher(note)
        await asyncio.gather(
            batcher.submit([1, 2], key="a"), batcher.submit([3], key="b"), batcher.submit([4], key="a")
        )
        await batcher.aclose()

    asyncio.run(main())
    assert sorted(sorted(batch) for batch in batches) == [[1, 2, 4], [3]]


def test_a_bad_item_fails_alone() -> None:
    def refuse_three(items: Sequence[int], key: Hashable, on_step: Callable[[int, int], None]) -> list[int]:
        if 3 in items:
            raise ValueError("three is bad")
        return list(items)

    async def main() -> None:
        batcher = make_batcher(refuse_three)
        answers = await asyncio.gather(*(batcher.submit([n]) for n in (1, 2, 3, 4)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [list, list, ValueError, list]
        assert (await batcher.submit([5]))[0].value == 5
        await batcher.aclose()

    asyncio.run(main())


def test_a_batch_that_nobody_waits_for_ends_at_the_next_step_and_others_go_on() -> None:
    ended = threading.Event()
    steps: list[int] = []

    def slow(items: Sequence[int], key: Hashable, on_step: Callable[[int, int], None]) -> list[int]:
        try:
            for step in range(200):
                time.sleep(0.01)
                steps.append(step)
                on_step(step + 1, 200)
        finally:
            ended.set()
        return list(items)

    async def main() -> None:
        batcher = make_batcher(slow, max_wait_s=0.0)
        task = asyncio.create_task(batcher.submit([1]))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ended.wait, 1.0)
        assert len(steps) < 100
        await batcher.aclose()

    asyncio.run(main())


def test_a_neighbour_that_is_still_wanted_keeps_the_batch_running() -> None:
    def slow(items: Sequence[int], key: Hashable, on_step: Callable[[int, int], None]) -> list[int]:
        for step in range(20):
            time.sleep(0.01)
            on_step(step + 1, 20)
        return list(items)

    async def main() -> None:
        batcher = make_batcher(slow, max_batch_size=2)
        unwanted = asyncio.create_task(batcher.submit([1]))
        wanted = asyncio.create_task(batcher.submit([2]))
        await asyncio.sleep(0.1)
        unwanted.cancel()
        assert (await wanted)[0].value == 2
        await batcher.aclose()

    asyncio.run(main())


def test_steps_are_counted_over_all_items_of_a_request() -> None:
    def stepwise(items: Sequence[int], key: Hashable, on_step: Callable[[int, int], None]) -> list[int]:
        for step in range(5):
            on_step(step + 1, 5)
        return list(items)

    seen: list[tuple[int, int]] = []

    async def main() -> None:
        batcher = make_batcher(stepwise, max_batch_size=2, max_wait_s=0.0)
        await batcher.submit([1, 2, 3], on_step=lambda done, total: seen.append((done, total)))
        await batcher.aclose()

    asyncio.run(main())
    assert [total for _, total in seen] == [15] * 10
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (15, 15)


def test_more_waiting_requests_than_allowed_are_refused() -> None:
    release = threading.Event()

    def hold(items: Sequence[int], key: Hashable, on_step: Callable[[int, int], None]) -> list[int]:
        release.wait(5.0)
        return list(items)

    async def main() -> None:
        batcher = make_batcher(hold, max_batch_size=1, max_wait_s=0.0, max_waiting=2)
        tasks = [asyncio.create_task(batcher.submit([n])) for n in range(6)]
        await asyncio.sleep(0.1)
        refused = [task for task in tasks if task.done() and isinstance(task.exception(), asyncio.QueueFull)]
        assert refused
        release.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(answer, list) for answer in answers) == 6 - len(refused)
        await batcher.aclose()

    asyncio.run(main())
