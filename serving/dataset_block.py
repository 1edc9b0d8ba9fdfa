"""Decoding one block of a data set: a range of epochs in, pictures and the block's table out.

It knows no Ray. A block is finished once its table exists, so whoever dies in here leaves nothing that looks finished.
What comes out depends on the settings of the run and the block alone: epochs have their own seeds.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from encoders.answer_table import write_answers
from encoders.durable_files import write_atomic
from encoders.epoch_ranges import EpochRange, read_range
from encoders.epochs import EpochsMismatch, SignalEpochs
from serving.backend import EmbeddedEpochs, PictureOrder
from serving.local_backend import LocalBackend
from serving.provenance import Marker, PictureFacts
from serving.rendering import from_base64_bytes
from serving.schema import MAX_IMAGES, MAX_SEED, MAX_STEPS
from serving.settings import ReplicaSettings, ServingSettings

BLOCKS, PICTURES = "blocks", "pictures"


class DatasetSettings(BaseModel):
    """What decides the pictures of a run, beside the data and the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0, le=MAX_SEED)
    images: int = Field(1, ge=1, le=MAX_IMAGES)
    num_inference_steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = Field(None, ge=0.0)
    block_epochs: int = Field(32, ge=1, le=512)
    batch_size: int = Field(8, ge=1)


def epoch_seed(seed: int, name: str, epoch: int) -> int:
    """Derive the seed of an epoch from the run's seed and the epoch's identity; the service takes it as ``seed``."""
    digest = hashlib.sha256(f"{seed}:{name}:{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % (MAX_SEED + 1)


def block_file(out: Path, number: int) -> Path:
    """Return the table of a block."""
    return out / BLOCKS / f"{number:07d}.parquet"


class BlockDecoder:
    """Holds the models of a bundle; decodes blocks into a folder."""

    def __init__(self, bundle: str, settings: Mapping[str, Any], out: str) -> None:
        self._settings = DatasetSettings.model_validate(dict(settings))
        self._out = Path(out)
        # the pictures of a block are ordered one by one, all at once, and batched in batches that change no picture
        room = ReplicaSettings(max_ongoing_requests=self._settings.block_epochs)
        serving = ServingSettings(
            bundle=Path(bundle), generator=room, byte_equal=True, max_batch_size=self._settings.batch_size
        )
        self._backend = LocalBackend(serving)
        self._marker = Marker()
        self._runner = asyncio.Runner()
        self._bundle = self._runner.run(self._backend.describe(self._backend.places()[0]))
        self._info = self._bundle.info

    def decode(self, number: int, block: EpochRange) -> None:
        """Decode a block, unless it is finished.

        Raises
        ------
        OSError
            If the disk is full or cannot be written.
        """
        target = block_file(self._out, number)
        if not target.exists():
            write_answers(target, self._runner.run(self._rows(number, block)))

    def close(self) -> None:
        """Stop the event loop."""
        self._runner.run(self._backend.aclose())
        self._runner.close()

    async def _rows(self, number: int, block: EpochRange) -> list[dict[str, Any]]:
        try:
            return await self._good(number, block)
        except EpochsMismatch as error:
            if block.stop - block.start == 1:
                return [{"source": block.name, "epoch": block.start, "refused": str(error)}]
        # one bad epoch, or several: they are found by looking at each alone
        singles = [await self._rows(number, block.one(index)) for index in range(block.start, block.stop)]
        return [row for rows in singles for row in rows]

    async def _good(self, number: int, block: EpochRange) -> list[dict[str, Any]]:
        epochs = read_range(block)
        subject = epochs.subject if epochs.subject in self._info.subjects else ""
        embedded = await self._backend.embed(self._bundle, [epochs], subject=subject, average=False)
        made = [self._row(number, block, epochs, embedded, index) for index in range(epochs.n_epochs)]
        return list(await asyncio.gather(*made))

    async def _row(
        self, number: int, block: EpochRange, epochs: SignalEpochs, embedded: EmbeddedEpochs, index: int
    ) -> dict[str, Any]:
        epoch = block.start + index
        seed = epoch_seed(self._settings.seed, block.name, epoch)
        pngs, safety = await self._pictures(embedded, index, seed)
        folder = self._out / PICTURES / f"{number:07d}"
        files = [folder / f"epoch-{epoch:07d}-image-{image}.png" for image in range(len(pngs))]
        folder.mkdir(parents=True, exist_ok=True)
        for file, png in zip(files, pngs, strict=True):
            await asyncio.to_thread(write_atomic, file, png)
        probability = float(embedded.probability[index]) if len(embedded.probability) else float("nan")
        return {
            "source": block.name,
            "epoch": epoch,
            "subject": epochs.subject,
            "stimulus": embedded.stimulus[index],
            "n_averaged": embedded.n_averaged[index],
            "seed": seed,
            "pictures": [str(file.relative_to(self._out)) for file in files],
            "safety": safety,
            "confidence": float(embedded.confidence[index]),
            "probability": None if np.isnan(probability) else probability,
            "noise_floor": embedded.noise_floor,
            "neighbours": [one.model_dump(include={"name", "caption", "similarity"}) for one in
                           embedded.neighbours[index]],
            "flags": [flag.code for flag in embedded.report.flags if index in flag.epochs],
        }  # fmt: skip

    async def _pictures(self, embedded: EmbeddedEpochs, index: int, seed: int) -> tuple[list[bytes], list[str]]:
        """Return the PNG files of one epoch and what the safety check said of each."""
        settings, info = self._settings, self._info
        if info.pictures != "generated":
            shown = embedded.neighbours[index][: settings.images]
            return [from_base64_bytes(one.thumbnail) for one in shown], ["not checked"] * len(shown)
        order = PictureOrder(
            n_images=settings.images,
            seed=seed,
            num_inference_steps=settings.num_inference_steps or info.num_inference_steps,
            guidance_scale=info.guidance_scale if settings.guidance_scale is None else settings.guidance_scale,
        )
        pictures = await self._backend.generate(self._bundle, embedded.image_embeds[index : index + 1], order)
        marked = [
            self._marker.png(
                image,
                PictureFacts(
                    bundle=info.id, preprocessing=info.preprocessing_hash, seed=seed, epoch=0, image=number,
                    num_inference_steps=order.num_inference_steps, guidance_scale=order.guidance_scale,
                ),
            )
            for number, image in enumerate(pictures.images[0])
        ]  # fmt: skip
        if pictures.flagged is None:
            return marked, ["not checked"] * len(marked)
        return marked, ["refused" if bad else "passed" for bad in pictures.flagged[0]]
