"""A generator deployment whose warm-up can be seen from outside and takes a while, as that of large weights does."""

import json
import os
import time
from pathlib import Path
from typing import Any

from generation.pipeline import ReconstructionPipeline
from serving.app import Generator
from serving.workers import GeneratorWorker

WARMING_S = 4.0
FOLDER = "PHOSPHENE_TEST_WARM"


class WarmingGenerator(Generator):
    """Writes into a folder how many pictures each batch of its warm-up had, and when the warm-up was over."""

    def __init__(self, *arguments: Any) -> None:
        plain_init, plain_decode = GeneratorWorker.__init__, ReconstructionPipeline.decode

        def init(worker: GeneratorWorker, *arguments: Any) -> None:
            batches: list[int] = []

            def decode(pipeline: ReconstructionPipeline, image_embeds: Any, **keywords: Any) -> Any:
                batches.append(len(image_embeds))
                return plain_decode(pipeline, image_embeds, **keywords)

            ReconstructionPipeline.decode = decode
            plain_init(worker, *arguments)
            ReconstructionPipeline.decode = plain_decode
            time.sleep(WARMING_S)
            told = {"batches": batches, "warm_at": time.time()}
            (Path(os.environ[FOLDER]) / f"{os.getpid()}.json").write_text(json.dumps(told))

        GeneratorWorker.__init__ = init
        super().__init__(*arguments)
