"""How scores are laid out, and that the README shows those of the shipped bundle."""

from pathlib import Path

import pytest

from serving.cli import DEMO_BUNDLE
from serving.evaluation import score_lines, score_table, stored_scores

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.fixture(scope="module")
def stored() -> dict:
    return stored_scores(DEMO_BUNDLE)


def test_table_holds_every_combination_with_its_chance(stored: dict) -> None:
    lines = score_table(stored)
    for name, by_label in stored["retrieval"]["scores"].items():
        for row in by_label.values():
            assert any(line.startswith(f"| {name} ") and f"{row['network']['top_1']:.3f}" in line for line in lines)
    for name, row in stored["pictures"].items():
        assert any(name.replace("_", " ") in line and f"{row['shape']['value']:.3f}" in line for line in lines)
    assert "chance 0.005" in "\n".join(lines) and lines[-1].startswith("| chance")


def test_a_bundle_of_ones_own_pictures_has_no_table_of_factors(stored: dict) -> None:
    lines = score_table({"retrieval": stored["retrieval"]})
    assert lines == score_table(stored)[: len(lines)] and not any("colour" in line for line in lines)


def test_readme_shows_the_scores_of_the_shipped_bundle(stored: dict) -> None:
    assert "\n".join(score_table(stored)) in README.read_text(encoding="utf-8")


def test_lines_name_every_score(stored: dict) -> None:
    text = "\n".join(score_lines(stored))
    assert stored["data"] in text and "ratio_to_ideal" in text and "interval" in text
