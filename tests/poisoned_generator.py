"""A generator deployment that some seeds break, as a bad epoch, a crash or a failing device would."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from generation.pipeline import seed_for
from serving.app import Generator
from serving.backend import BundlePlace
from serving.workers import GeneratorWorker, PictureItem

KILLS, RAISES, BREAKS_DEVICE = 666, 13, 99


class PoisonedGenerator(Generator):
    """Ends its process at seed `KILLS`, raises at `RAISES`, and meets one device fault at `BREAKS_DEVICE`."""

    def _load(self, place: BundlePlace) -> GeneratorWorker:
        worker = super()._load(place)
        broken_once = Path(place.folder).parent / "broken"
        pipeline = worker._pipeline
        plain_decode, plain_run = pipeline.decode, worker._run

        def run(items: Sequence[PictureItem], key: object, on_step: object) -> object:
            seeds = {item.seed for item in items}
            if seed_for(KILLS, 0, 0) in seeds:
                os.kill(os.getpid(), signal.SIGKILL)
            if seed_for(RAISES, 0, 0) in seeds:
                raise RuntimeError("planted: a bad epoch")
            return plain_run(items, key, on_step)  # type: ignore[arg-type]

        def decode(*arguments: object, seeds: Sequence[int], **keywords: object) -> object:
            if seed_for(BREAKS_DEVICE, 0, 0) in seeds and not broken_once.exists():
                broken_once.touch()
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return plain_decode(*arguments, seeds=seeds, **keywords)  # type: ignore[arg-type]

        worker._batcher._run_batch = run  # type: ignore[assignment]
        pipeline.decode = decode  # type: ignore[assignment]
        return worker
