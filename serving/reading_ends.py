"""What is told of an upload whose process ended without an answer: why, and whose fault that is."""

import os
import signal

from encoders.durable_files import is_full
from serving.settings import ParseLimits

# Exit statuses of `serving.parse_child`: all was said, or nobody is there; something unforeseen; two known reasons.
DONE, FAILED, NO_ROOM, LATE = 0, 1, 3, 4
_SHORTER = "send a shorter recording"


def status_of(error: BaseException) -> int:
    """Return the exit status that stands for an exception."""
    if isinstance(error, TimeoutError):
        return LATE
    return NO_ROOM if is_full(error) else FAILED


def reason_of(status: int, cpu_s: float, limits: ParseLimits, *, ended_for: str = "") -> tuple[str, str] | None:
    """Say why a process ended.

    Parameters
    ----------
    status : int
        Its wait status.
    cpu_s : float
        Seconds of processor time that it used.
    limits : ParseLimits
        What it was allowed.
    ended_for : {"", "time", "files"}
        Which limit the parse server ended it for, if it did.

    Returns
    -------
    tuple of str, or None
        A code of `serving.problems.CODES` and a sentence; None if it ended as it should.
    """
    ended = os.waitstatus_to_exitcode(status)
    if ended == DONE or ended == -signal.SIGIO:  # the second: its client hung up
        return None
    if ended_for == "time" or ended in (-signal.SIGALRM, LATE):
        return "reading_timed_out", f"reading the file took longer than {limits.wall_s:g} s; {_SHORTER}"
    if ended_for == "files":
        return "reading_failed", f"the file unpacks to over {limits.n_files} files, or too many bytes; {_SHORTER}"
    if ended == -signal.SIGXCPU or (ended == -signal.SIGKILL and cpu_s >= limits.cpu_s):
        return "reading_timed_out", f"reading the file took more than {limits.cpu_s} s of processor time; {_SHORTER}"
    if ended in (NO_ROOM, -signal.SIGKILL):
        lack = "no room in the temporary folder" if ended == NO_ROOM else "most likely no memory left"
        return "uploads_down", f"the file could not be read: there is {lack} at the moment; try again later"
    name = next((one.name for one in signal.Signals if one == -ended), f"signal {-ended}")  # not all have one
    how = f"ended by {name}" if ended < 0 else "failed"
    return "reading_failed", f"the process that read the file {how}; the file is damaged, or a reader has a fault"
