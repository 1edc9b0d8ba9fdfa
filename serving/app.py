"""The Ray Serve application: an ingress that reads uploads, an encoder, a generator that batches, a jobs worker.

The deployments are thin: what they do stands in `serving.routes` and `serving.workers`. `build` is the application
builder that `serve.yaml` names; models load and warm up in the constructors, so a replica is ready or absent.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from encoders.epochs import EpochsMismatch, SignalEpochs
from generation.bundle import Bundle
from serving.backend import EmbeddedEpochs, PictureOrder, Pictures, Preview, Watcher
from serving.failures import log_failure
from serving.gate import MAX_ARRIVING
from serving.job_blobs import open_blobs
from serving.job_deployment import Jobs
from serving.ray_backend import RayBackend
from serving.reading_folder import require_memory
from serving.sandbox import require_isolation
from serving.schema import BundleInfo
from serving.settings import ReplicaSettings, ServingSettings

logger = logging.getLogger(__name__)

# rounded up to one replica more: in a rolling update it starts before the one that it replaces stops
_ONE_MORE = 1


def _leave() -> None:
    """End this replica at once, so that Ray Serve replaces it: its device answers nothing but errors from now on."""
    logger.error("the device of this replica failed; the replica ends and is replaced")
    os._exit(70)


class Encoder:
    """Holds the encoders and the gallery."""

    def __init__(self, settings: ServingSettings) -> None:
        from serving.workers import EncoderWorker

        self._worker = EncoderWorker(settings, _leave)

    async def describe(self) -> BundleInfo:
        """Return the bundle being served."""
        return self._worker.info

    async def embed(
        self, recordings: Sequence[SignalEpochs], subject: str, average: bool
    ) -> EmbeddedEpochs | EpochsMismatch:
        """Embed recordings; a refusal is returned, because raising would log it as a failure of the replica.

        A failure is raised without its words, which Ray Serve would log: they can quote the recording.
        """
        try:
            return await self._worker.embed(recordings, subject=subject, average=average)
        except EpochsMismatch as error:
            return EpochsMismatch(str(error))
        except Exception as error:
            log_failure(logger, "embedding failed", error)
            raise RuntimeError(f"embedding failed ({type(error).__name__}); see the log of this replica") from None


class Generator:
    """Holds the image decoder and batches the pictures of concurrent requests."""

    def __init__(self, settings: ServingSettings) -> None:
        from serving.workers import GeneratorWorker

        self._worker = GeneratorWorker(settings, _leave)

    async def ready(self) -> bool:
        """Answer once the decoder is warm."""
        return True

    async def generate(self, image_embeds: NDArray[np.float32], order: PictureOrder) -> Pictures:
        """Make pictures."""
        return await self._worker.generate(image_embeds, order)

    async def generate_stepwise(
        self, image_embeds: NDArray[np.float32], order: PictureOrder
    ) -> AsyncIterator[tuple[int, int] | Preview | Pictures]:
        """Yield (step, n_steps) after every step and some previews, then the pictures."""
        events: asyncio.Queue[tuple[int, int] | Preview | Pictures | Exception] = asyncio.Queue()

        async def work() -> None:
            try:
                pictures = await self._worker.generate(
                    image_embeds, order, Watcher(lambda *step: events.put_nowait(step), events.put_nowait)
                )
                events.put_nowait(pictures)
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
        self,
        settings: ServingSettings,
        encoder: DeploymentHandle[Any],
        generator: DeploymentHandle[Any],
        jobs: DeploymentHandle[Any] | None = None,
    ) -> None:
        # the jobs worker is only bound to be deployed: jobs reach it through their store
        self._settings = settings
        self._backend = RayBackend(encoder, generator, sleeps=not settings.generator.n_replicas)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Build the application inside the replica; Ray Serve calls this after the constructor."""
        from serving.job_desk import JobDesk
        from serving.routes import create_app
        from serving.sandbox import open_sandbox

        bundle, jobs = Bundle.load(self._settings.bundle), self._settings.jobs
        sandbox = open_sandbox(self._settings)
        desk = JobDesk(jobs, bundle.manifest.id) if jobs.folder else None
        return create_app(self._settings, self._backend, sandbox, bundle.example, desk)


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
    ValueError
        If the master key cannot be used.
    OSError
        If uploads cannot be isolated on this machine, unless the settings allow that; with encryption, if they cannot
        be read in memory.
    """
    checked = settings if isinstance(settings, ServingSettings) else ServingSettings.model_validate(dict(settings))
    require_isolation(checked.parse)
    if checked.jobs.encryption.on:
        require_memory(Path(checked.jobs.encryption.memory_folder))
        open_blobs(checked.jobs.resolved())
    files = {
        "access": checked.access.resolved(),
        "pictures": checked.pictures.resolved(),
        "jobs": checked.jobs.resolved(),
    }
    checked = checked.model_copy(update={"bundle": checked.bundle.resolve(), **files})
    Bundle.load(checked.bundle)  # a damaged bundle is refused here, before anything starts
    # a replica that is replaced finishes what it works on; Ray Serve's own 20 s would cut it off
    drain: dict[str, Any] = {"graceful_shutdown_timeout_s": checked.request_timeout_s}
    encoder = serve.deployment(**_options(checked.encoder), **drain)(Encoder).bind(checked)
    generator = serve.deployment(**_options(checked.generator), **drain)(Generator).bind(checked)
    # the gate refuses what is too much in our own words, so Ray's limit lies above what may be inside or arriving
    n_inside = MAX_ARRIVING + 4 * checked.max_in_flight + 32
    ingress = serve.deployment(
        max_ongoing_requests=n_inside, max_surge_percent=_ONE_MORE, ray_actor_options={"num_cpus": 0.5}, **drain
    )(serve.ingress()(Ingress))
    jobs = None
    if checked.jobs.folder:
        deploy = serve.deployment(num_replicas=checked.jobs.n_workers, ray_actor_options={"num_cpus": 0.25})
        jobs = deploy(Jobs).bind(checked, encoder, generator)
    application: Application = ingress.bind(checked, encoder, generator, jobs)
    return application


def _options(replica: ReplicaSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_ongoing_requests": replica.max_ongoing_requests,
        "max_queued_requests": replica.max_queued_requests,
        "max_surge_percent": _ONE_MORE if replica.starts_first else 0,
        "ray_actor_options": {"num_cpus": replica.num_cpus, "num_gpus": replica.num_gpus},
    }
    if replica.max_replicas:
        options["autoscaling_config"] = {
            "min_replicas": replica.n_replicas,
            "max_replicas": replica.max_replicas,
            "target_ongoing_requests": max(1, replica.max_ongoing_requests // 2),
            "upscale_delay_s": 0.0 if not replica.n_replicas else 30.0,
            "downscale_delay_s": replica.idle_s,
        }
    else:
        options["num_replicas"] = replica.n_replicas
    return options
