"""Figures agree with the plain scores, rows of a picture move together, and noise is called noise."""

import numpy as np
import pytest

from alignment.evaluation_report import Figure
from alignment.retrieval import report_similarity
from alignment.retrieval_figures import RetrievalAnswers, retrieval_figures
from alignment.retrieval_metrics import gallery_ranks, one_to_one_accuracy


def answers(signal: float, n: int = 120, m: int = 60, seed: int = 0, **changes: object) -> RetrievalAnswers:
    generator = np.random.default_rng(seed)
    target = np.arange(n) % m
    similarity = generator.standard_normal((n, m))
    similarity[np.arange(n), target] += signal
    noise = generator.standard_normal((5 * n, m))
    values = {"n_averaged": 1, "split": "test", "selection_split": "val", "group": {"person": "a"}} | changes
    return RetrievalAnswers(similarity, noise, target, **values)  # type: ignore[arg-type]


def by_name(given: RetrievalAnswers) -> dict[tuple[str, int], Figure]:
    figures = retrieval_figures(given, gallery_sizes=(200, 50, 10, 5), n_bootstrap=400)
    return {(one.metric, one.gallery_size): one for one in figures}


def test_every_metric_and_gallery_stands_once_with_its_chance() -> None:
    found = by_name(answers(2.0))
    sizes = {"top_1": [60, 50, 10, 5], "top_5": [60, 50, 10]}
    expected = {(name, size) for name, listed in sizes.items() for size in listed} | {("two_way", 2)}
    expected |= {(name, 60) for name in ("mean_rank", "median_rank", "mean_average_precision")}
    assert set(found) == expected
    assert found["top_1", 50].chance == 1 / 50 and found["top_5", 10].chance == 0.5
    assert found["median_rank", 60].chance == 30.5


def test_values_are_those_of_the_plain_scores() -> None:
    given = answers(2.0)
    found, plain = by_name(given), report_similarity(given.similarity, given.target)
    assert found["top_1", 60].value == plain.top_1 and found["top_5", 60].value == plain.top_5
    assert found["two_way", 2].value == pytest.approx(plain.two_way)
    assert found["median_rank", 60].value == plain.median_rank
    assert found["top_1", 60].interval == pytest.approx(plain.interval_top_1, abs=0.02)
    assert found["top_1", 10].value > found["top_1", 50].value > found["top_1", 60].value
    assert all(one.permutation_p < 0.001 and one.n_groups == 60 for one in found.values())
    low, high = found["median_rank", 60].interval
    assert low <= plain.median_rank <= high


def test_noise_is_at_chance_and_its_p_is_not_small() -> None:
    for one in by_name(answers(0.0, n=600)).values():
        assert one.value == pytest.approx(one.chance, rel=0.35)
        assert one.noise_baseline == pytest.approx(one.chance, rel=0.35)
        assert one.permutation_p > 0.01


def test_top_1_is_greedy_whatever_matching_would_give() -> None:
    given = answers(2.0, n=60)
    matched = one_to_one_accuracy(given.similarity)
    greedy = np.mean(given.similarity.argmax(axis=1) == given.target)
    assert matched != greedy and by_name(given)["top_1", 60].value == greedy


def test_ranks_share_ties() -> None:
    assert gallery_ranks(np.array([[3.0, 1.0, 3.0, 2.0]])).ranks.tolist() == [[1.5, 4.0, 1.5, 3.0]]


def test_noise_of_another_gallery_is_refused() -> None:
    whole = answers(1.0)
    for noise in (whole.noise_similarity[:, 1:], whole.noise_similarity[1:]):
        with pytest.raises(ValueError, match="multiple of its rows"):
            RetrievalAnswers(whole.similarity, noise, whole.target, 1, "test", "val")
