"""The ideal observer against brute force, and its limits."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from encoders.brain_noise import build_noise
from encoders.observer import build_observer, posterior_mean

N_CHANNELS, N_TIMES, N_SOURCES = 4, 10, 3


def world(scale: float):
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((N_CHANNELS, N_CHANNELS))
    noise = build_noise(
        mixing @ mixing.T + np.eye(N_CHANNELS), generator.standard_normal((N_CHANNELS, 2)), N_TIMES, 100.0
    )
    patterns = generator.standard_normal((N_SOURCES, N_CHANNELS, N_TIMES))
    return noise, patterns, build_observer(patterns, noise, scale), generator.standard_normal((20, N_SOURCES))


@pytest.mark.parametrize("n_averaged", [1, 4])
def test_equals_the_full_gaussian_likelihood(n_averaged: int) -> None:
    noise, patterns, observer, amplitudes = world(0.7)
    means = np.einsum("ns,sct->nct", amplitudes, patterns)
    data = means[:6].astype(np.float32)
    noise.add_to(data, 0.7, np.random.default_rng(1))
    got = observer.log_likelihood(data, amplitudes, np.full(6, n_averaged))
    covariance = 0.49 * noise.covariance() / n_averaged
    expected = np.array(
        [[multivariate_normal.logpdf(row.ravel(), mean.ravel(), covariance) for mean in means] for row in data]
    )
    # equal up to a constant per epoch
    np.testing.assert_allclose(got - got[:, :1], expected - expected[:, :1], rtol=1e-4, atol=1e-3)


def test_without_noise_it_is_always_right() -> None:
    _, patterns, observer, amplitudes = world(0.0)
    data = np.einsum("ns,sct->nct", amplitudes, patterns).astype(np.float32)
    scores = observer.log_likelihood(data, amplitudes, np.ones(20, dtype=np.int64))
    assert (scores.argmax(axis=1) == np.arange(20)).all()


def test_posterior_mean_equals_gaussian_conditioning() -> None:
    generator = np.random.default_rng(2)
    root = generator.standard_normal((5, 5))
    covariance, design = root @ root.T, generator.standard_normal((5, 3))
    seen = generator.standard_normal((4, 3))
    variance = np.array([0.5, 1.0, 2.0])
    precision = np.linalg.inv(covariance) + design @ np.diag(1 / variance) @ design.T
    expected = np.linalg.solve(precision, design @ (seen / variance).T).T
    np.testing.assert_allclose(posterior_mean(seen, design, covariance, variance), expected, rtol=1e-6)


def test_silent_sources_cost_no_rank() -> None:
    noise, patterns, _, _ = world(1.0)
    patterns[1] = 0.0
    assert len(build_observer(patterns, noise, 1.0).filters) == N_SOURCES - 1
