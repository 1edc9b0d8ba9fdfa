"""The sensors of THINGS-MEG: 272 of a CTF-275 helmet, of which one is broken and never used."""

from functools import lru_cache

from encoders.sensors import standard_layout

BROKEN_SENSOR = "MRO11"
_NOT_CONNECTED = {"MLF25", "MRF43", "MRO13"}
_NOT_IN_LAYOUT = {"MLO42"}


@lru_cache(maxsize=1)
def things_meg_ch_names() -> tuple[str, ...]:
    """Return the names of the 271 sensors that are used, in the order of the recordings (which is alphabetical)."""
    helmet = set(standard_layout("ctf275").ch_names) | _NOT_IN_LAYOUT
    return tuple(sorted(helmet - _NOT_CONNECTED - {BROKEN_SENSOR}))
