"""How replicas load models: in a thread, one bundle at a time, and the default one before a replica is ready."""

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from serving.backend import BundlePlace
from serving.served_bundles import configured

logger = logging.getLogger(__name__)
Worker = TypeVar("Worker")
WorkerOf = Callable[[str], Awaitable[Worker]]


def keeper(load: Callable[[BundlePlace], Worker]) -> WorkerOf[Worker]:
    """Give the loader that `ray.serve.multiplexed` wants, which keeps what it returns by the key of the bundle.

    What it keeps no more lives as long as a request holds it.
    """

    async def worker_of(key: str) -> Worker:
        await asyncio.to_thread(gc.collect)  # what has left and is not used goes before something new comes
        return await asyncio.to_thread(load, BundlePlace.of(key))

    return worker_of


class Default:
    """The bundle that a replica has loaded before it is asked for it.

    Parameters
    ----------
    worker_of : callable (key) -> worker
        Loads, and keeps what is loaded.
    """

    def __init__(self, worker_of: WorkerOf[Any]) -> None:
        self._worker_of = worker_of
        self._started = False
        self._loading: asyncio.Task[None] | None = None

    async def change(self, config: Mapping[str, Any]) -> None:
        """Take a `user_config`: load before this returns in a new replica, in one that works beside its requests.

        Ray Serve sends no requests to a replica that has not returned from here; and whatever a request asks for is
        loaded when it comes, so nothing depends on this being done. A new replica takes one that names no good bundle
        too: its ingress refuses a service that starts like that, and in one that runs it stands for a replica that was
        lost, whose requests are for the bundles from before.
        """
        if self._started:
            self._loading = asyncio.create_task(self._load_beside(config))
            return
        self._started = True
        try:
            places = await asyncio.to_thread(configured, config)
        except (ValueError, OSError):
            logger.exception("the configured bundles cannot be served; those that requests ask for are loaded")
            return
        await self._worker_of(places[0].key)

    async def _load_beside(self, config: Mapping[str, Any]) -> None:
        try:
            places = await asyncio.to_thread(configured, config)
            await self._worker_of(places[0].key)
        except Exception:
            logger.exception("the new default bundle cannot be loaded")
