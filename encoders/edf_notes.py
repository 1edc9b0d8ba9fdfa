"""The annotations of an EDF+ or BDF+ file, walked before the reader searches them.

MNE finds them with a regular expression that goes back over what does not end as it should: in the square of its
length, and in the cube for digits. Layout: Kemp & Olivan 2003, section 2.2.2, "time-stamped annotations lists".
"""

import re

from encoders.epochs import EpochsMismatch
from encoders.part_bounds import at_most

MAX_LISTS = 300_000
MAX_NOTES = 30_000
MAX_LETTERS = 30_000_000
MAX_STEPS = 20_000_000
MAX_OPEN = 10_000
_DAMAGED = "the annotations of the file are damaged; export the recording again, or without them"
_LIST = re.compile(rb"[^\x00]+")
_SOUND = re.compile(rb"[+-]\d{1,20}(\.\d{0,20})?(\x15\d{1,20}(\.\d{0,20})?)?\x14([^\n]*\x14)?")
_START = re.compile(rb"[+-][\d\x80-\xff][\d.\x15\x80-\xff]*")


def check_notes(content: bytes) -> None:
    """Check the bytes of the annotation signals, in the order in which the reader joins them.

    Some damaged annotations are let through, as devices write them, but not so many that the search takes long.

    Raises
    ------
    EpochsMismatch
        If there are too many annotations, or too many damaged ones.
    """
    n_lists, n_notes, longest = 0, 0, 0
    steps, n_open, opened_at = 0, 0, 0
    for found in _LIST.finditer(content):
        n_lists += 1
        text = found.group()
        if _SOUND.fullmatch(text):
            notes = [len(note) for note in text.split(b"\x14")[1:] if note]
            n_notes, longest = n_notes + len(notes), max(longest, *notes, 0)
            # the search for the end of everything that began and did not end before comes to its end here
            steps, n_open, opened_at = steps + n_open * found.end() - opened_at, 0, 0
        else:
            for start in _START.finditer(text):
                n_open, opened_at = n_open + 1, opened_at + found.start() + start.start()
                steps += len(start.group()) ** 3 // 10
                if n_open > at_most(MAX_OPEN) or steps + n_open * found.end() - opened_at > at_most(MAX_STEPS):
                    raise EpochsMismatch(_DAMAGED)
        most = at_most(MAX_NOTES)
        if n_lists > at_most(MAX_LISTS) or n_notes > most or n_notes * longest > at_most(MAX_LETTERS):
            raise EpochsMismatch(
                f"the file has too many or too long annotations, at most {most} are read; send a part of the "
                "recording"
            )
    if steps + n_open * len(content) - opened_at > at_most(MAX_STEPS):
        raise EpochsMismatch(_DAMAGED)
