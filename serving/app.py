"""The Ray Serve application: an ingress that reads uploads, an encoder, a generator that batches, a jobs worker.

The deployments are thin: what they do stands in `serving.routes` and `serving.workers`. `build` is the application
builder that `serve.yaml` names. What bundles there are comes as `user_config`: a replica loads and warms up the default
one before it is ready, others when a request asks for them, and takes another `user_config` while it runs.
"""

import asyncio
import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from encoders.epochs import EpochsMismatch, SignalEpochs
from generation.bundle import EXAMPLE_FILE
from generation.person_files import PersonFile
from serving.backend import BundlePlace, EmbeddedEpochs, PictureOrder, Pictures, Preview, Watcher
from serving.failures import log_failure
from serving.gate import MAX_ARRIVING
from serving.job_blobs import open_blobs
from serving.job_deployment import Jobs
from serving.ray_backend import RayBackend
from serving.reading_folder import require_memory
from serving.replica_models import Default, Worker, WorkerOf, keeper
from serving.replica_ports import listen_on_own_address
from serving.sandbox import require_isolation
from serving.schema import BundleInfo
from serving.served_bundles import BundleConfig, configured, find_bundles, open_bundle
from serving.settings import ReplicaSettings, ServingSettings

if TYPE_CHECKING:
    from serving.workers import EncoderWorker, GeneratorWorker

logger = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[1]
_CODE = ("encoders", "alignment", "generation", "serving")
# a resource that Ray gives to the head node alone, of which an actor takes a thousandth
_ON_HEAD = {"node:__internal_head__": 0.001}
# rounded up to one replica more: in a rolling update it starts before the one that it replaces stops
_ONE_MORE = 1


def _leave() -> None:
    """End this replica at once, so that Ray Serve replaces it: its device answers nothing but errors from now on."""
    logger.error("the device of this replica failed; the replica ends and is replaced")
    os._exit(70)


