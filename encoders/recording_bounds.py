"""What any recording may be at most, whatever its format: channels, rate, length, names, size of values.

Wide on purpose: nothing measured on a head comes near. `encoders.preprocess` asks whether a recording fits a model.
"""

import math
import re

import numpy as np

from encoders.epochs import MAX_CHANNELS as MAX_CHANNELS
from encoders.epochs import EpochsMismatch, SignalEpochs

MIN_SFREQ, MAX_SFREQ = 1.0, 200_000.0
MAX_BYTES = 2 * 1024**3
MAX_NAME = 100
MAX_STIMULUS = 500
MAX_TMIN_S = 1e4
# Volt, tesla or tesla per metre: values above this are in another unit, and overflow when they are squared.
MAX_VALUE = 1e9
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def check_rate(sfreq: float) -> None:
    """Refuse a sampling rate that no amplifier has.

    Raises
    ------
    EpochsMismatch
        If ``sfreq`` is not finite or not between `MIN_SFREQ` and `MAX_SFREQ` Hz.
    """
    if not (math.isfinite(sfreq) and MIN_SFREQ <= sfreq <= MAX_SFREQ):
        raise EpochsMismatch(
            f"the sampling rate is {sfreq:g} Hz, expected {MIN_SFREQ:g} to {MAX_SFREQ:g}; correct it in the file"
        )


def check_channel_names(names: tuple[str, ...]) -> None:
    """Refuse more channels than any device has, and names that are no names.

    Raises
    ------
    EpochsMismatch
        If there are more than `MAX_CHANNELS`, or a name is empty, long, or has control characters.
    """
    if not 1 <= len(names) <= MAX_CHANNELS:
        raise EpochsMismatch(f"the recording has {len(names)} channels, expected 1 to {MAX_CHANNELS}; leave some out")
    for number, name in enumerate(names):
        if not name.strip() or len(name) > MAX_NAME or _CONTROL.search(name):
            raise EpochsMismatch(
                f"channel {number} has a name that is empty, longer than {MAX_NAME} characters or has control "
                "characters; rename it"
            )


def check_bounds(epochs: SignalEpochs) -> None:
    """Check a recording that was read, once, where it enters.

    Raises
    ------
    EpochsMismatch
        If rate, names, times or the size of the values are beyond what a recording can be.
    """
    check_rate(epochs.sfreq)
    check_channel_names(epochs.ch_names)
    if abs(epochs.tmin) > MAX_TMIN_S:
        raise EpochsMismatch(f"epochs begin {epochs.tmin:g} s from their onset; give tmin in seconds from the onset")
    for text in (*epochs.stimulus, epochs.subject):
        if len(text) > MAX_STIMULUS or _CONTROL.search(text):
            raise EpochsMismatch(
                f"an event or subject has a name longer than {MAX_STIMULUS} characters or with control characters; "
                "rename it"
            )
    peak = float(np.abs(epochs.data).max())
    if peak > MAX_VALUE:
        raise EpochsMismatch(
            f"the largest value is {peak:.1e}, expected volt, tesla or tesla per metre; scale it"
        )
