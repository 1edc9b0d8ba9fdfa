"""The Ray Serve deployment that works on jobs: a worker loop of `serving.job_worker` over the model deployments."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from serving.backend import PreviewCallback
from serving.job_worker import JobWorker, OnProgress
from serving.people import People
from serving.ray_backend import RayBackend
from serving.replica_ports import listen_on_own_address
from serving.schema import GenerationFields, GenerationResponse
from serving.served_bundles import configured
from serving.settings import ServingSettings

logger = logging.getLogger(__name__)


class Jobs:
    """Leases jobs and runs them on the encoder and the generator; answers no requests."""

    def __init__(
        self, settings: ServingSettings, encoder: DeploymentHandle[Any], generator: DeploymentHandle[Any]
    ) -> None:
        from serving.answers import Answers
        from serving.metrics import Metrics
        from serving.provenance import Marker
        from serving.sandbox import open_sandbox

        listen_on_own_address()
        self._settings = settings
        self._sandbox = open_sandbox(settings)
        self._backend = RayBackend(encoder, generator, sleeps=not settings.generator.n_replicas)
        people = People(settings.people_folder)
        self._answers = Answers(self._backend, self._sandbox, Metrics(), Marker(settings.pictures), people)
        self._task: asyncio.Task[None] | None = None

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Work for the bundles of a `serving.served_bundles.BundleConfig`; a damaged one is refused at the start only.

        Nothing is loaded ahead: the ingress has new bundles loaded before it takes in jobs for them.
        """
        try:
            self._backend.use(await asyncio.to_thread(configured, config))
        except Exception:  # a folder that may not be read is an OSError
            if not self._backend.places():
                raise
            logger.exception("the bundles stay as they are: the new ones cannot be served")

    async def check_health(self) -> None:
        """Start the loop at the first call, which comes before the replica counts as healthy; raise what ended it."""
        if self._task is None:
            await self._sandbox.start()
            worker = JobWorker(
                self._settings.jobs,
                self._answer,
                bundles=lambda: tuple(place.id for place in self._backend.places()),
                stack=_cluster_name(),
            )
            self._task = asyncio.create_task(worker.run())
        if self._task.done():
            self._task.result()
            raise RuntimeError("the loop of the jobs worker has ended")

    async def _answer(
        self,
        fields: GenerationFields,
        contents: Sequence[bytes],
        on_progress: OnProgress,
        on_preview: PreviewCallback,
        *,
        owner: str,
    ) -> GenerationResponse:
        return await self._answers.generation(fields, contents, on_progress, on_preview, owner=owner)

    async def __del__(self) -> None:
        # Ray Serve awaits this when it ends a replica on purpose: what runs is given back for others to take at once
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._sandbox.close()


def _cluster_name() -> str:
    """Return what names this start of the cluster: whatever ran under another name died with its whole service."""
    name: str = ray.get_runtime_context().get_session_name()
    return name