class ModelReplica(ABC, Generic[Worker]):
    """Keeps the models of the bundles that were asked for last, each loaded when it first is."""

    def __init__(self, settings: ServingSettings) -> None:
        listen_on_own_address()
        self._settings = settings
        self._has_loaded = False
        self._worker_of: WorkerOf[Worker] = serve.multiplexed(
            max_num_models_per_replica=settings.n_models_kept
        )(keeper(self._loaded))
        self._default = Default(self._worker_of)

    @abstractmethod
    def _load(self, place: BundlePlace) -> Worker:
        """Load the model of a bundle, ready to work."""

    def _loaded(self, place: BundlePlace) -> Worker:
        worker = self._load(place)
        self._has_loaded = True
        return worker

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Load the default bundle of a `serving.served_bundles.BundleConfig`."""
        await self._default.change(config)

    async def ready(self) -> bool:
        """Tell whether a bundle was loaded; no replica answers before its default one is, if that is there at all."""
        return self._has_loaded

    async def load(self) -> bool:
        """Load the bundle of the request."""
        await self._worker_of(serve.get_multiplexed_model_id())
        return True


class Encoder(ModelReplica["EncoderWorker"]):
    """Holds the encoders and galleries of the bundles that were asked for last."""

    def __init__(self, settings: ServingSettings) -> None:
        super().__init__(settings)
        self._described: dict[str, BundleInfo] = {}

    def _load(self, place: BundlePlace) -> "EncoderWorker":
        from serving.workers import EncoderWorker

        return EncoderWorker(open_bundle(place), _leave)

    async def describe(self) -> BundleInfo:
        """Describe the bundle of the request."""
        from serving.workers import bundle_info

        key = serve.get_multiplexed_model_id()
        if key not in self._described:
            bundle = await asyncio.to_thread(open_bundle, BundlePlace.of(key))
            self._described[key] = bundle_info(bundle, self._settings)
        return self._described[key]

    async def embed(
        self, recordings: Sequence[SignalEpochs], subject: str, average: bool, people: Sequence[PersonFile]
    ) -> EmbeddedEpochs | EpochsMismatch:
        """Embed recordings with the bundle of the request.

        A refusal is returned, because raising would log it as a failure of the replica.
        A failure is raised without its words, which Ray Serve would log: they can quote the recording.
        """
        worker = await self._worker_of(serve.get_multiplexed_model_id())
        try:
            return await worker.embed(recordings, subject=subject, average=average, people=people)
        except EpochsMismatch as error:
            return EpochsMismatch(str(error))
        except Exception as error:
            log_failure(logger, "embedding failed", error)
            raise RuntimeError(f"embedding failed ({type(error).__name__}); see the log of this replica") from None


class Generator(ModelReplica["GeneratorWorker"]):
    """Holds the image decoders of the bundles that were asked for last; each batches what concurrent requests want."""

    def _load(self, place: BundlePlace) -> "GeneratorWorker":
        from serving.workers import GeneratorWorker

        return GeneratorWorker(open_bundle(place), self._settings, _leave)

    async def generate(self, image_embeds: NDArray[np.float32], order: PictureOrder) -> Pictures:
        """Make pictures with the bundle of the request."""
        worker = await self._worker_of(serve.get_multiplexed_model_id())
        return await worker.generate(image_embeds, order)

    async def generate_stepwise(
        self, image_embeds: NDArray[np.float32], order: PictureOrder
    ) -> AsyncIterator[tuple[int, int] | Preview | Pictures]:
        """Yield (step, n_steps) after every step and some previews, then the pictures."""
        events: asyncio.Queue[tuple[int, int] | Preview | Pictures | Exception] = asyncio.Queue()
        worker = await self._worker_of(serve.get_multiplexed_model_id())

        async def work() -> None:
            try:
                pictures = await worker.generate(
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
        listen_on_own_address()
        # the jobs worker is only bound to be deployed: jobs reach it through their store
        self._settings = settings
        self._backend = RayBackend(encoder, generator, sleeps=not settings.generator.n_replicas)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve the bundles of a `serving.served_bundles.BundleConfig`, others than before once they are loaded.

        A damaged one is refused when this replica starts; later it leaves everything as it is.
        """
        if not self._backend.places():
            self._backend.use(await asyncio.to_thread(configured, config))
            return
        try:
            places = await asyncio.to_thread(configured, config)
            await self._backend.warm(places)
        except Exception:
            logger.exception("the bundles stay as they are: the new ones cannot be served")
            self._backend.reject()
            return
        self._backend.use(places)
        logger.warning("bundles served from now on: %s", [place.id for place in places])

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Build the application inside the replica; Ray Serve calls this after the constructor."""
        from serving.job_desk import JobDesk
        from serving.routes import create_app
        from serving.sandbox import open_sandbox

        desk = JobDesk(self._settings.jobs) if self._settings.jobs.folder else None
        return create_app(self._settings, self._backend, open_sandbox(self._settings), self._example, desk)

    def _example(self) -> Path | None:
        file = Path(self._backend.places()[0].folder) / EXAMPLE_FILE
        return file if file.is_file() else None


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
        If the master key cannot be used, or the folder of jobs was filled with encryption set otherwise.
    OSError
        If uploads cannot be isolated on this machine, unless the settings allow that; with encryption, if they cannot
        be read in memory.
    """
    checked = settings if isinstance(settings, ServingSettings) else ServingSettings.model_validate(dict(settings))
    require_isolation(checked.parse)
    if checked.jobs.encryption.on:
        require_memory(Path(checked.jobs.encryption.memory_folder))
    if checked.jobs.folder:
        open_blobs(checked.jobs.resolved()).check_encryption()
    files: dict[str, object] = {
        "access": checked.access.resolved(),
        "pictures": checked.pictures.resolved(),
        "jobs": checked.jobs.resolved(),
    }
    bundles = [folder.expanduser().resolve() for folder in (checked.bundle, *checked.more_bundles)]
    places = find_bundles(bundles)  # a damaged bundle is refused here, before anything starts
    if checked.people_folder:
        from generation.calibrated_people import check_people

        for place in places:
            check_people(Path(checked.people_folder).expanduser(), open_bundle(place))
    people = str(Path(checked.people_folder).expanduser().resolve()) if checked.people_folder else ""
    files["people_folder"] = people
    # what replicas are made with holds no bundle, since it stays when bundles change
    checked = checked.model_copy(update={"bundle": Path(), "more_bundles": (), **files})
    # a replica that is replaced finishes what it works on; Ray Serve's own 20 s would cut it off
    drain: dict[str, Any] = {"graceful_shutdown_timeout_s": checked.request_timeout_s}
    encoder = serve.deployment(**_options(checked.encoder), **drain)(Encoder)
    generator = serve.deployment(**_options(checked.generator), **drain)(Generator)
    # the gate refuses what is too much in our own words, so Ray's limit lies above what may be inside or arriving
    n_inside = MAX_ARRIVING + 4 * checked.max_in_flight + 32
    # SQLite is a file of one machine: who takes jobs in and who works on them have to stand on the same one
    where: dict[str, Any] = {"resources": _ON_HEAD} if checked.jobs.folder and not checked.jobs.database else {}
    ingress = serve.deployment(
        max_ongoing_requests=n_inside,
        max_surge_percent=_ONE_MORE,
        ray_actor_options={"num_cpus": 0.5, **where},
        **drain,
    )(serve.ingress()(Ingress))
    config = BundleConfig(bundles=tuple(bundles)).model_dump(mode="json")
    version = _version(checked)
    bound = [_lasting(one, version, config).bind(checked) for one in (encoder, generator)]
    jobs = None
    if checked.jobs.folder:
        options = {"num_cpus": 0.25, **where}
        deploy = serve.deployment(num_replicas=checked.jobs.n_workers, ray_actor_options=options)
        jobs = _lasting(deploy(Jobs), version, config).bind(checked, *bound)
    application: Application = _lasting(ingress, version, config).bind(checked, *bound, jobs)
    return application


def _version(settings: ServingSettings) -> str:
    """Name what replicas are made of: this release, its code, and all settings but the bundles."""
    digest = hashlib.sha256(settings.model_dump_json().encode())
    for folder in _CODE:
        for file in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _lasting(deployment: Deployment, version: str, config: dict[str, Any]) -> Deployment:
    """Give a deployment its `user_config`, and let replicas live on over a redeployment with an equal version.

    `serve deploy` compares `args` for that. `serve.run` takes every deployment without a version for a new one, and the
    argument for it is internal since Ray 2.
    """
    return deployment.options(version=version, user_config=config, _internal=True)


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
