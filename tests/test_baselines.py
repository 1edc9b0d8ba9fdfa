"""Ridge against scikit-learn, and what choosing a penalty must do."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from encoders.baselines import centred_cosine, fit_ridge, top_1


def problem(n: int, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(n)
    weights = np.random.default_rng(0).standard_normal((6 * 10, 5))
    data = generator.standard_normal((n, 6, 10)).astype(np.float32) + 0.3
    embeds = data.reshape(n, -1) @ weights + noise * generator.standard_normal((n, 5)) + 2.0
    return data, embeds.astype(np.float32)


@pytest.mark.parametrize("n_epochs", [30, 200])
@pytest.mark.parametrize("alpha", [0.5, 20.0])
def test_equals_scikit_learn(n_epochs: int, alpha: float) -> None:
    data, embeds = problem(n_epochs)
    fitted = fit_ridge(data, embeds, penalties=(alpha,), relative=False)
    oracle = Ridge(alpha=alpha).fit(data.reshape(n_epochs, -1).astype(np.float64), embeds.astype(np.float64))
    scale = np.abs(oracle.coef_).max()
    np.testing.assert_allclose(fitted.weights.T / scale, oracle.coef_ / scale, atol=1e-6)
    held_out = problem(40)[0]
    expected = oracle.predict(held_out.reshape(40, -1).astype(np.float64))
    np.testing.assert_allclose(fitted.predict(held_out) / scale, expected / scale, atol=2e-5)
    assert fitted.penalty == alpha


def test_validation_picks_the_penalty_that_predicts_best() -> None:
    data, embeds = problem(80, noise=20.0)
    held_out = problem(60, noise=20.0)
    penalties = (1e-6, 0.03, 1e6)
    chosen = fit_ridge(data, embeds, held_out, penalties)
    scores = []
    for penalty in penalties:
        one = fit_ridge(data, embeds, penalties=(penalty,))
        cosine = centred_cosine(one.predict(held_out[0]), held_out[1], one.embed_mean)
        scores.append(float(np.diag(cosine).mean()))
    best = fit_ridge(data, embeds, penalties=(penalties[int(np.argmax(scores))],))
    np.testing.assert_array_equal(chosen.weights, best.weights)


def test_huge_penalty_answers_the_mean() -> None:
    data, embeds = problem(50)
    fitted = fit_ridge(data, embeds, penalties=(1e9,))
    np.testing.assert_allclose(fitted.predict(data), np.broadcast_to(embeds.mean(axis=0), embeds.shape), atol=1e-3)


def test_float32_throughout() -> None:
    data, embeds = problem(50)
    fitted = fit_ridge(data, embeds, penalties=(1.0,))
    assert fitted.weights.dtype == fitted.predict(data).dtype == np.float32


def test_refusals_name_the_numbers() -> None:
    data, embeds = problem(20)
    with pytest.raises(ValueError, match="20 epochs and 19 targets"):
        fit_ridge(data, embeds[:-1], penalties=(1.0,))
    with pytest.raises(ValueError, match="need validation data"):
        fit_ridge(data, embeds)
    with pytest.raises(ValueError, match="60 values per epoch"):
        fit_ridge(data, embeds, penalties=(1.0,)).predict(data[:, :5])


def test_top_1_counts_repetitions_of_an_image() -> None:
    scores = np.repeat(np.eye(4), 3, axis=0)
    assert top_1(scores) == 1.0
    assert top_1(scores[:, ::-1]) == 0.0
    assert top_1(np.eye(5)) == 1.0


def test_noise_is_at_chance() -> None:
    generator = np.random.default_rng(1)
    scores = generator.standard_normal((2000, 50))
    assert abs(top_1(scores) - 0.02) < 0.012
