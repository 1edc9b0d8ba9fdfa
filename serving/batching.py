"""Dynamic batching of independent items from several requests, with per-item errors and cancellation.

Ray Serve's own batching cannot cancel inside a batch, report steps or isolate a failing item, hence this class.
Requests take turns: a batch is filled with one item of each waiting request before any gives a second.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

StepCallback = Callable[[int, int], None]
RunBatch = Callable[[Sequence[Item], Hashable, StepCallback], Sequence[Result]]


@dataclass(frozen=True)
class BatchedResult(Generic[Result]):
    """The result of one item and how many items were computed with it."""

    value: Result
    batch_size: int


@dataclass(eq=False)
class _Ticket(Generic[Item, Result]):
    """One request: its items that still wait, and the futures of all its items."""

    key: Hashable
    waiting: deque[tuple[int, Item]]
    futures: list["asyncio.Future[BatchedResult[Result]]"]
    on_step: StepCallback | None
    progress: list[tuple[int, int]]
    cancelled: bool = False


@dataclass(frozen=True)
class _Slot(Generic[Item, Result]):
    """One place in a batch."""

    ticket: _Ticket[Item, Result]
    index: int
    item: Item = field(repr=False)


class Batcher(Generic[Item, Result]):
    """Collect items of concurrent requests and run them together in a thread.

    Parameters
    ----------
    run_batch : callable (items, key, on_step) -> results
        Runs in a thread, at most one call at a time. It calls ``on_step(step, n_steps)`` after every step and lets
        what that raises pass: this is how a batch that nobody waits for any more ends early.
    max_batch_size : int
        Items per batch.
    max_wait_s : float
        How long the first item of a batch waits for others, in seconds.
    max_waiting : int
        Requests that may wait; one more raises `asyncio.QueueFull`.
    """

    def __init__(
        self, run_batch: RunBatch[Item, Result], *, max_batch_size: int, max_wait_s: float, max_waiting: int
    ) -> None:
        self._run_batch = run_batch
        self._max_batch_size = max_batch_size
        self._max_wait_s = max_wait_s
        self._max_waiting = max_waiting
        self._waiting: deque[_Ticket[Item, Result]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batcher")
        self._worker: asyncio.Task[None] | None = None

    async def submit(
        self, items: Sequence[Item], *, key: Hashable = None, on_step: StepCallback | None = None
    ) -> list[BatchedResult[Result]]:
        """Compute `items`, in batches shared with other requests of the same `key`.

        Cancelling the awaiting task withdraws the items. ``on_step(done, total)`` counts the steps of all items and
        is called in the event loop. If an item fails alone, its error is raised and the other items are withdrawn.
        """
        if len(self._waiting) >= self._max_waiting:
            raise asyncio.QueueFull(f"{self._max_waiting} requests already wait for pictures; try again later")
        loop = asyncio.get_running_loop()
        ticket: _Ticket[Item, Result] = _Ticket(
            key=key,
            waiting=deque(enumerate(items)),
            futures=[loop.create_future() for _ in items],
            on_step=on_step,
            progress=[(0, 1)] * len(items),
        )
        if not items:
            return []
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        self._waiting.append(ticket)
        self._arrived.set()
        try:
            return list(await asyncio.gather(*ticket.futures))
        finally:
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            for future in ticket.futures:
                future.cancel()

    async def aclose(self) -> None:
        """Stop working; requests that wait are cancelled."""
        for ticket in list(self._waiting):
            ticket.cancelled = True
            for future in ticket.futures:
                future.cancel()
        if self._worker is not None:
            self._worker.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        """Run batches until nobody waits; then nothing holds on to what `run_batch` needs."""
        while self._waiting:
            await self._fill()
            batch = self._take()
            if batch:
                await self._run(batch)

    async def _fill(self) -> None:
        """Wait until a batch is full or its first item has waited long enough."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._max_wait_s
        while self._waiting:
            key = self._waiting[0].key
            n_items = sum(len(ticket.waiting) for ticket in self._waiting if ticket.key == key)
            remaining = deadline - loop.time()
            if n_items >= self._max_batch_size or remaining <= 0:
                return
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), remaining)
            except TimeoutError:
                self._arrived.set()

    def _take(self) -> list[_Slot[Item, Result]]:
        """Remove up to one batch from the queue: one item of each request in turn, all of the first key."""
        batch: list[_Slot[Item, Result]] = []
        if not self._waiting:
            return batch
        key = self._waiting[0].key
        turn = deque(ticket for ticket in self._waiting if ticket.key == key)
        while turn and len(batch) < self._max_batch_size:
            ticket = turn.popleft()
            index, item = ticket.waiting.popleft()
            batch.append(_Slot(ticket, index, item))
            if ticket.waiting:
                turn.append(ticket)
        served = {id(slot.ticket) for slot in batch}
        # requests that were served go behind those that were not
        rest = [ticket for ticket in self._waiting if id(ticket) not in served]
        self._waiting = deque(rest + [t for t in self._waiting if id(t) in served and t.waiting])
        return batch

    async def _run(self, batch: list[_Slot[Item, Result]]) -> None:
        batch = [slot for slot in batch if not slot.ticket.cancelled]
        if not batch:
            return
        try:
            results = await self._call(batch)
        except CancelledError:
            return
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            # one bad item must not fail its neighbours: find it by running each alone
            for slot in batch:
                await self._run([slot])
            return
        for slot, result in zip(batch, results, strict=True):
            future = slot.ticket.futures[slot.index]
            if not future.done():
                future.set_result(BatchedResult(result, len(batch)))

    async def _call(self, batch: list[_Slot[Item, Result]]) -> Sequence[Result]:
        loop = asyncio.get_running_loop()

        def on_step(step: int, n_steps: int) -> None:
            if all(slot.ticket.cancelled for slot in batch):
                raise CancelledError("nobody waits for this batch any more")
            loop.call_soon_threadsafe(_report, batch, step, n_steps)

        items = [slot.item for slot in batch]
        results = await loop.run_in_executor(self._thread, self._run_batch, items, batch[0].ticket.key, on_step)
        assert len(results) == len(batch), f"run_batch gave {len(results)} results for {len(batch)} items"
        return results


def _report(batch: "list[_Slot[Item, Result]]", step: int, n_steps: int) -> None:
    tickets = {id(slot.ticket): slot.ticket for slot in batch}
    for slot in batch:
        slot.ticket.progress[slot.index] = (step, n_steps)
    for ticket in tickets.values():
        if ticket.on_step is not None and not ticket.cancelled:
            done = sum(step_done for step_done, _ in ticket.progress)
            ticket.on_step(done, n_steps * len(ticket.progress))


def _fail(slot: "_Slot[Item, Result]", error: Exception) -> None:
    future = slot.ticket.futures[slot.index]
    if not future.done():
        future.set_exception(error)
