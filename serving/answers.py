"""From uploaded bytes to an answer: read, embed, generate, encode, with progress, timings and refusals."""

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from encoders.epochs import EpochsMismatch, SignalEpochs
from generation.person_files import PersonFile
from serving.backend import Backend, EmbeddedEpochs, PictureOrder, Pictures, PreviewCallback, ServedBundle, Watcher
from serving.event_names import NUMBERED, has_numbered
from serving.field_checks import check_order, check_subject
from serving.metrics import Metrics
from serving.people import People
from serving.previews import signal_previews
from serving.problems import refusal
from serving.provenance import Marker, PictureFacts
from serving.rendering import to_base64
from serving.sandbox import PASSING, Refused, Sandbox
from serving.schema import (
    MAX_PICTURES,
    BundleInfo,
    EmbeddingFields,
    EmbeddingResponse,
    EpochEmbedding,
    EpochPictures,
    GenerationFields,
    GenerationResponse,
    Progress,
    Verdict,
)
from serving.served_bundles import choose
from serving.stage_clock import StageClock
from serving.wording import category_in_words, confidence_in_words, notice_of

ProgressCallback = Callable[[Progress], None]
Value = TypeVar("Value")

_RETRY_QUEUE_S = 2
_RETRY_LOST_S = 10


class Answers:
    """Answer requests with a backend and a sandbox.

    Every refusal leaves as the exception that `serving.problems.refusal` builds.
    """

    def __init__(
        self,
        backend: Backend,
        sandbox: Sandbox,
        metrics: Metrics,
        marker: Marker | None = None,
        people: People | None = None,
    ) -> None:
        self._backend = backend
        self._sandbox = sandbox
        self._metrics = metrics
        self._marker = marker or Marker()
        self._people = people or People("")

    async def generation(
        self,
        fields: GenerationFields,
        contents: Sequence[bytes],
        on_progress: ProgressCallback | None = None,
        on_preview: PreviewCallback | None = None,
        *,
        owner: str,
    ) -> GenerationResponse:
        """Decode uploaded recordings to pictures; ``owner`` is whose calibrations to people may be used."""
        clock = StageClock(self._metrics)
        bundle = await self.bundle(fields.bundle)
        people = self.check_fields(fields, bundle, owner)
        recordings = await self._read(fields, contents, bundle.info, clock, on_progress or _ignore, owner)
        return await self._pictures(fields, recordings, bundle, people, clock, on_progress, on_preview)

    async def of_epochs(
        self, fields: GenerationFields, recordings: Sequence[SignalEpochs], bundle: ServedBundle, *, owner: str
    ) -> GenerationResponse:
        """Decode recordings that were read already, as `generation` decodes uploaded ones, with a certain bundle."""
        clock = StageClock(self._metrics)
        people = self.check_fields(fields, bundle, owner)
        return await self._pictures(fields, recordings, bundle, people, clock, None, None)

    async def bundle(self, bundle_id: str = "") -> ServedBundle:
        """Return the bundle of an id, or the default one."""
        return await self._compute(self._backend.describe(choose(self._backend.places(), bundle_id)))

    def check_fields(self, fields: GenerationFields, bundle: ServedBundle, owner: str) -> tuple[PersonFile, ...]:
        """Refuse what the bundle cannot do, and an unknown person; return the calibrations to a known one."""
        check_order(fields, bundle.info)
        return self._check_subject(fields, bundle, owner)

    def _check_subject(self, fields: EmbeddingFields, bundle: ServedBundle, owner: str) -> tuple[PersonFile, ...]:
        calibrated = self._people.known(bundle.info.id, owner)
        check_subject(fields, bundle.info, calibrated)
        try:
            return self._people.files(bundle.info.id, owner, fields.subject)
        except ValueError as error:
            raise refusal("bad_field", str(error)) from None

    async def _pictures(
        self,
        fields: GenerationFields,
        recordings: Sequence[SignalEpochs],
        served: ServedBundle,
        people: Sequence[PersonFile],
        clock: StageClock,
        on_progress: ProgressCallback | None,
        on_preview: PreviewCallback | None,
    ) -> GenerationResponse:
        tell, bundle = on_progress or _ignore, served.info
        embedded = await self._embed(served, fields, recordings, people, clock, tell)
        n_pictures = _count(embedded, fields)
        order = PictureOrder(
            n_images=fields.images,
            seed=fields.seed,
            num_inference_steps=fields.num_inference_steps or bundle.num_inference_steps,
            guidance_scale=bundle.guidance_scale if fields.guidance_scale is None else fields.guidance_scale,
        )
        batch_size = 0
        if bundle.pictures == "generated":
            pictures = await self._generate(served, embedded, order, clock, on_progress, on_preview)
            tell(Progress(stage="encode", step=0, n_steps=1))
            with clock.stage("encode"):
                images = await asyncio.to_thread(_encode, pictures, bundle, order, self._marker)
            verdicts = [_verdicts(pictures, index) for index in range(len(images))]
            self._metrics.pictures.inc(n_pictures)
            self._metrics.batch_size.observe(pictures.batch_size)
            batch_size = pictures.batch_size
        else:
            images = [tuple(one.thumbnail for one in near[: order.n_images]) for near in embedded.neighbours]
            verdicts = [()] * len(images)
        return GenerationResponse(
            id=uuid.uuid4().hex,
            bundle_id=bundle.id,
            preprocessing_hash=bundle.preprocessing_hash,
            seed=order.seed,
            num_inference_steps=order.num_inference_steps,
            guidance_scale=order.guidance_scale,
            pictures=bundle.pictures,
            notice=notice_of(bundle.pictures),
            noise_floor=embedded.noise_floor,
            epochs=tuple(
                EpochPictures(**_facts(embedded, index, bundle), images=images[index], safety=verdicts[index])
                for index in range(len(images))
            ),
            report=embedded.report,
            timings=clock.timings(batch_size),
            preview=signal_previews(recordings) if fields.preview else (),
        )

    async def embedding(
        self, fields: EmbeddingFields, contents: Sequence[bytes], *, owner: str
    ) -> EmbeddingResponse:
        """Decode recordings to image embeddings."""
        clock = StageClock(self._metrics)
        served = await self.bundle(fields.bundle)
        bundle = served.info
        people = self._check_subject(fields, served, owner)
        recordings = await self._read(fields, contents, bundle, clock, _ignore, owner)
        embedded = await self._embed(served, fields, recordings, people, clock, _ignore)
        return EmbeddingResponse(
            id=uuid.uuid4().hex,
            bundle_id=bundle.id,
            preprocessing_hash=bundle.preprocessing_hash,
            noise_floor=embedded.noise_floor,
            epochs=tuple(
                EpochEmbedding(
                    **_facts(embedded, index, bundle), embedding=tuple(embedded.image_embeds[index].tolist())
                )
                for index in range(len(embedded.stimulus))
            ),
            report=embedded.report,
            timings=clock.timings(),
            preview=signal_previews(recordings) if fields.preview else (),
        )

    async def _generate(
        self,
        bundle: ServedBundle,
        embedded: EmbeddedEpochs,
        order: PictureOrder,
        clock: StageClock,
        on_progress: ProgressCallback | None,
        on_preview: PreviewCallback | None,
    ) -> Pictures:
        """Make pictures, and tell after every step if somebody listens."""
        tell = on_progress or _ignore
        tell(Progress(stage="generate", step=0, n_steps=1))

        def on_step(step: int, n_steps: int) -> None:
            tell(Progress(stage="generate", step=step, n_steps=n_steps))

        with clock.stage("generate"), self._queued(order.n_images * len(embedded.image_embeds)):
            watcher = Watcher(None if on_progress is None else on_step, on_preview)
            return await self._compute(self._backend.generate(bundle, embedded.image_embeds, order, watcher))

    async def _read(
        self,
        fields: EmbeddingFields,
        contents: Sequence[bytes],
        bundle: BundleInfo,
        clock: StageClock,
        tell: ProgressCallback,
        owner: str,
    ) -> list[SignalEpochs]:
        tell(Progress(stage="read", step=0, n_steps=len(contents)))
        with clock.stage("read"):
            reads = [
                self._sandbox.read(content, onsets=fields.onset_seconds(), window=bundle.window, owner=owner)
                for content in contents
            ]
            return [_accepted(result, index, len(reads)) for index, result in enumerate(await asyncio.gather(*reads))]

    async def _embed(
        self,
        bundle: ServedBundle,
        fields: EmbeddingFields,
        recordings: Sequence[SignalEpochs],
        people: Sequence[PersonFile],
        clock: StageClock,
        tell: ProgressCallback,
    ) -> EmbeddedEpochs:
        tell(Progress(stage="embed", step=0, n_steps=1))
        with clock.stage("embed"):
            embedded = await self._compute(
                self._backend.embed(
                    bundle, recordings, subject=fields.subject, average=fields.average, people=people
                )
            )
        if has_numbered(embedded.stimulus):
            report = embedded.report
            embedded = replace(embedded, report=report.model_copy(update={"warnings": (*report.warnings, NUMBERED)}))
        for confidence in embedded.confidence:
            self._metrics.confidence.observe(float(confidence))
        return embedded

    @contextmanager
    def _queued(self, n_pictures: int) -> Iterator[None]:
        self._metrics.queued_pictures.inc(n_pictures)
        try:
            yield
        finally:
            self._metrics.queued_pictures.dec(n_pictures)

    async def _compute(self, work: Awaitable[Value]) -> Value:
        """Await the backend and turn what it raises into refusals."""
        try:
            return await work
        except EpochsMismatch as error:
            raise refusal("epochs_mismatch", str(error)) from None
        except asyncio.QueueFull:
            raise refusal(
                "queue_full",
                "the models have a full queue; try again after the seconds in Retry-After",
                retry_after_s=_RETRY_QUEUE_S,
            ) from None
        except ConnectionError:
            raise refusal(
                "replica_lost",
                "the process that worked on this request was lost and is being replaced; send the request again",
                retry_after_s=_RETRY_LOST_S,
            ) from None


