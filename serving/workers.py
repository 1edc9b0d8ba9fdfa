"""What the two model deployments do, free of Ray: one embeds recordings, one makes pictures in batches."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from alignment.device_faults import is_device_fault
from alignment.person_map import PersonMap
from encoders.epochs import EpochsMismatch, SignalEpochs
from generation.bundle import Bundle, BundleError
from generation.calibrated_people import read_person
from generation.gallery import Gallery
from generation.gallery import Neighbour as GalleryNeighbour
from generation.image_decoder import RetrievalConfig
from generation.person_files import PersonFile
from generation.picture_safety import PictureSafety
from generation.pipeline import EmbeddingResult, ReconstructionPipeline, decoder_config, seed_for
from generation.sampling import PreviewRequest
from serving.backend import (
    NOBODY,
    EmbeddedEpochs,
    PictureOrder,
    Pictures,
    Preview,
    PreviewCallback,
    StepCallback,
    Watcher,
)
from serving.batching import Batcher
from serving.rendering import encode_gallery_png, encode_png, to_base64
from serving.schema import BundleInfo, CutWindow, InputReport, Limits, Neighbour, SignalFlag
from serving.settings import ServingSettings
from serving.wording import calibration_in_words

logger = logging.getLogger(__name__)

_GREY = 128
# diffusers and transformers change classes of torch while they load: what another thread builds then has no weights
_LOADING = threading.Lock()


@dataclass(frozen=True)
class PictureItem:
    """One picture to make: its embedding (d,) float32, its seed, and who wants to see it in the making."""

    image_embeds: NDArray[np.float32] = field(repr=False)
    seed: int
    on_preview: PreviewCallback | None = None


@dataclass(frozen=True)
class MadePicture:
    """A picture (h, w, 3) uint8, and whether the safety check replaced it; None if there was none."""

    image: NDArray[np.uint8] = field(repr=False)
    flagged: bool | None


def bundle_info(bundle: Bundle, settings: ServingSettings) -> BundleInfo:
    """Describe a bundle to clients."""
    limits = Limits(max_upload_mb=settings.max_upload_mb, max_epochs=settings.max_epochs)
    manifest, decoder = bundle.manifest, decoder_config(bundle)
    steps, guidance, pictures = 1, 1.0, "generated"
    if isinstance(decoder, RetrievalConfig):
        limits, pictures = limits.model_copy(update={"max_images": decoder.max_images}), decoder.shows
    else:
        steps, guidance = decoder.num_inference_steps, decoder.guidance_scale
    return BundleInfo(
        id=manifest.id,
        schema_version=manifest.schema_version,
        data_statement=manifest.data_statement,
        modalities=manifest.modalities,
        subjects=manifest.subjects,
        embed_dim=manifest.embed_dim,
        image_size=manifest.image_size,
        preprocessing_hash=manifest.preprocessing_hash,
        window=CutWindow(**manifest.window.model_dump()),
        num_inference_steps=steps,
        guidance_scale=guidance,
        pictures=pictures,
        scores=dict(manifest.scores),
        limits=limits,
    )


@contextmanager
def _watched(on_device_fault: Callable[[], object]) -> Iterator[None]:
    """Report an error after which this process cannot compute any more."""
    try:
        yield
    except Exception as error:
        if is_device_fault(error):
            on_device_fault()
        raise


def _keep_going() -> None:
    return None


class EncoderWorker:
    """Holds the encoders and the gallery of a bundle; constructed warm."""

    def __init__(self, bundle: Bundle, on_device_fault: Callable[[], object] = _keep_going) -> None:
        self._on_device_fault = on_device_fault
        with _LOADING:
            self._pipeline = ReconstructionPipeline(bundle, embedding_only=True)
        self._people: dict[str, tuple[int, PersonMap]] = {}
        self._thumbnails = _Thumbnails(self._pipeline.gallery)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")

    async def embed(
        self,
        recordings: Sequence[SignalEpochs],
        *,
        subject: str,
        average: bool,
        people: Sequence[PersonFile] = (),
    ) -> EmbeddedEpochs:
        """Embed the recordings of one request, off the event loop; see `serving.backend.Backend.embed`."""
        loop = asyncio.get_running_loop()
        known = subject if subject in self._pipeline.bundle.manifest.subjects else None
        return await loop.run_in_executor(self._thread, self._embed, recordings, known, average, tuple(people))

    def _embed(
        self, recordings: Sequence[SignalEpochs], subject: str | None, average: bool, people: Sequence[PersonFile]
    ) -> EmbeddedEpochs:
        maps = [self._person(file) for file in people]
        with _watched(self._on_device_fault):
            result: EmbeddingResult = self._pipeline.embed(recordings, subject=subject, average=average, people=maps)
        warnings, person = result.report.warnings, result.person
        if maps and person is None:
            kinds = ", ".join(sorted({one.modalities for one in maps}))
            warnings += (f"this person is calibrated for {kinds} and not for what the recording holds",)
        return EmbeddedEpochs(
            image_embeds=result.image_embeds,
            confidence=np.asarray(result.confidence, dtype=np.float64),
            neighbours=tuple(tuple(map(self._thumbnails.neighbour, near)) for near in result.neighbours),
            report=InputReport(
                modalities=result.report.modalities,
                subject=result.report.subject,
                interpolated=result.report.interpolated,
                dropped=result.report.dropped,
                warnings=warnings,
                calibration="" if person is None else person.kind,
                calibration_words="" if person is None else calibration_in_words(person.provenance),
                flags=tuple(
                    SignalFlag(code=one.code, epochs=one.epochs, detail=one.detail) for one in result.report.flags
                ),
            ),
            noise_floor=result.noise_floor,
            stimulus=result.stimulus,
            n_averaged=result.n_averaged,
            probability=np.asarray(result.probability, dtype=np.float64),
        )

    def _person(self, file: PersonFile) -> PersonMap:
        """Read a calibration, once for each state of its file."""
        try:
            state = os.stat(file.path).st_mtime_ns
            if self._people.get(file.path, (0, None))[0] != state:
                self._people[file.path] = state, read_person(file, self._pipeline.bundle)
        except (OSError, BundleError) as error:
            logger.error("a calibration cannot be used: %s", type(error).__name__)  # its words hold a name
            raise EpochsMismatch(
                f"the {file.kind} calibration of this person for {file.modalities} cannot be used with this bundle: it "
                "was made for another model, or is damaged; calibrate the person again, or leave subject empty"
            ) from None
        return self._people[file.path][1]


class GeneratorWorker:
    """Holds the image decoder of a bundle and batches the pictures of concurrent requests; constructed warm."""

    def __init__(
        self, bundle: Bundle, settings: ServingSettings, on_device_fault: Callable[[], object] = _keep_going
    ) -> None:
        with _LOADING:
            self._pipeline = ReconstructionPipeline(bundle, decoder_only=True)
            self._safety = _safety(settings, bundle)
        self._on_device_fault = on_device_fault
        self._fill_to = {True: 1, False: 1}  # with and without guidance
        self._batcher: Batcher[PictureItem, MadePicture] = Batcher(
            self._run,
            max_batch_size=settings.max_batch_size,
            max_wait_s=settings.batch_wait_ms / 1000.0,
            max_waiting=settings.generator.max_ongoing_requests,
        )
        if not self._pipeline.makes_pictures:
            return
        if settings.byte_equal:
            self._fill_to = self._pipeline.settle(settings.max_batch_size)
        # one step of a batch of each end, so that memory and kernels are ready before the first request
        probe = np.ones((settings.max_batch_size, self._pipeline.bundle.manifest.embed_dim), dtype=np.float32)
        for n in sorted({1, settings.max_batch_size}):
            self._checked(self._pipeline.decode(probe[:n], seeds=list(range(n)), num_inference_steps=1))

    async def generate(
        self, image_embeds: NDArray[np.float32], order: PictureOrder, watcher: Watcher = NOBODY
    ) -> Pictures:
        """Make the pictures of one request; each has its own seed, so batches do not change what it shows."""
        loop = asyncio.get_running_loop()

        def show(preview: Preview) -> None:
            if watcher.on_preview is not None:
                loop.call_soon_threadsafe(watcher.on_preview, preview)

        watched = (0, 0) if watcher.on_preview is not None else None
        items = [
            PictureItem(row, seed_for(order.seed, epoch, image), show if (epoch, image) == watched else None)
            for epoch, row in enumerate(image_embeds)
            for image in range(order.n_images)
        ]
        results = await self._batcher.submit(
            items, key=(order.num_inference_steps, order.guidance_scale), on_step=watcher.on_step
        )
        images = np.stack([result.value.image for result in results])
        shape = (len(image_embeds), order.n_images)
        return Pictures(
            images=images.reshape(*shape, *images.shape[1:]),
            batch_size=max(result.batch_size for result in results),
            flagged=None
            if self._safety is None
            else np.array([bool(result.value.flagged) for result in results]).reshape(shape),
        )

    async def aclose(self) -> None:
        """Stop batching."""
        await self._batcher.aclose()

    def _run(self, items: Sequence[PictureItem], key: object, on_step: StepCallback) -> Sequence[MadePicture]:
        assert isinstance(key, tuple)
        num_inference_steps, guidance_scale = key
        n_missing = self._fill_to[guidance_scale > 1.0] - len(items)
        rows = list(items) + [items[-1]] * max(0, n_missing)
        shown = {row: item.on_preview for row, item in enumerate(items) if item.on_preview is not None}

        def show(row: int, step: int, image: NDArray[np.uint8]) -> None:
            checked = self._checked(image[None])[0].image
            shown[row](Preview(step, encode_png(checked, {"phosphene:preview": str(step)})))

        with _watched(self._on_device_fault):
            images = self._pipeline.decode(
                np.stack([item.image_embeds for item in rows]),
                seeds=[item.seed for item in rows],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                on_step=on_step,
                previews=PreviewRequest(tuple(shown), show) if shown else None,
            )
        return self._checked(images[: len(items)])

    def _checked(self, images: NDArray[np.uint8]) -> list[MadePicture]:
        """Replace pictures that should not be shown, where there is something to check them with."""
        if self._safety is None:
            return [MadePicture(image, None) for image in images]
        return [
            MadePicture(np.full_like(image, _GREY) if bad else image, bool(bad))
            for image, bad in zip(images, self._safety.flagged(images), strict=True)
        ]


def _safety(settings: ServingSettings, bundle: Bundle) -> PictureSafety | None:
    """Load the checker of the settings, else of the bundle; None if there is none, or none is wanted."""
    wanted, folder = settings.pictures.safety, settings.pictures.safety_folder or bundle.safety_folder
    if wanted == "off" or folder is None:
        if wanted == "required":
            raise ValueError(
                "pictures.safety is 'required', and neither pictures.safety_folder nor the bundle has a checker"
            )
        return None
    return PictureSafety(folder)


class _Thumbnails:
    """Gallery pictures as base64 PNGs, encoded when first shown."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._encoded: dict[int, str] = {}

    def neighbour(self, near: GalleryNeighbour) -> Neighbour:
        if near.index not in self._encoded:
            self._encoded[near.index] = to_base64(encode_gallery_png(self._gallery.thumbs[near.index], near.name))
        return Neighbour(
            name=near.name,
            caption=near.caption,
            similarity=near.similarity,
            thumbnail=self._encoded[near.index],
        )
