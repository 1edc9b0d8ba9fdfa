"""The temperature that made the data is found, and order is left alone."""

import numpy as np
import pytest
from scipy.special import softmax

from alignment.temperature import fit_temperature


@pytest.mark.parametrize("temperature", [0.05, 1.0, 30.0])
def test_the_true_temperature_is_found(temperature: float) -> None:
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((4000, 10))
    chance = softmax(logits, axis=1)
    target = np.array([generator.choice(10, p=one) for one in chance])
    assert fit_temperature(logits * temperature, target) == pytest.approx(temperature, rel=0.1)


def test_random_answers_become_unsure() -> None:
    generator = np.random.default_rng(1)
    scores, target = generator.standard_normal((2000, 5)), generator.integers(5, size=2000)
    confidence = softmax(scores / fit_temperature(scores, target), axis=1).max(axis=1)
    assert confidence.mean() < 0.26


def test_refusals() -> None:
    with pytest.raises(ValueError, match="check the decoder"):
        fit_temperature(np.array([[np.nan, 1.0]]), np.array([0]))
    with pytest.raises(ValueError, match="check the decoder"):
        fit_temperature(np.zeros((2, 3)), np.zeros(1, np.int64))