def _accepted(result: SignalEpochs | Refused, index: int, n_files: int) -> SignalEpochs:
    if isinstance(result, Refused):
        where = f"file {index + 1}: " if n_files > 1 else ""
        later = _RETRY_QUEUE_S if result.code in PASSING else None
        raise refusal(result.code, where + result.detail, retry_after_s=later)
    return result


def _count(embedded: EmbeddedEpochs, fields: GenerationFields) -> int:
    """Count the pictures of an answer, and refuse too many."""
    n_pictures = len(embedded.stimulus) * fields.images
    if n_pictures > MAX_PICTURES:
        raise refusal(
            "too_many_pictures",
            f"{len(embedded.stimulus)} epochs with {fields.images} images each make {n_pictures} pictures, at most "
            f"{MAX_PICTURES} are made per request; lower images, send fewer epochs, or set average",
        )
    return n_pictures


def _facts(embedded: EmbeddedEpochs, index: int, bundle: BundleInfo) -> dict[str, Any]:
    """Give the fields that both kinds of answer have for an epoch."""
    confidence = float(embedded.confidence[index])
    probability = float(embedded.probability[index]) if len(embedded.probability) else math.nan
    is_category = bundle.pictures == "category"
    return {
        "index": index,
        "stimulus": embedded.stimulus[index],
        "n_averaged": embedded.n_averaged[index],
        "confidence": confidence,
        "confidence_words": (
            category_in_words(confidence, bundle.embed_dim) if is_category else confidence_in_words(confidence)
        ),
        "probability": None if math.isnan(probability) else probability,
        "neighbours": embedded.neighbours[index],
    }


def _encode(pictures: Pictures, bundle: BundleInfo, order: PictureOrder, marker: Marker) -> list[tuple[str, ...]]:
    """Encode generated pictures with their marks, those of one epoch in a row."""
    return [
        tuple(to_base64(marker.png(image, _made(bundle, order, index, number))) for number, image in enumerate(images))
        for index, images in enumerate(pictures.images)
    ]


def _made(bundle: BundleInfo, order: PictureOrder, epoch: int, image: int) -> PictureFacts:
    return PictureFacts(
        bundle=bundle.id,
        preprocessing=bundle.preprocessing_hash,
        seed=order.seed,
        epoch=epoch,
        image=image,
        num_inference_steps=order.num_inference_steps,
        guidance_scale=order.guidance_scale,
    )


def _verdicts(pictures: Pictures, epoch: int) -> tuple[Verdict, ...]:
    unchecked: tuple[Verdict, ...] = ("not checked",)
    if pictures.flagged is None:
        return unchecked * int(pictures.images.shape[1])
    verdicts: list[Verdict] = ["refused" if bad else "passed" for bad in pictures.flagged[epoch]]
    return tuple(verdicts)


def _ignore(progress: Progress) -> None:
    return None
