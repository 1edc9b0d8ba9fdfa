"""Confidence calibrated on validation pictures holds on others; a picture on both sides is refused."""

from dataclasses import replace

import numpy as np
import pytest

from alignment import answer_calibration
from alignment.answer_calibration import ScoredAnswers, fit_answer_calibration, surrogate_auroc
from alignment.evaluation_report import ConfidenceFigures
from alignment.retrieval_metrics import own_ranks


def confidence_figures(
    validation: ScoredAnswers, test: ScoredAnswers, surrogates: dict[str, np.ndarray]
) -> ConfidenceFigures:
    return answer_calibration.confidence_figures(validation, test, surrogates, n_bootstrap=100)


def answers(split: str, n: int = 1000, m: int = 200, signal: float = 2.5, seed: int = 0) -> ScoredAnswers:
    """Recordings of different quality; similarities in units that are no probabilities."""
    generator = np.random.default_rng(seed)
    target = np.arange(n) % m
    similarity = generator.standard_normal((n, m))
    similarity[np.arange(n), target] += signal * generator.uniform(0, 2, n)
    image = tuple(f"{split}_{one}" for one in target)
    return ScoredAnswers(0.03 * similarity, target, image, 1, split, {"person": "a"})


def test_goal_s3_holds_on_pictures_that_were_not_calibrated_on() -> None:
    found = confidence_figures(answers("val"), answers("test", seed=1), {})
    assert found.expected_calibration_error <= 0.05 and found.gain_at_half >= 1.3
    assert found.mean_confidence == pytest.approx(found.accuracy, abs=0.05)
    assert (found.calibration_split, found.split, found.n, found.gallery_size) == ("val", "test", 1000, 200)
    assert found.interval[0] <= found.interval[1] and len(found.bins) == 10
    assert found.selective_accuracy[-1] == pytest.approx(found.accuracy)


def test_the_calibration_takes_nothing_from_the_test_answers() -> None:
    validation = answers("val")
    one, other = answers("test", 400, seed=1), answers("test", 400, seed=2)
    curve = fit_answer_calibration(validation)
    for test in (one, other):
        correct = own_ranks(test.similarity, test.target) <= 1
        found = confidence_figures(validation, test, {})
        assert found.mean_confidence == pytest.approx(curve.confidence(test.similarity).mean())
        assert found.accuracy == correct.mean()


def test_surrogates_are_told_from_recordings() -> None:
    test = answers("test", seed=1, signal=4.0)
    noise = 0.03 * np.random.default_rng(3).standard_normal((1000, 200))
    found = confidence_figures(answers("val", signal=4.0), test, {"white": noise, "itself": test.similarity})
    assert found.surrogate_auroc["white"] > 0.75 and found.surrogate_auroc["itself"] == pytest.approx(0.5)
    curve = fit_answer_calibration(answers("val", signal=4.0))
    assert surrogate_auroc(curve, noise, test.similarity) == pytest.approx(1 - found.surrogate_auroc["white"])


def test_order_of_answers_follows_similarity_and_units_do_not_matter() -> None:
    validation, test = answers("val"), answers("test", seed=1)
    plain = fit_answer_calibration(validation).confidence(test.similarity)
    scaled = fit_answer_calibration(replace(validation, similarity=validation.similarity * 50))
    assert np.allclose(plain, scaled.confidence(test.similarity * 50), atol=5e-3)


def test_noise_is_not_believed() -> None:
    found = confidence_figures(answers("val", signal=0.0), answers("test", signal=0.0, seed=1), {})
    assert found.mean_confidence < 0.02 and found.expected_calibration_error < 0.02


def test_a_validation_set_without_mistakes_does_not_make_certain() -> None:
    easy = answers("val", 200)
    perfect = replace(easy, similarity=np.eye(200))
    curve = fit_answer_calibration(perfect)
    assert 0.9 < curve.confidence(np.eye(200)).mean() < 1.0 and np.isfinite([curve.slope, curve.offset]).all()


def test_answers_keep_their_order_though_validation_has_no_mistake() -> None:
    noise = np.random.default_rng(0).standard_normal((200, 200))
    strong = replace(answers("val", 200), similarity=0.03 * (noise + 9 * np.eye(200)))
    assert (own_ranks(strong.similarity, strong.target) <= 1).all()
    curve = fit_answer_calibration(strong)
    assert curve.slope > 0 and surrogate_auroc(curve, strong.similarity, 0.03 * noise[::-1]) > 0.95


def test_overlaps_and_unlike_sides_are_refused() -> None:
    validation, test = answers("val", 400), answers("test", 400, seed=1)
    shared = replace(test, image=(validation.image[7], *test.image[1:]))
    with pytest.raises(ValueError, match="1 pictures are in validation and test.*val_7"):
        confidence_figures(validation, shared, {})
    with pytest.raises(ValueError, match="believed too much"):
        confidence_figures(replace(validation, n_averaged=4), test, {})
    found = confidence_figures(validation, replace(test, n_averaged=4), {})
    assert (found.calibration_n_averaged, found.n_averaged) == (1, 4)
    with pytest.raises(ValueError, match="calibrate for this gallery"):
        confidence_figures(validation, answers("test", 400, m=100), {})
    with pytest.raises(ValueError, match="one id"):
        replace(test, image=test.image[1:])
