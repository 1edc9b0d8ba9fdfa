"""Annotations that MNE would search for long are refused in a moment; those of devices pass, some damaged ones too."""

import re
import time

import pytest

from encoders.edf_notes import MAX_NOTES, check_notes
from encoders.epochs import EpochsMismatch

KEEPING = b"+%d\x14\x14\x00" + bytes(100)
# MNE's own, which takes so long
SEARCH = re.compile("([+-]\\d+\\.?\\d*)(\x15(\\d+\\.?\\d*))?(\x14.*?)\x14\x00")


def day(*notes: bytes) -> bytes:
    """Return the annotations of a day's records of a second, the given ones in the first of them."""
    return b"".join(KEEPING % second + b"".join(notes[second : second + 1]) for second in range(86_400))


@pytest.mark.parametrize(
    "note",
    [
        b"+1.5\x14dog\x14\x00",
        b"-0.25\x150.5\x14dog\x14cat\x14\x00",
        b"+100.0000000\x1510\x14" + "Pr\u00fcfung \u6d4b\u8bd5".encode() + b"\x14\x00",
        b"+1\x14" + b"report " * 1000 + b"\x14\x00",
        b"+3\x14cut off at the end of the rec",
        b"+3\x14two\nlines\x14\x00",
        b"no annotation at all +5 or -7",
    ],
)
def test_annotations_of_a_day_pass_also_some_damaged_ones(note: bytes) -> None:
    check_notes(day(*[note] * 200))


@pytest.mark.parametrize(
    "notes",
    [
        b"+1\x14a" * 700_000,
        b"+1\x14a\x00" * 700_000,
        b"+1\x14a" * 5 + bytes(10_000_000),
        b"+" + b"1" * 4_000_000,
        (b"+" + b"1" * 100 + b"\x15" + b"1" * 200 + b"\x00") * 10_000,
        "+\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661".encode() * 200_000,
        (b"+1\x14" * 300 + b"\n\x14\x00") * 4000,
        b"+1\x14a\x14\x00" * (MAX_NOTES + 1),
        b"+1\x14" + b"a\x14" * (MAX_NOTES + 1) + b"\x00",
        b"+1\x14\x14\x00" * 800_000,
        b"+1\x14" + b"a" * 100_000 + b"\x14\x00" + b"+1\x14a\x14\x00" * 1000,
    ],
)
def test_what_takes_long_is_refused_in_a_moment(notes: bytes) -> None:
    started = time.process_time()
    with pytest.raises(EpochsMismatch, match="annotations"):
        check_notes(notes)
    assert time.process_time() - started < 1.0


def test_what_passes_is_searched_in_a_moment() -> None:
    """The worst that passes: as much of every kind as there may be."""
    worst = [b"+1\x14a" * 40 + bytes(100_000), b"+" + b"1" * 500, b"+1\x14a\x14\x00" * MAX_NOTES]
    for notes in (*worst, (b"+" + b"1" * 20 + b"\x15" + b"1" * 18 + b"\x00") * 500):
        check_notes(notes)
        started = time.process_time()
        SEARCH.findall(notes.decode())
        assert time.process_time() - started < 1.0
