"""One set of small true recordings for the tests of all formats."""

from functools import cache
from pathlib import Path

from hostile_files import Canary

from benchmarks.sample_recordings import sample_recordings

CANARY = Canary(Path("/tmp/phosphene-absent/secret"), Path("/tmp/phosphene-absent/mark"))


@cache
def samples() -> dict[str, bytes]:
    """Return the recordings; made once per process."""
    return sample_recordings()
