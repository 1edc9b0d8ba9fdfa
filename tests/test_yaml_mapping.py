"""YAML written by hand: read, or refused with its place."""

from pathlib import Path

import pytest

from encoders.yaml_mapping import parse_yaml, read_mapping


def test_names_and_values_are_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("port: 9000\njobs: {folder: /srv/jobs}\n")
    assert read_mapping(path) == {"port": 9000, "jobs": {"folder": "/srv/jobs"}}
    path.write_text("# nothing yet\n")
    assert read_mapping(path) == {}
    assert parse_yaml("[1, 2]", "--option") == [1, 2]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("port: 9000\njobs: {folder: [\n", "line 3"),
        ("- port\n", "expected lines of `name: value`"),
        ("port: \ttab\n\tbad: 1\n", "not YAML"),
        ("day: 2026-13-45\n", "not YAML"),
        ("\0", "not YAML"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=told) as refused:
        read_mapping(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
