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
from generation.person_files import PersonFile
from serving.backend import NOBODY, BundlePlace, EmbeddedEpochs, PictureOrder, Pictures, Preview, ServedBundle, Watcher

logger = logging.getLogger(__name__)

_READY_TIMEOUT_S = 3.0


class RayBackend:
    """Computes on the encoder and generator deployments.

    Every call tells a replica which bundle it is for, id and folder, as Ray Serve's multiplexed model id. So a replica
    need not know what is served, and does not mix bundles up when it hears of others sooner or later than who asks it.

    With `sleeps` the generator may have no replica, and asking whether it is ready would start one: it is not asked.
    """

    def __init__(
        self, encoder: DeploymentHandle[Any], generator: DeploymentHandle[Any], *, sleeps: bool = False
    ) -> None:
        self._sleeps = sleeps
        self._encoder = encoder
        self._generator = generator
        self._places: tuple[BundlePlace, ...] = ()
        self._described: dict[BundlePlace, ServedBundle] = {}
        self._rejects = False

    def places(self) -> tuple[BundlePlace, ...]:
        """Return the bundles being served."""
        return self._places

    def use(self, places: tuple[BundlePlace, ...]) -> None:
        """Serve other bundles from now on; requests that have begun go on with theirs."""
        self._places, self._rejects = places, False
        self._described = {place: one for place, one in self._described.items() if place in places}

    def reject(self) -> None:
        """Note that other bundles were to be served and cannot be."""
        self._rejects = True

    def rejects(self) -> bool:
        """Tell whether that was the last that was asked for."""
        return self._rejects

    async def warm(self, places: tuple[BundlePlace, ...]) -> None:
        """Load the default one of bundles that are to be served, and describe all."""
        default = places[0].key
        await _result(self._encoder.options(multiplexed_model_id=default).load.remote())
        if not self._sleeps:
            await _result(self._generator.options(multiplexed_model_id=default).load.remote())
        for place in places:
            await self.describe(place)

    async def describe(self, place: BundlePlace) -> ServedBundle:
        """Describe a bundle; no model is loaded for it."""
        if place not in self._described:
            info = await _result(self._encoder.options(multiplexed_model_id=place.key).describe.remote())
            self._described[place] = ServedBundle(place, info)
        return self._described[place]

    async def ready(self) -> bool:
        """Ask the deployments; without a replica they do not answer in time."""
        asked = [self._encoder.ready] if self._sleeps else [self._encoder.ready, self._generator.ready]
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                return all(await asyncio.gather(*(_result(one.remote()) for one in asked)))
        except (TimeoutError, ConnectionError, asyncio.QueueFull):
            return False

    async def embed(
        self,
        bundle: ServedBundle,
        recordings: Sequence[SignalEpochs],
        *,
        subject: str,
        average: bool,
        people: Sequence[PersonFile] = (),
    ) -> EmbeddedEpochs:
        """Embed on the encoder deployment."""
        encoder = self._encoder.options(multiplexed_model_id=bundle.place.key)
        embedded = await _result(encoder.embed.remote(list(recordings), subject, average, tuple(people)))
        if isinstance(embedded, EpochsMismatch):
            raise embedded
        assert isinstance(embedded, EmbeddedEpochs)
        return embedded

    async def generate(
        self, bundle: ServedBundle, image_embeds: NDArray[np.float32], order: PictureOrder, watcher: Watcher = NOBODY
    ) -> Pictures:
        """Generate on the generator deployment; steps are streamed only if somebody listens."""
        generator = self._generator.options(multiplexed_model_id=bundle.place.key)
        if watcher.on_step is None:
            pictures = await _result(generator.generate.remote(image_embeds, order))
            assert isinstance(pictures, Pictures)
            return pictures
        events: Any = generator.options(stream=True).generate_stepwise.remote(image_embeds, order)
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
