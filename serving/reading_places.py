"""Places for reading uploads: few, and given out in turn, so that no owner's slow files hold up all others."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ReadingPlaces:
    """Give out places, to each owner in turn and within an owner first come, first served.

    Parameters
    ----------
    n_places : int
        Held at the same time.
    patience_s : float
        How long somebody waits for one.
    """

    def __init__(self, n_places: int, patience_s: float) -> None:
        self._n_free = n_places
        self._patience_s = patience_s
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the owner whose turn it is comes first

    @asynccontextmanager
    async def place(self, owner: str) -> AsyncIterator[None]:
        """Hold a place.

        Raises
        ------
        TimeoutError
            If none became free in time.
        """
        await self._take(owner)
        try:
            yield
        finally:
            self._give()

    async def _take(self, owner: str) -> None:
        if self._n_free:
            self._n_free -= 1
            return
        given = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(given)
        try:
            async with asyncio.timeout(self._patience_s):
                await given
        except (TimeoutError, asyncio.CancelledError):
            if given.done() and not given.cancelled():
                self._give()  # it was given in the moment in which it was no longer wanted
            given.cancel()
            raise

    def _give(self) -> None:
        while self._waiting:
            owner, line = next(iter(self._waiting.items()))
            del self._waiting[owner]
            given = line.popleft()
            if line:
                self._waiting[owner] = line
            if not given.done():
                given.set_result(None)
                return
        self._n_free += 1
