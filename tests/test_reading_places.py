"""Places for reading: never more than there are, none lost, and nobody's line is in front of all others'."""

import asyncio
import random
import time

import pytest

from serving.reading_places import ReadingPlaces


def test_owners_take_turns() -> None:
    async def main() -> list[str]:
        places, order = ReadingPlaces(1, 10.0), []

        async def read(owner: str) -> None:
            async with places.place(owner):
                order.append(owner)
                await asyncio.sleep(0.01)

        await asyncio.gather(*(read(owner) for owner in "aaaaaabbc"))
        return order

    assert "".join(asyncio.run(main())) == "aabcabaaa"


def test_who_waits_too_long_is_told_and_takes_no_place() -> None:
    async def main() -> float:
        places = ReadingPlaces(1, 0.2)
        async with places.place("a"):
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                async with places.place("b"):
                    raise AssertionError("there was no place")
            waited_s = time.monotonic() - started
        async with places.place("b"):
            return waited_s

    assert 0.2 <= asyncio.run(main()) < 5.0


@pytest.mark.parametrize("seed", range(5))
def test_whoever_leaves_when_ever_no_place_is_lost_or_doubled(seed: int) -> None:
    rng = random.Random(seed)
    n_places, n_held, most = 3, 0, 0

    async def main() -> None:
        places = ReadingPlaces(n_places, 0.02)

        async def read() -> None:
            nonlocal n_held, most
            async with places.place(rng.choice("abc")):
                n_held += 1
                most = max(most, n_held)
                try:
                    await asyncio.sleep(rng.choice((0.0, 0.001, 0.005)))
                finally:
                    n_held -= 1

        tasks = []
        for _ in range(300):
            tasks.append(asyncio.create_task(read()))
            if rng.random() < 0.5:
                rng.choice(tasks).cancel()
            if rng.random() < 0.3:
                await asyncio.sleep(0)
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} <= {type(None), asyncio.CancelledError, TimeoutError}
        assert n_held == 0 and most == n_places
        for _ in range(n_places):
            await asyncio.wait_for(places.place("d").__aenter__(), 1.0)

    asyncio.run(main())
