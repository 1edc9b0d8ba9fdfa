import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity as sklearn_cosine

from alignment.retrieval import cosine_similarity, report_similarity, retrieval_scores


def scores(n: int = 60, m: int = 60, signal: float = 1.0, seed: int = 0) -> np.ndarray:
    similarity = np.random.default_rng(seed).standard_normal((n, m))
    similarity[np.arange(n), np.arange(n) % m] += signal
    return similarity


def test_cosine_is_sklearns() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((5, 7)).astype("f"), generator.standard_normal((6, 7)).astype("f")
    assert np.allclose(cosine_similarity(a, b), sklearn_cosine(a, b), atol=1e-6)
    centre = b.mean(axis=0)
    assert np.allclose(cosine_similarity(a, b, centre), sklearn_cosine(a - centre, b - centre), atol=1e-6)
    assert np.array_equal(cosine_similarity(np.zeros((1, 7), "f"), b), np.zeros((1, 6), "f"))


def test_top_k_is_sklearns() -> None:
    similarity = scores(signal=1.5)
    report = report_similarity(similarity)
    for k, found in ((1, report.top_1), (5, report.top_5)):
        assert found == pytest.approx(top_k_accuracy_score(np.arange(60), similarity, k=k, labels=np.arange(60)))


def test_two_way_and_rank_by_counting() -> None:
    similarity = scores()
    report = report_similarity(similarity)
    own = np.diag(similarity)
    better = [(similarity[i] > own[i]).sum() for i in range(60)]
    assert report.median_rank == np.median(better) + 1
    pairs = [own[i] > similarity[i, j] for i in range(60) for j in range(60) if i != j]
    assert report.two_way == pytest.approx(np.mean(pairs))


def test_noise_scores_chance() -> None:
    report = report_similarity(scores(2000, 50, signal=0.0), np.arange(2000) % 50)
    assert report.chance_top_1 == 0.02 and report.top_1 == pytest.approx(0.02, abs=0.01)
    assert report.two_way == pytest.approx(0.5, abs=0.02) and report.median_rank == pytest.approx(25.5, abs=1.5)
    assert (report.n, report.n_stimuli, report.n_gallery) == (2000, 50, 50)


def test_perfect_and_constant_answers() -> None:
    perfect = report_similarity(np.eye(20))
    assert (perfect.top_1, perfect.median_rank, perfect.two_way) == (1.0, 1.0, 1.0)
    assert perfect.interval_top_1 == (1.0, 1.0)
    constant = report_similarity(np.zeros((20, 20)))
    assert (constant.top_1, constant.two_way, constant.median_rank) == (0.0, 0.5, 10.5)


def test_greedy_rows_do_not_compete() -> None:
    similarity = np.array([[0.9, 0.1, 0.0], [0.8, 0.7, 0.0], [0.0, 0.0, 0.5]])
    assert report_similarity(similarity).top_1 == pytest.approx(2 / 3)


def test_interval_covers_the_truth_and_repeats_do_not_narrow_it() -> None:
    similarity = scores(200, 200, signal=3.0)
    report = report_similarity(similarity)
    low, high = report.interval_top_1
    assert low < report.top_1 < high
    expected = 1.96 * np.sqrt(report.top_1 * (1 - report.top_1) / 200)
    assert (high - low) / 2 == pytest.approx(expected, rel=0.2)
    repeated = report_similarity(np.repeat(similarity, 4, axis=0), np.repeat(np.arange(200), 4))
    assert repeated.interval_top_1 == pytest.approx(report.interval_top_1)


def test_embeddings_and_scores_agree_and_order_of_gallery_is_free() -> None:
    generator = np.random.default_rng(0)
    image = generator.standard_normal((30, 16)).astype("f")
    brain = (image + generator.standard_normal((30, 16))).astype("f")
    order = generator.permutation(30)
    place = np.argsort(order)
    assert retrieval_scores(brain, image[order], place).top_1 == retrieval_scores(brain, image).top_1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refusals(bad: float) -> None:
    similarity = scores(4, 4)
    with pytest.raises(ValueError, match="gallery column"):
        report_similarity(similarity, np.array([0, 1, 2, 4]))
    similarity[1, 2] = bad
    with pytest.raises(ValueError, match="non-finite"):
        report_similarity(similarity)
    with pytest.raises(ValueError, match="one width"):
        cosine_similarity(np.zeros((2, 3), "f"), np.zeros((2, 4), "f"))
