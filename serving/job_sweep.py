"""Erases what nobody may see any more: jobs that have expired, uploads of ended jobs, files that a crash left over."""

from serving.job_blobs import KINDS, JobBlobs, Kind, erase_blobs
from serving.job_schema import ENDED
from serving.job_store import JobStore
from serving.job_table import Job

# An upload is younger than this while its row is being written, a result while its job is being ended.
_GRACE_S = 30.0


def sweep(store: JobStore, blobs: JobBlobs) -> int:
    """Sweep once and return how many rows and files were removed; OSError if store or blobs cannot be used."""
    expired = store.sweep()
    for job in expired:
        erase_blobs(blobs, job)
    n_removed = len(expired)
    for kind in KINDS:
        names = blobs.names(kind)
        known = store.known(sorted({name.split(".")[0] for name in names}))
        for name in names:
            owner = known.get(name.split(".")[0])
            if not _belongs(kind, name, owner) and (_has_ended(owner) or blobs.age_s(kind, name) > _GRACE_S):
                blobs.remove(kind, name)
                n_removed += 1
    store.shrink()
    return n_removed


def _belongs(kind: Kind, name: str, job: Job | None) -> bool:
    if job is None:
        return False
    if kind == "results":
        return name == job.result
    return name == job.id and not _has_ended(job)


def _has_ended(job: Job | None) -> bool:
    return job is not None and job.status in ENDED
