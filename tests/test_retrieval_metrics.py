"""Exact k-way scores equal sampling and scikit-learn; the greedy figure is never the one-to-one one."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from alignment.resampling import image_permutation_p
from alignment.retrieval import report_similarity
from alignment.retrieval_metrics import (
    average_precisions,
    expected_hits,
    expected_reciprocal_rank,
    one_to_one_accuracy,
    own_ranks,
)


def scores(n: int = 40, m: int = 40, signal: float = 1.5, seed: int = 0, steps: float = 0.0) -> np.ndarray:
    similarity = np.random.default_rng(seed).standard_normal((n, m))
    similarity[np.arange(n), np.arange(n) % m] += signal
    return np.round(similarity / steps) * steps if steps else similarity


@pytest.mark.parametrize("k", [1, 5])
def test_the_whole_gallery_gives_scikit_learns_top_k(k: int) -> None:
    similarity = scores()
    hits = expected_hits(similarity, k, 40)
    assert set(np.unique(hits)) == {0.0, 1.0}
    found = np.diag(hits).mean()
    assert found == pytest.approx(top_k_accuracy_score(np.arange(40), similarity, k=k, labels=np.arange(40)))
    report = report_similarity(similarity)
    assert found == pytest.approx(report.top_1 if k == 1 else report.top_5)


@pytest.mark.parametrize(("k", "size", "steps"), [(1, 10, 0.0), (5, 20, 0.0), (1, 10, 1.0), (3, 10, 1.0), (1, 2, 1.0)])
def test_expected_hits_are_the_mean_over_drawn_sub_galleries(k: int, size: int, steps: float) -> None:
    similarity = scores(6, 30, steps=steps)
    generator = np.random.default_rng(1)
    n_drawn = 4000
    hits = np.zeros(6)
    for row in range(6):
        others = np.setdiff1d(np.arange(30), row)
        for _ in range(n_drawn):
            drawn = similarity[row, generator.choice(others, size - 1, replace=False)]
            own = similarity[row, row]
            hits[row] += 1 + (drawn > own).sum() + (drawn == own).sum() / 2 <= k
    exact = expected_hits(similarity, k, size)[np.arange(6), np.arange(6)]
    assert np.abs(exact - hits / n_drawn).max() < 4 * 0.5 / np.sqrt(n_drawn)


def test_each_gallery_size_has_its_chance_level_on_average_over_columns() -> None:
    similarity = scores(5, 50, signal=0.0)
    for k, size in ((1, 50), (1, 20), (5, 20), (1, 2)):
        assert expected_hits(similarity, k, size).mean() == pytest.approx(k / size)


def test_two_alternatives_are_two_way_identification() -> None:
    similarity = scores()
    assert np.diag(expected_hits(similarity, 1, 2)).mean() == pytest.approx(report_similarity(similarity).two_way)


@pytest.mark.parametrize("steps", [0.0, 1.0])
def test_average_precision_is_scikit_learns(steps: float) -> None:
    similarity = scores(30, 25, steps=steps)
    relevant = np.random.default_rng(2).random((30, 25)) < 0.2
    relevant[np.arange(30), np.arange(30) % 25] = True
    expected = [average_precision_score(one, row) for one, row in zip(relevant, similarity, strict=True)]
    assert average_precisions(similarity, relevant) == pytest.approx(expected)


def test_one_relevant_picture_gives_the_reciprocal_rank_and_noise_its_chance() -> None:
    similarity = scores()
    assert average_precisions(similarity, np.eye(40, dtype=bool)) == pytest.approx(1 / own_ranks(similarity))
    noise = scores(4000, 40, signal=0.0)
    own = np.arange(4000) % 40
    found = average_precisions(noise, own[:, None] == np.arange(40)).mean()
    assert found == pytest.approx(expected_reciprocal_rank(40), abs=0.01)


def test_perfect_and_permuted_answers() -> None:
    # 200 queries: permuted answers stay within the binomial limits of chance
    perfect = np.eye(200) + 0.1 * scores(200, 200, signal=0.0)
    assert np.diag(expected_hits(perfect, 1, 200)).mean() == 1.0
    permuted = perfect[np.random.default_rng(3).permutation(200)]
    assert np.diag(expected_hits(permuted, 1, 200)).mean() <= 0.025
    assert np.diag(expected_hits(permuted, 5, 200)).mean() <= 0.065
    assert np.diag(expected_hits(permuted, 1, 2)).mean() == pytest.approx(0.5, abs=0.08)
    noise = scores(200, 200, signal=0.0, seed=4)
    assert np.diag(expected_hits(noise, 1, 2)).mean() == pytest.approx(0.5, abs=0.08)
    assert image_permutation_p(expected_hits(perfect, 1, 200), np.arange(200)) < 0.001
    assert image_permutation_p(expected_hits(noise, 1, 200), np.arange(200)) > 0.01


def test_one_to_one_is_higher_and_never_called_top_1() -> None:
    # some pictures attract everybody: assignment undoes that with what other rows say
    similarity = scores(60, 60, signal=3.0) + 1.5 * np.random.default_rng(5).standard_normal(60)
    greedy = report_similarity(similarity)
    matched = one_to_one_accuracy(similarity)
    assert matched > greedy.top_1 + 0.1
    assert greedy.top_1 == np.mean(similarity.argmax(axis=1) == np.arange(60))
    # two rows that want one picture: greedily one hit is lost, matched none
    pair = np.array([[0.9, 0.8], [0.7, 0.1]])
    assert report_similarity(pair).top_1 == 0.5 and one_to_one_accuracy(pair) == 0.0
    with pytest.raises(ValueError, match="as many rows as pictures"):
        one_to_one_accuracy(np.zeros((4, 2)))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="smaller gallery"):
        expected_hits(np.zeros((2, 10)), 1, 11)
    with pytest.raises(ValueError, match="smaller gallery"):
        expected_hits(np.zeros((2, 10)), 5, 5)
    with pytest.raises(ValueError, match="a relevant column"):
        average_precisions(np.zeros((2, 3)), np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="gallery column"):
        own_ranks(np.zeros((2, 2)), np.array([0, 2]))
