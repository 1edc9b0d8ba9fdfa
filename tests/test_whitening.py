import numpy as np
import pytest

from encoders.whitening import ledoit_wolf, mvnn


def coloured(n_epochs: int, n_channels: int, n_times: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = 0.3 * rng.standard_normal((n_channels, n_channels)) + 2 * np.eye(n_channels)
    return (mixing @ rng.standard_normal((n_epochs, n_channels, n_times))).astype(np.float32)


@pytest.mark.parametrize(("n", "c"), [(500, 5), (40, 63), (64, 64)])
def test_ledoit_wolf_equals_scikit_learn(n: int, c: int) -> None:
    covariance_module = pytest.importorskip("sklearn.covariance")
    samples = coloured(1, c, n)[0].T.astype(np.float64) * 1e-13
    oracle = covariance_module.LedoitWolf().fit(samples * 1e13)
    covariance, shrinkage = ledoit_wolf(samples)
    assert shrinkage == pytest.approx(oracle.shrinkage_, rel=1e-9)
    np.testing.assert_allclose(covariance * 1e26, oracle.covariance_, rtol=1e-9, atol=1e-9)


def test_whitened_noise_has_unit_covariance() -> None:
    data = coloured(20, 8, 5000)  # long epochs: next to no shrinkage
    whitened = np.matmul(mvnn(data), data)
    covariance = np.mean([np.cov(epoch) for epoch in whitened], axis=0)
    np.testing.assert_allclose(covariance, np.eye(8), atol=0.05)


def test_rank_deficient_data_stays_finite() -> None:
    data = coloured(30, 20, 50)
    data -= data.mean(axis=1, keepdims=True)
    whitener = mvnn(data)
    assert np.isfinite(whitener).all()
    np.testing.assert_allclose(whitener, whitener.T, atol=1e-5)
    assert np.abs(np.matmul(whitener, data)).max() < 20
