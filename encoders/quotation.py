"""Words of a stranger's file in a message: short, plain, and neither a path nor a control character."""

import re

_PLAIN = re.compile(r"[\w .,:;()+*#=-]{1,100}")


def quoted(text: str) -> str:
    """Return a text in quotation marks; of one that is long or not plain, only how long it is."""
    return f"'{text}'" if _PLAIN.fullmatch(text) else f"(text of {len(text)} characters)"


def printable(text: str, n_letters: int) -> str:
    """Return the first letters of a text, with a question mark for each that does not print."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:n_letters])
