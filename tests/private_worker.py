"""A worker of jobs in a process of its own, with the real reader of uploads and real models of random weights.

python tests/private_worker.py SETTINGS_JSON BUNDLE_ID
"""

import asyncio
import sys

from serving.answers import Answers
from serving.job_worker import JobWorker
from serving.metrics import Metrics
from serving.sandbox import open_sandbox
from serving.settings import ServingSettings
from serving.workers import LocalBackend


async def main() -> None:
    settings = ServingSettings.model_validate_json(sys.argv[1])
    sandbox = open_sandbox(settings)
    await sandbox.start()
    answers = Answers(LocalBackend(settings), sandbox, Metrics())
    worker = JobWorker(settings.jobs, answers.generation, bundle_id=sys.argv[2], stack="private")
    print("ready", flush=True)
    try:
        await worker.run()
    finally:
        sandbox.close()


if __name__ == "__main__":
    asyncio.run(main())
