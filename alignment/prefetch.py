"""Batches read ahead of the training loop, and how long the loop waited for them.

Threads, not processes: epochs are copied from memory-maps, which needs no decoding and lets other threads run, threads
share the checksums already verified, and nothing has to be started or pickled. Batches are pure functions of the step,
so the number of threads changes no result.
"""

import statistics
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

WARM_UP = 2
"""Steps at the start of a run, with first reads and checksums, that its times leave out if there are more."""


@contextmanager
def batches_ahead(read: Callable[[int], Any], first: int, stop: int, n_workers: int) -> Iterator[Iterator[Any]]:
    """Give ``read(first)`` to ``read(stop - 1)`` in order, up to ``2 * n_workers`` of them before they are asked for.

    Parameters
    ----------
    read : callable
        A pure function of the step; called by several threads at once.
    first, stop : int
        Steps.
    n_workers : int
        Threads; 0 reads each batch in the caller's thread when it is asked for.

    Yields
    ------
    iterator
        An error of ``read`` is raised where its batch would have been.
    """
    if n_workers == 0:
        yield map(read, range(first, stop))
        return
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="prefetch")
    try:
        yield _ordered(pool, read, first, stop, 2 * n_workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ordered(
    pool: ThreadPoolExecutor, read: Callable[[int], Any], first: int, stop: int, n_ahead: int
) -> Iterator[Any]:
    pending: deque[Future[Any]] = deque()
    following = first
    for _ in range(first, stop):
        while following < stop and len(pending) < n_ahead:
            pending.append(pool.submit(read, following))
            following += 1
        yield pending.popleft().result()


@dataclass
class StepTimes:
    """Seconds that each step waited for its batch, and that it computed (checkpoints and validation apart)."""

    wait: list[float] = field(default_factory=list)
    compute: list[float] = field(default_factory=list)

    def add(self, wait: float, compute: float) -> None:
        self.wait.append(wait)
        self.compute.append(compute)

    def summary(self) -> dict[str, float]:
        """Give medians in seconds and the share of all time that was spent waiting; empty without a step."""
        if not self.wait:
            return {}
        kept = slice(WARM_UP if len(self.wait) > WARM_UP else 0, None)
        wait, compute = self.wait[kept], self.compute[kept]
        return {
            "median_wait": statistics.median(wait),
            "median_compute": statistics.median(compute),
            "wait_share": sum(wait) / (sum(wait) + sum(compute)),
            "n_steps": len(wait),
        }
