"""The backend that computes in this process, for commands, benchmarks and tests of everything but Ray."""

import asyncio
import gc
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from encoders.epochs import SignalEpochs
from generation.calibrated_people import check_people
from generation.person_files import PersonFile
from serving.backend import NOBODY, BundlePlace, EmbeddedEpochs, PictureOrder, Pictures, ServedBundle, Watcher
from serving.served_bundles import find_bundles, open_bundle
from serving.settings import ServingSettings
from serving.workers import EncoderWorker, GeneratorWorker, bundle_info

Worker = TypeVar("Worker")


class KeptModels(Generic[Worker]):
    """Models by the place of their bundle, loaded when first asked for; the least recently used leave.

    Who holds a model that has left goes on with it.

    Parameters
    ----------
    load : callable (place) -> Worker
    n_kept : int
    """

    def __init__(self, load: Callable[[BundlePlace], Worker], n_kept: int) -> None:
        self._load = load
        self._n_kept = n_kept
        self._kept: OrderedDict[BundlePlace, Worker] = OrderedDict()
        self._lock = asyncio.Lock()

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._kept.values()))

    def load_now(self, place: BundlePlace) -> Worker:
        """Load a model that is not kept yet, and keep it."""
        while len(self._kept) >= self._n_kept:
            self._kept.popitem(last=False)
        gc.collect()  # what has left and is not used goes before something new comes
        worker = self._kept[place] = self._load(place)
        return worker

    async def get(self, place: BundlePlace) -> Worker:
        """Return a model, and load it in a thread if need be."""
        async with self._lock:
            if place not in self._kept:
                return await asyncio.to_thread(self.load_now, place)
            self._kept.move_to_end(place)
            return self._kept[place]


class LocalBackend:
    """Both workers of every bundle in this process; the default bundle is loaded when this is made."""

    def __init__(self, settings: ServingSettings) -> None:
        self._settings = settings
        self._places = find_bundles([folder.resolve() for folder in (settings.bundle, *settings.more_bundles)])
        if settings.people_folder:
            for place in self._places:
                check_people(Path(settings.people_folder), open_bundle(place))
        self._described: dict[BundlePlace, ServedBundle] = {}
        self._encoders = KeptModels(lambda place: EncoderWorker(open_bundle(place)), settings.n_models_kept)
        self._generators = KeptModels(
            lambda place: GeneratorWorker(open_bundle(place), settings), settings.n_models_kept
        )
        self._encoders.load_now(self._places[0])
        self._generators.load_now(self._places[0])

    def places(self) -> tuple[BundlePlace, ...]:
        """Return the bundles being served."""
        return self._places

    def rejects(self) -> bool:
        """Tell that no other list of bundles was given."""
        return False

    async def describe(self, place: BundlePlace) -> ServedBundle:
        """Describe a bundle; no model is loaded for it."""
        if place not in self._described:
            bundle = await asyncio.to_thread(open_bundle, place)
            self._described[place] = ServedBundle(place, bundle_info(bundle, self._settings))
        return self._described[place]

    async def ready(self) -> bool:
        """Constructed means ready."""
        return True

    async def embed(
        self,
        bundle: ServedBundle,
        recordings: Sequence[SignalEpochs],
        *,
        subject: str,
        average: bool,
        people: Sequence[PersonFile] = (),
    ) -> EmbeddedEpochs:
        """Embed recordings."""
        worker = await self._encoders.get(bundle.place)
        return await worker.embed(recordings, subject=subject, average=average, people=people)

    async def generate(
        self, bundle: ServedBundle, image_embeds: NDArray[np.float32], order: PictureOrder, watcher: Watcher = NOBODY
    ) -> Pictures:
        """Make pictures."""
        worker = await self._generators.get(bundle.place)
        return await worker.generate(image_embeds, order, watcher)

    async def aclose(self) -> None:
        """Stop batching."""
        for worker in self._generators:
            await worker.aclose()
