import numpy as np
import pytest

from alignment.person_whitening import csls, fit_whitening
from alignment.retrieval import cosine_similarity


def rows(n: int = 400, d: int = 12, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, d)) @ generator.standard_normal((d, d)) + 3 * generator.standard_normal(d)


def test_without_shrinkage_the_covariance_becomes_the_identity_and_the_variance_stays() -> None:
    data = rows()
    white = fit_whitening(data, 0.0)(data).astype(np.float64)
    covariance = np.cov(white.T, bias=True)
    variance = np.trace(np.cov(data.T, bias=True)) / 12
    assert np.allclose(covariance / variance, np.eye(12), atol=1e-4)
    assert np.allclose(white.mean(axis=0), 0, atol=1e-4 * np.sqrt(variance))


def test_with_full_shrinkage_nothing_but_the_mean_goes() -> None:
    data = rows()
    fitted = fit_whitening(data, 1.0)
    assert np.allclose(fitted.matrix, np.eye(12), atol=1e-12)
    assert np.allclose(fitted(data), data - data.mean(axis=0), atol=1e-4)


def test_shrinkage_in_between_leaves_anisotropy_in_between_and_the_default_is_ledoit_wolf() -> None:
    data = rows(60)

    def spread(shrinkage: float | None) -> float:
        values = np.linalg.eigvalsh(np.cov(fit_whitening(data, shrinkage)(data).T))
        return float(values[-1] / values[0])

    spreads = [spread(one) for one in (0.0, 0.2, 0.6, 1.0)]
    assert spreads == sorted(spreads) and spreads[0] == pytest.approx(1, abs=1e-3)
    default = fit_whitening(data)
    assert 0 < default.shrinkage < 1
    again = fit_whitening(data, default.shrinkage)
    assert np.allclose(default.matrix, again.matrix)


def test_a_window_that_tells_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0 epochs, expected at least 8"):
        fit_whitening(np.empty((0, 5)))
    with pytest.raises(ValueError, match="got 7 epochs"):
        fit_whitening(rows(7))
    with pytest.raises(ValueError, match="the same embedding"):
        fit_whitening(np.ones((20, 5)), 0.5)
    with pytest.raises(ValueError, match="no inverse"):
        fit_whitening(rows(12, 12), 0.0)
    with pytest.raises(ValueError, match="expected 0 to 1"):
        fit_whitening(rows(), 1.5)
    with pytest.raises(ValueError, match="non-finite"):
        fit_whitening(np.where(np.arange(400)[:, None] == 3, np.nan, rows()))


def test_csls_is_its_formula() -> None:
    generator = np.random.default_rng(1)
    brain, window, images = (generator.standard_normal((n, 6)) for n in (7, 9, 11))
    similarity, reference = (cosine_similarity(one, images) for one in (brain, window))
    for k in (1, 3, 9):
        found = csls(similarity, reference, k)
        for i in range(7):
            for j in range(11):
                nearest_pictures = sorted((float(one) for one in similarity[i]), reverse=True)[:k]
                nearest_epochs = sorted((float(one) for one in reference[:, j]), reverse=True)[:k]
                expected = 2 * similarity[i, j] - sum(nearest_pictures) / k - sum(nearest_epochs) / k
                assert found[i, j] == pytest.approx(expected, abs=1e-5)


def test_csls_takes_a_hub_out_of_the_way() -> None:
    generator = np.random.default_rng(2)
    images = generator.standard_normal((40, 8))
    brain = images + 0.5 * generator.standard_normal((40, 8)) + 0.8 * images[0]
    similarity = cosine_similarity(brain.astype(np.float32), images.astype(np.float32))
    plain = (similarity.argmax(axis=1) == np.arange(40)).mean()
    corrected = (csls(similarity[20:], similarity[:20], 5).argmax(axis=1) == np.arange(20, 40)).mean()
    assert plain < 0.5 and corrected > plain + 0.2


def test_too_many_neighbours_are_refused() -> None:
    similarity = np.zeros((4, 6))
    for reference, k in ((np.zeros((3, 6)), 4), (np.zeros((9, 6)), 7), (np.zeros((9, 5)), 2), (similarity, 0)):
        with pytest.raises(ValueError, match="lower n_neighbours"):
            csls(similarity, reference, k)
