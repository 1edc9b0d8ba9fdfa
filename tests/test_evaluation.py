"""How scores are laid out, and that the README shows those of the shipped bundle."""

from pathlib import Path

import pytest

from alignment.evaluation_report import EvaluationReport
from serving.cli import DEMO_BUNDLE, DEMO_DATA, main
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


@pytest.mark.slow
def test_the_demo_bundle_gets_a_report(tmp_path: Path) -> None:
    arguments = ["evaluate", "--bundle", str(DEMO_BUNDLE), "--data", str(DEMO_DATA), "--repetitions", "2"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    report = EvaluationReport.read(tmp_path / "out" / "report.json")
    assert report.simulated and "Simulated data." in (tmp_path / "out" / "report.html").read_text()
    for modality in ("eeg", "meg", "eeg+meg"):
        whole = {one.n_averaged: one for one in report.select("top_1", modality=modality) if one.gallery_size == 200}
        assert sorted(whole) == [1, 2] and whole[2].value > whole[1].value > 0.1
        assert whole[1].noise_baseline < 0.02 and whole[1].permutation_p < 0.002
    # science goal S3, single trials and averages
    assert all(one.expected_calibration_error <= 0.05 for one in report.confidence)
    assert all(one.gain_at_half >= 1.3 for one in report.confidence if one.accuracy < 0.6)
    assert all(0.45 < value < 1 for one in report.confidence for value in one.surrogate_auroc.values())
