"""What a message repeats of a stranger's file is short, plain and printable."""

import pytest
from hostile_files import SHOUTS

from encoders.quotation import printable, quoted


@pytest.mark.parametrize("name", ["Fp1", "EEG 001", "MLC11-1609", "\u0141\u00f3d\u017a", "A" * 100])
def test_names_of_channels_are_quoted(name: str) -> None:
    assert quoted(name) == f"'{name}'"


@pytest.mark.parametrize("text", [*SHOUTS, "\ud800", "", "/etc/passwd", "a'b", "a\nb", "a\u200bb", "A" * 101])
def test_of_everything_else_only_the_length_is_told(text: str) -> None:
    assert quoted(text) == f"(text of {len(text)} characters)"


@pytest.mark.parametrize("text", [*SHOUTS, "\ud800\udc00", "a\x00b\x7f\x9b\u2028", "plain text"])
def test_what_does_not_print_is_replaced_and_the_rest_kept(text: str) -> None:
    said = printable(text, 50)
    assert said.isprintable() and said.encode() and len(said) == min(len(text), 50)
    assert [a for a in said if a != "?"] == [a for a in text[:50] if a.isprintable()]
