"""The Ray Serve application: an ingress that reads uploads, an encoder, and a generator that batches.

The deployments are thin: what they do stands in `serving.routes` and `serving.workers`. `build` is the application
builder that `serve.yaml` names; models load and warm up in the constructors, so a replica is ready or absent.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError, WorkerCrashedError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from encoders.epochs import EpochsMismatch, SignalEpochs
from generation.bundle import Bundle
from serving.backend import EmbeddedEpochs, PictureOrder, Pictures, StepCallback
from serving.schema import BundleInfo
from serving.settings import ReplicaSettings, ServingSettings

logger = logging.getLogger(__name__)

_READY_TIMEOUT_S = 3.0


class Encoder:
    """Holds the encoders and the gallery."""

    def __init__(self, settings: ServingSettings) -> None:
        from serving.workers import EncoderWorker

        self._worker = EncoderWorker(settings)

    async def describe(self) -> BundleInfo:
        """Return the bundle being served."""
        return self._worker.info

    async def embed(
        self, recordings: Sequence[SignalEpochs], subject: str, average: bool
    ) -> EmbeddedEpochs | EpochsMismatch:
        """Embed recordings; a refusal is returned, because raising would log it as a failure of the replica."""
        try:
            return await self._worker.embed(recordings, subject=subject, average=average)
        except EpochsMismatch as error:
            return EpochsMismatch(str(error))


class Generator:
    """Holds the image decoder and batches the pictures of concurrent requests."""

    def __init__(self, settings: ServingSettings) -> None:
        from serving.workers import GeneratorWorker

        self._worker = GeneratorWorker(settings)

    async def ready(self) -> bool:
        """Answer once the decoder is warm."""
        return True

    async def generate(self, image_embeds: NDArray[np.float32], order: PictureOrder) -> Pictures:
        """Make pictures."""
        return await self._worker.generate(image_embeds, order)

    async def generate_stepwise(
        self, image_embeds: NDArray[np.float32], order: PictureOrder
    ) -> AsyncIterator[tuple[int, int] | Pictures]:
        """Yield (step, n_steps) after every step, then the pictures."""
        events: asyncio.Queue[tuple[int, int] | Pictures | Exception] = asyncio.Queue()

        async def work() -> None:
            try:
                events.put_nowait(
                    await self._worker.generate(image_embeds, order, lambda *step: events.put_nowait(step))
                )
            except Exception as error:
                events.put_nowait(error)

        task = asyncio.create_task(work())
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Pictures):
                    return
        finally:
            task.cancel()


class Ingress:
    """Answers HTTP; holds no model."""

    def __init__(
        self, settings: ServingSettings, encoder: DeploymentHandle[Any], generator: DeploymentHandle[Any]
    ) -> None:
        self._settings = settings
        self._backend = RayBackend(encoder, generator)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Build the application inside the replica; Ray Serve calls this after the constructor."""
        from serving.routes import create_app
        from serving.sandbox import Sandbox

        sandbox = Sandbox(self._settings.parse, max_epochs=self._settings.max_epochs)
        return create_app(self._settings, self._backend, sandbox, Bundle.load(self._settings.bundle).example)


class RayBackend:
    """Computes on the encoder and generator deployments."""

    def __init__(self, encoder: DeploymentHandle[Any], generator: DeploymentHandle[Any]) -> None:
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
        """Ask both deployments; without a replica they do not answer in time."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await asyncio.gather(_result(self._encoder.describe.remote()), _result(self._generator.ready.remote()))
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
        self, image_embeds: NDArray[np.float32], order: PictureOrder, on_step: StepCallback | None = None
    ) -> Pictures:
        """Generate on the generator deployment; steps are streamed only if somebody listens."""
        if on_step is None:
            pictures = await _result(self._generator.generate.remote(image_embeds, order))
            assert isinstance(pictures, Pictures)
            return pictures
        events: Any = self._stepwise.remote(image_embeds, order)
        with _ray_errors():
            try:
                async for event in events:
                    if isinstance(event, Pictures):
                        return event
                    on_step(*event)
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


def build(settings: ServingSettings | Mapping[str, Any]) -> Application:
    """Build the application from typed settings, or from the `args` of a `serve.yaml`.

    Parameters
    ----------
    settings : ServingSettings or mapping
        A mapping is checked against `ServingSettings`.

    Returns
    -------
    Application

    Raises
    ------
    BundleError
        If the bundle is incomplete or damaged.
    """
    checked = settings if isinstance(settings, ServingSettings) else ServingSettings.model_validate(dict(settings))
    files = {"access": checked.access.resolved(), "pictures": checked.pictures.resolved()}
    checked = checked.model_copy(update={"bundle": checked.bundle.resolve(), **files})
    Bundle.load(checked.bundle)  # a damaged bundle is refused here, before anything starts
    encoder = serve.deployment(**_options(checked.encoder))(Encoder).bind(checked)
    generator = serve.deployment(**_options(checked.generator))(Generator).bind(checked)
    # the gate refuses what is beyond max_in_flight in our own words, so Ray's limit lies above it
    n_inside = 4 * checked.max_in_flight + 32
    ingress = serve.deployment(max_ongoing_requests=n_inside, ray_actor_options={"num_cpus": 0.5})(
        serve.ingress()(Ingress)
    )
    application: Application = ingress.bind(checked, encoder, generator)
    return application


def _options(replica: ReplicaSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_ongoing_requests": replica.max_ongoing_requests,
        "max_queued_requests": replica.max_queued_requests,
        "ray_actor_options": {"num_cpus": replica.num_cpus, "num_gpus": replica.num_gpus},
    }
    if replica.max_replicas:
        options["autoscaling_config"] = {
            "min_replicas": replica.n_replicas,
            "max_replicas": replica.max_replicas,
            "target_ongoing_requests": max(1, replica.max_ongoing_requests // 2),
        }
    else:
        options["num_replicas"] = replica.n_replicas
    return options
