"""A worker of jobs in a process of its own, with the real reader of uploads and real models of random weights.

python tests/private_worker.py SETTINGS_JSON
"""

import asyncio
import sys

from serving.answers import Answers
from serving.job_worker import JobWorker
from serving.local_backend import LocalBackend
from serving.metrics import Metrics
from serving.sandbox import open_sandbox
from serving.settings import ServingSettings


async def main() -> None:
    settings = ServingSettings.model_validate_json(sys.argv[1])
    sandbox = open_sandbox(settings)
    await sandbox.start()
    backend = LocalBackend(settings)
    answers = Answers(backend, sandbox, Metrics())
    bundles = [place.id for place in backend.places()]
    worker = JobWorker(settings.jobs, answers.generation, bundles=lambda: bundles, stack="private")
    print("ready", flush=True)
    try:
        await worker.run()
    finally:
        sandbox.close()


if __name__ == "__main__":
    asyncio.run(main())
