"""From uploaded bytes to an answer: read, embed, generate, encode, with progress, timings and refusals."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from encoders.epochs import EpochsMismatch, SignalEpochs
from serving.backend import Backend, EmbeddedEpochs, PictureOrder, Pictures
from serving.metrics import Metrics
from serving.previews import signal_previews
from serving.problems import refusal
from serving.rendering import encode_png, to_base64
from serving.sandbox import Refused, Sandbox
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
    Timings,
    confidence_in_words,
)
from serving.traces import span

ProgressCallback = Callable[[Progress], None]
Value = TypeVar("Value")

_RETRY_QUEUE_S = 2
_RETRY_LOST_S = 10


class _Clock:
    """Milliseconds per stage of one request."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started = time.perf_counter()
        self.ms = {"read": 0.0, "embed": 0.0, "generate": 0.0, "encode": 0.0}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        # a refused or cancelled stage leaves the queue too, and has no latency
        with self._metrics.stage_requests.labels(name).track_inprogress(), span(name):
            yield
        seconds = time.perf_counter() - started
        self.ms[name] = round(1000.0 * seconds, 2)
        self._metrics.stage_seconds.labels(name).observe(seconds)

    def timings(self, batch_size: int = 0) -> Timings:
        total = time.perf_counter() - self._started
        self._metrics.stage_seconds.labels("total").observe(total)
        return Timings(
            read_ms=self.ms["read"],
            embed_ms=self.ms["embed"],
            generate_ms=self.ms["generate"],
            encode_ms=self.ms["encode"],
            total_ms=round(1000.0 * total, 2),
            batch_size=batch_size,
        )


class Answers:
    """Answer requests with a backend and a sandbox.

    Every refusal leaves as the exception that `serving.problems.refusal` builds.
    """

    def __init__(self, backend: Backend, sandbox: Sandbox, metrics: Metrics) -> None:
        self._backend = backend
        self._sandbox = sandbox
        self._metrics = metrics

    async def generation(
        self, fields: GenerationFields, contents: Sequence[bytes], on_progress: ProgressCallback | None = None
    ) -> GenerationResponse:
        """Decode recordings to pictures."""
        tell = on_progress or _ignore
        clock = _Clock(self._metrics)
        bundle = await self._compute(self._backend.describe())
        recordings, embedded = await self._embed(fields, contents, bundle, clock, tell)
        n_pictures = len(embedded.stimulus) * fields.images
        if n_pictures > MAX_PICTURES:
            raise refusal(
                "too_many_pictures",
                f"{len(embedded.stimulus)} epochs with {fields.images} images each make {n_pictures} pictures, at most "
                f"{MAX_PICTURES} are made per request; lower images, send fewer epochs, or set average",
            )
        order = PictureOrder(
            n_images=fields.images,
            seed=fields.seed,
            num_inference_steps=fields.num_inference_steps or bundle.num_inference_steps,
            guidance_scale=bundle.guidance_scale if fields.guidance_scale is None else fields.guidance_scale,
        )
        tell(Progress(stage="generate", step=0, n_steps=1))

        def on_step(step: int, n_steps: int) -> None:
            tell(Progress(stage="generate", step=step, n_steps=n_steps))

        with clock.stage("generate"), self._queued(n_pictures):
            callback = None if on_progress is None else on_step
            pictures = await self._compute(self._backend.generate(embedded.image_embeds, order, callback))
        tell(Progress(stage="encode", step=0, n_steps=1))
        with clock.stage("encode"):
            epochs = await asyncio.to_thread(_encode, embedded, pictures, bundle.id, order)
        self._metrics.pictures.inc(n_pictures)
        self._metrics.batch_size.observe(pictures.batch_size)
        return GenerationResponse(
            id=uuid.uuid4().hex,
            bundle_id=bundle.id,
            preprocessing_hash=bundle.preprocessing_hash,
            seed=order.seed,
            num_inference_steps=order.num_inference_steps,
            guidance_scale=order.guidance_scale,
            epochs=epochs,
            report=embedded.report,
            timings=clock.timings(pictures.batch_size),
            preview=signal_previews(recordings) if fields.preview else (),
        )

    async def embedding(self, fields: EmbeddingFields, contents: Sequence[bytes]) -> EmbeddingResponse:
        """Decode recordings to image embeddings."""
        clock = _Clock(self._metrics)
        bundle = await self._compute(self._backend.describe())
        recordings, embedded = await self._embed(fields, contents, bundle, clock, _ignore)
        return EmbeddingResponse(
            id=uuid.uuid4().hex,
            bundle_id=bundle.id,
            preprocessing_hash=bundle.preprocessing_hash,
            epochs=tuple(
                EpochEmbedding(
                    index=index,
                    stimulus=embedded.stimulus[index],
                    n_averaged=embedded.n_averaged[index],
                    confidence=float(embedded.confidence[index]),
                    confidence_words=confidence_in_words(float(embedded.confidence[index])),
                    neighbours=embedded.neighbours[index],
                    embedding=tuple(embedded.image_embeds[index].tolist()),
                )
                for index in range(len(embedded.stimulus))
            ),
            report=embedded.report,
            timings=clock.timings(),
            preview=signal_previews(recordings) if fields.preview else (),
        )

    async def _embed(
        self,
        fields: EmbeddingFields,
        contents: Sequence[bytes],
        bundle: BundleInfo,
        clock: _Clock,
        tell: ProgressCallback,
    ) -> tuple[list[SignalEpochs], EmbeddedEpochs]:
        if fields.subject and fields.subject not in bundle.subjects:
            raise refusal(
                "bad_field",
                f"subject {fields.subject!r} is not known to this bundle, which knows {list(bundle.subjects)}; "
                "leave it empty for an unknown person",
            )
        tell(Progress(stage="read", step=0, n_steps=len(contents)))
        with clock.stage("read"):
            reads = [
                self._sandbox.read(content, onsets=fields.onset_seconds(), window=bundle.window) for content in contents
            ]
            recordings = [
                _accepted(result, index, len(reads)) for index, result in enumerate(await asyncio.gather(*reads))
            ]
        tell(Progress(stage="embed", step=0, n_steps=1))
        with clock.stage("embed"):
            embedded = await self._compute(
                self._backend.embed(recordings, subject=fields.subject, average=fields.average)
            )
        for confidence in embedded.confidence:
            self._metrics.confidence.observe(float(confidence))
        return recordings, embedded

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
        raise refusal(result.code, where + result.detail)
    return result


def _encode(
    embedded: EmbeddedEpochs, pictures: Pictures, bundle_id: str, order: PictureOrder
) -> tuple[EpochPictures, ...]:
    return tuple(
        EpochPictures(
            index=index,
            stimulus=embedded.stimulus[index],
            n_averaged=embedded.n_averaged[index],
            confidence=float(embedded.confidence[index]),
            confidence_words=confidence_in_words(float(embedded.confidence[index])),
            neighbours=embedded.neighbours[index],
            images=tuple(
                to_base64(
                    encode_png(
                        image,
                        {
                            "phosphene:bundle": bundle_id,
                            "phosphene:seed": str(order.seed),
                            "phosphene:epoch": str(index),
                            "phosphene:image": str(number),
                        },
                    )
                )
                for number, image in enumerate(images)
            ),
        )
        for index, images in enumerate(pictures.images)
    )


def _ignore(progress: Progress) -> None:
    return None
