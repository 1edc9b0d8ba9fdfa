"""Metadata columns belong together and splits have known names."""

import pytest

from encoders.epoch_source import EpochMetadata


def columns(n: int = 2) -> dict[str, tuple[object, ...]]:
    texts = {name: ("a",) * n for name in ("image", "concept", "session", "run")}
    return {**texts, "split": ("train",) * n, "repetition": tuple(range(n))}


def test_columns_of_one_length_are_accepted() -> None:
    assert len(EpochMetadata(**columns(3))) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["image", "concept", "split", "session", "run", "repetition"])
def test_a_short_column_is_named(name: str) -> None:
    given = columns(2)
    with pytest.raises(ValueError, match=f"'{name}': 1"):
        EpochMetadata(**{**given, name: given[name][:1]})  # type: ignore[arg-type]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"splits \['val'\] are unknown, allowed are"):
        EpochMetadata(**{**columns(1), "split": ("val",)})  # type: ignore[arg-type]
