"""Names of stimuli that may leave the reader of a service: codes and file names, and nothing that somebody typed.

An annotation is free text, so it may say who was recorded or when. A name is kept if it looks as names of stimuli do;
any other is numbered, the same one with the same number, so that repetitions can still be averaged. That a single word
is the name of a person cannot be known here, unless the header of the file has it too.
"""

import re
from collections.abc import Iterable, Sequence

FREE_TEXT = "free text"
"""What a name that was not kept becomes, with a number."""
MAX_NAME = 64
NUMBERED = (
    "some events are named by free text, which may identify a person; here they are called 'free text' and a number. "
    "Names that are kept: one word without spaces ('aardvark_01b.jpg', 'Stimulus/S1'), numbers after it ('scene 2'), "
    "or two words in small letters ('body part'); no dates, and no name that the header gives to the person"
)
_CODE = re.compile(r"[\w./\\:#+=-]+( +\d+)*|[a-z]+ [a-z]+")
_DATE = re.compile(
    r"(?<!\d)(\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./](\d{4}|\d{2})|\d{1,2}[-./][A-Za-z]{3}[-./]\d{2,4}"
    r"|(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01]))(?!\d)"
)
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")


def kept_names(names: Sequence[str], person: str, numbers: dict[str, str] | None = None) -> tuple[str, ...]:
    """Return the names of stimuli, those that may identify a person replaced by numbered ones.

    Parameters
    ----------
    names : sequence of str
        One per epoch; empty where unknown, which stays.
    person : str
        What the header of the file says of who was recorded.
    numbers : dict, optional
        Names that were replaced before, and by what, where names come one after the other; new ones are added.
    """
    words = {word.casefold() for word in _LONG_WORD.findall(person)}
    numbers = {} if numbers is None else numbers
    for name in names:
        if name and name not in numbers and not _is_harmless(name, person, words):
            numbers[name] = f"{FREE_TEXT} {len(numbers) + 1}"
    return tuple(numbers.get(name, name) for name in names)


def has_numbered(names: Iterable[str]) -> bool:
    """Tell whether `kept_names` replaced any of these."""
    return any(name.startswith(f"{FREE_TEXT} ") for name in names)


def _is_harmless(name: str, person: str, words: set[str]) -> bool:
    if len(name) > MAX_NAME or not _CODE.fullmatch(name) or _DATE.search(name):
        return False
    if person and name.casefold() == person.casefold():
        return False
    return not words & {word.casefold() for word in _LONG_WORD.findall(name)}
