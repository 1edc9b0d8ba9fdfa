"""A worker of jobs in a process of its own, without models: what an upload says is what happens.

    python tests/job_process.py SETTINGS_JSON STACK

"ok N" gives a result whose seed is N, "slow S" takes S seconds in 20 steps, "kill" ends the process, "error" raises,
"refuse" is refused, "busy FILE" is told that the queue is full until FILE exists, "lost" lost its replica,
"step FILE" writes a line into FILE when it starts and waits.
"""

import asyncio
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from serving.backend import Preview, PreviewCallback
from serving.job_worker import JobWorker, OnProgress
from serving.problems import refusal
from serving.schema import EXAMPLE_GENERATION, GenerationFields, GenerationResponse, Progress
from serving.settings import JobSettings

BUNDLE = "fake-1"


def response(seed: int) -> GenerationResponse:
    return GenerationResponse.model_validate(EXAMPLE_GENERATION | {"seed": seed})


async def answer(
    fields: GenerationFields,
    contents: Sequence[bytes],
    on_progress: OnProgress,
    on_preview: PreviewCallback,
    *,
    owner: str,
) -> GenerationResponse:
    order, _, value = contents[0].decode().partition(" ")
    on_progress(Progress(stage="embed", step=0, n_steps=1))
    if order == "kill":
        await asyncio.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "error":
        raise RuntimeError("planted")
    if order == "refuse":
        raise refusal("epochs_mismatch", "planted: this is no recording")
    if order == "lost":
        raise refusal("replica_lost", "planted")
    if order == "no-room":
        raise refusal("uploads_down", "planted", retry_after_s=1)
    if order == "busy" and not Path(value).exists():
        raise refusal("queue_full", "planted", retry_after_s=1)
    if order == "step":
        with open(value, "a") as file:
            file.write(f"{os.getpid()}\n")
        await asyncio.sleep(600.0)
    if order == "slow":
        picture = io.BytesIO()
        Image.new("RGB", (4, 4), "red").save(picture, format="PNG")
        for step in range(20):
            await asyncio.sleep(float(value) / 20)
            on_progress(Progress(stage="generate", step=step + 1, n_steps=20))
            on_preview(Preview(step + 1, picture.getvalue()))
    return response(int(value) if order == "ok" else fields.seed)


def main() -> None:
    settings = JobSettings.model_validate_json(sys.argv[1])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs in the background ignore it
    worker = JobWorker(settings, answer, bundles=lambda: [BUNDLE], stack=sys.argv[2])
    print("ready", flush=True)
    asyncio.run(worker.run())


if __name__ == "__main__":
    main()
