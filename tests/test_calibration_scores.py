"""Calibration error and selective accuracy against brute force, and what they are for honest and for vain answers."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from alignment.calibration_scores import (
    COVERAGES,
    calibration_error_interval,
    expected_calibration_error,
    reliability_table,
    selective_accuracy,
)
from alignment.resampling import bootstrap_score


def honest(n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    confidence = generator.random(n)
    return confidence, generator.random(n) < confidence


def test_honest_confidence_has_no_error_and_vain_confidence_has_its_excess() -> None:
    confidence, correct = honest()
    assert expected_calibration_error(confidence, correct) < 0.03
    assert expected_calibration_error(np.full(1000, 0.9), np.arange(1000) % 2 == 0) == pytest.approx(0.4)
    assert expected_calibration_error(np.ones(4), np.ones(4, bool)) == 0.0


def test_the_interval_of_the_error_is_that_of_drawn_answers() -> None:
    confidence, correct = honest(300)
    groups = np.arange(300) // 3
    found = calibration_error_interval(confidence, correct, groups, n_bootstrap=400)
    slow = bootstrap_score(lambda rows: expected_calibration_error(confidence[rows], correct[rows]), groups, 400)
    assert found == pytest.approx(slow)
    low, high = calibration_error_interval(np.full(1000, 0.9), np.arange(1000) % 2 == 0, np.arange(1000))
    assert low < 0.4 < high < 0.45


def test_the_table_is_scikit_learns() -> None:
    confidence, correct = honest(500)
    table = [one for one in reliability_table(confidence, correct, 8) if one.n]
    share, mean = calibration_curve(correct, confidence, n_bins=8)
    assert [one.accuracy for one in table] == pytest.approx(share)
    assert [one.mean_confidence for one in table] == pytest.approx(mean)
    weighted = sum(one.n * abs(one.accuracy - one.mean_confidence) for one in table) / 500
    assert expected_calibration_error(confidence, correct, 8) == pytest.approx(weighted)
    assert sum(one.n for one in table) == 500 and (table[0].low, table[-1].high) == (0.0, 1.0)


def test_edges_belong_to_the_bin_below() -> None:
    table = reliability_table(np.array([0.0, 0.1, 0.1000001, 1.0]), np.ones(4, bool))
    assert [one.n for one in table] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]


def test_selective_accuracy_by_sorting() -> None:
    confidence, correct = honest(1000)
    order = np.argsort(-confidence)
    found = selective_accuracy(confidence, correct)
    for share, value in zip(COVERAGES, found, strict=True):
        assert value == pytest.approx(correct[order][: round(share * 1000)].mean())
    assert found[-1] == pytest.approx(correct.mean()) and found[0] > 0.9 > found[-1]


def test_equal_confidence_gains_nothing_whatever_the_order_of_rows() -> None:
    correct = np.array([True] * 5 + [False] * 5)
    assert selective_accuracy(np.full(10, 0.5), correct) == pytest.approx(np.full(20, 0.5))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"confidence in \[0, 1\]|in \[0, 1\]"):
        expected_calibration_error(np.array([1.2]), np.array([True]))
    with pytest.raises(ValueError, match="one confidence per answer"):
        selective_accuracy(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="above 0"):
        selective_accuracy(np.zeros(2), np.zeros(2), (0.0, 1.0))
