"""The backend that computes on Ray Serve deployments."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from encoders.epochs import EpochsMismatch, SignalEpochs
from serving.backend import NOBODY, EmbeddedEpochs, PictureOrder, Pictures, Preview, Watcher
from serving.schema import BundleInfo

logger = logging.getLogger(__name__)

_READY_TIMEOUT_S = 3.0


class RayBackend:
    """Computes on the encoder and generator deployments.

    With `sleeps` the generator may have no replica, and asking whether it is ready would start one: it is not asked.
    """

    def __init__(
        self, encoder: DeploymentHandle[Any], generator: DeploymentHandle[Any], *, sleeps: bool = False
    ) -> None:
        self._sleeps = sleeps
        self._encoder = encoder
        self._generator = generator
        self._stepwise = generator.generate_stepwise.options(stream=True)
        self._info: BundleInfo | None = None

    async def describe(self) -> BundleInfo:
        """Return the bundle being served; it does not change while this process lives."""
        if self._info is None:
            self._info = await _result(self._encoder.describe.remote())
        return self._info

    async def ready(self) -> bool:
        """Ask the deployments; without a replica they do not answer in time."""
        asked = [self._encoder.describe] if self._sleeps else [self._encoder.describe, self._generator.ready]
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await asyncio.gather(*(_result(one.remote()) for one in asked))
        except (TimeoutError, ConnectionError, asyncio.QueueFull):
            return False
        return True

    async def embed(self, recordings: Sequence[SignalEpochs], *, subject: str, average: bool) -> EmbeddedEpochs:
        """Embed on the encoder deployment."""
        embedded = await _result(self._encoder.embed.remote(list(recordings), subject, average))
        if isinstance(embedded, EpochsMismatch):
            raise embedded
        assert isinstance(embedded, EmbeddedEpochs)
        return embedded

    async def generate(
        self, image_embeds: NDArray[np.float32], order: PictureOrder, watcher: Watcher = NOBODY
    ) -> Pictures:
        """Generate on the generator deployment; steps are streamed only if somebody listens."""
        if watcher.on_step is None:
            pictures = await _result(self._generator.generate.remote(image_embeds, order))
            assert isinstance(pictures, Pictures)
            return pictures
        events: Any = self._stepwise.remote(image_embeds, order)
        with _ray_errors():
            try:
                async for event in events:
                    if isinstance(event, Pictures):
                        return event
                    if not isinstance(event, Preview):
                        watcher.on_step(*event)
                    elif watcher.on_preview is not None:
                        watcher.on_preview(event)
            except asyncio.CancelledError:
                events.cancel()
                raise
        raise ConnectionError("the generator ended without pictures")


async def _result(response: Any) -> Any:
    """Await a deployment response; if the waiting task is cancelled, the work is too."""
    with _ray_errors():
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise


@contextmanager
def _ray_errors() -> Iterator[None]:
    """Turn Ray's errors into the ones that `serving.backend.Backend` names."""
    try:
        yield
    except BackPressureError as error:
        raise asyncio.QueueFull(str(error)) from None
    except (RayActorError, WorkerCrashedError) as error:
        logger.warning("a replica was lost: %s", type(error).__name__)
        raise ConnectionError("a replica was lost") from None
