"""What the service tells about a job, as pydantic models; the client imports this module, so it needs pydantic only."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.schema import GenerationResponse, Problem, Progress

JobState = Literal["queued", "running", "finished", "failed"]
ENDED: tuple[JobState, ...] = ("finished", "failed")
MAX_KEY = 255


class JobStatus(BaseModel):
    """The answer of `GET /v1/jobs/{id}`; once the job has ended it does not change any more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="whoever has it may read and erase the job")
    status: JobState
    bundle_id: str
    created: datetime
    expires: datetime = Field(description="when job and result are erased")
    attempts: int = Field(description="runs so far; a run that was cut off by its process counts, at most 2 are made")
    progress: Progress | None = None
    result: GenerationResponse | None = Field(None, description="when finished")
    problem: Problem | None = Field(None, description="when failed")


class JobPreview(BaseModel):
    """One `preview` event: the first picture of the job as far as it has been denoised."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    image: str = Field(description="base64 PNG, marked as generated in its metadata")


class ErasedJobs(BaseModel):
    """The answer of `DELETE /v1/me`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_jobs: int = Field(description="jobs that were cancelled or had ended, and are erased now")
