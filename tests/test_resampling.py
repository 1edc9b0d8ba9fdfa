"""Intervals widen with correlated rows and p values are uniform where there is nothing to find."""

import numpy as np
import pytest
from scipy.stats import kstest

from alignment import resampling
from alignment.resampling import bootstrap_means, bootstrap_median, bootstrap_score, image_permutation_p


def test_intervals_of_means_and_of_scores_agree_and_have_the_textbook_width() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    ((low, high),) = bootstrap_means(values[:, None], np.arange(400), 2000)
    assert (high - low) / 2 == pytest.approx(1.96 / np.sqrt(400), rel=0.1)
    other = bootstrap_score(lambda rows: float(values[rows].mean()), np.arange(400), 2000)
    assert other == pytest.approx((low, high), abs=0.02)


def test_copies_of_a_row_do_not_narrow_the_interval() -> None:
    values, group = np.random.default_rng(1).standard_normal((50, 1)), np.arange(50)
    repeated = bootstrap_means(np.repeat(values, 8, axis=0), np.repeat(group, 8))[0]
    assert repeated == pytest.approx(bootstrap_means(values, group)[0])


def test_the_interval_of_a_median_is_that_of_drawn_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    values, groups = np.round(generator.standard_normal(90), 1), generator.integers(12, size=90)
    slow = bootstrap_score(lambda rows: float(np.median(values[rows])), groups, 300)
    assert bootstrap_median(values, groups, 300) == pytest.approx(slow)
    monkeypatch.setattr(resampling, "CELLS", 200)  # two draws at once
    assert bootstrap_median(values, groups, 300) == pytest.approx(slow)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_permutations_made_together_are_those_made_one_by_one(
    statistic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(5)
    target = generator.integers(1, 14, size=60)  # column 0 has no rows
    credit = generator.integers(0, 4, (60, 14)).astype(float)
    credit[np.arange(60), target] += 0.2
    score = {"mean": np.mean, "median": np.median}[statistic]
    shown, row_of = np.unique(target, return_inverse=True)
    order = np.random.default_rng(0)
    observed, n_as_good = score(credit[np.arange(60), target]), 0
    for _ in range(1000):
        drawn = score(credit[np.arange(60), shown[order.permutation(len(shown))][row_of]])
        n_as_good += drawn >= observed - 1e-9
    monkeypatch.setattr(resampling, "CELLS", 500)
    found = image_permutation_p(credit, target, statistic=statistic)  # type: ignore[arg-type]
    assert found == (1 + n_as_good) / 1001


def test_permutation_p_is_uniform_for_noise_though_rows_of_a_picture_agree() -> None:
    # repetitions of a picture are nearly copies: shuffled row by row, far too many p values would be small
    found = []
    for seed in range(300):
        generator = np.random.default_rng([3, seed])
        credit = np.repeat(generator.standard_normal((8, 8)), 10, axis=0) + 0.01 * generator.standard_normal((80, 8))
        found.append(image_permutation_p(credit, np.repeat(np.arange(8), 10), seed=seed))
    assert kstest(found, "uniform").statistic < 1.63 / np.sqrt(300) + 0.001
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.085


def test_an_effect_is_found_and_blocks_hide_what_lies_between_them() -> None:
    assert image_permutation_p(np.eye(12), np.arange(12)) == 1 / 1001
    block = np.repeat([0, 1], 6)
    only_block = (block[:, None] == block[None, :]).astype(float)
    assert image_permutation_p(only_block, np.arange(12)) < 0.01
    assert image_permutation_p(only_block, np.arange(12), block) == 1.0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least 1000"):
        image_permutation_p(np.eye(3), np.arange(3), n_permutations=999)
    with pytest.raises(ValueError, match=r"must be \(n, m\)"):
        image_permutation_p(np.eye(3), np.arange(2))
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap_score(lambda rows: 0.0, np.zeros(4))
