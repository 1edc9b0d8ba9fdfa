"""Riemannian mean and tangent vectors by their defining properties, and the decoder on planted band power."""

import numpy as np
import pytest
from scipy.linalg import eigh, expm, sqrtm
from test_csp import band_power

from encoders.tangent_space import covariances, fit_tangent_decoder, riemannian_mean, tangent_vectors


def matrices(n=7, c=4, seed=0):
    roots = np.random.default_rng(seed).standard_normal((n, c, 2 * c))
    return roots @ roots.transpose(0, 2, 1) / (2 * c)


def distance(a, b):
    return float(np.sqrt((np.log(eigh(a, b, eigvals_only=True)) ** 2).sum()))


def test_mean_of_two_is_the_geometric_mean():
    a, b = matrices(2)
    root = np.real(sqrtm(a))
    inverse = np.linalg.inv(root)
    expected = root @ np.real(sqrtm(inverse @ b @ inverse)) @ root
    np.testing.assert_allclose(riemannian_mean(np.stack([a, b])), expected, atol=1e-9)


def test_mean_of_commuting_matrices_is_the_mean_of_logarithms():
    generator = np.random.default_rng(0)
    logs = generator.standard_normal((6, 4))
    vectors = np.linalg.qr(generator.standard_normal((4, 4)))[0]
    found = riemannian_mean(np.stack([vectors @ np.diag(np.exp(one)) @ vectors.T for one in logs]))
    np.testing.assert_allclose(found, vectors @ np.diag(np.exp(logs.mean(axis=0))) @ vectors.T, atol=1e-9)


def test_mean_moves_with_any_mixing_of_the_channels():
    found = riemannian_mean(matrices())
    mixing = np.random.default_rng(1).standard_normal((4, 4))
    np.testing.assert_allclose(
        riemannian_mean(mixing @ matrices() @ mixing.T), mixing @ found @ mixing.T, atol=1e-8
    )  # fmt: skip


def test_mean_has_the_smallest_summed_squared_distance():
    mean = riemannian_mean(matrices())

    def cost(centre):
        return sum(distance(one, centre) ** 2 for one in matrices())

    for seed in range(5):
        nudge = np.random.default_rng(seed).standard_normal((4, 4)) * 0.05
        assert cost(mean) < cost(expm(nudge) @ mean @ expm(nudge).T)


def test_tangent_vectors_keep_distances_to_the_reference_and_average_to_zero():
    mean = riemannian_mean(matrices())
    vectors = tangent_vectors(matrices(), mean)
    assert vectors.shape == (7, 10)
    expected = [distance(one, mean) for one in matrices()]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), expected, atol=1e-9)
    np.testing.assert_allclose(vectors.mean(axis=0), 0, atol=1e-9)


def test_covariances_are_shrunk_towards_the_mean_variance():
    data = np.random.default_rng(0).standard_normal((3, 5, 4)) + 10
    plain, half = covariances(data, 0.0), covariances(data, 0.5)
    np.testing.assert_allclose(plain[0], np.cov(data[0], bias=True))
    np.testing.assert_allclose(half[0], 0.5 * plain[0] + 0.5 * np.trace(plain[0]) / 5 * np.eye(5))
    assert np.linalg.eigvalsh(half).min() > 0


@pytest.mark.parametrize("n_classes", [2, 3])
def test_planted_band_power_is_decoded_and_mixing_changes_nothing(n_classes):
    train, test = band_power(60, 1, n_classes), band_power(60, 2, n_classes)
    decoder = fit_tangent_decoder(*train, shrinkage=0.0)
    answers = decoder.predict(test[0])
    assert (answers == test[1]).mean() >= 0.9
    mixing = np.random.default_rng(1).standard_normal((10, 10))
    mixed = fit_tangent_decoder(mixing @ train[0], train[1], shrinkage=0.0)
    np.testing.assert_allclose(
        mixed.probabilities(mixing @ test[0]), decoder.probabilities(test[0]), atol=1e-3
    )  # fmt: skip


def test_refusals():
    with pytest.raises(ValueError, match="shrinkage is -1"):
        covariances(np.ones((1, 2, 3)), -1)
    with pytest.raises(ValueError, match="expected positive ones"):
        riemannian_mean(covariances(np.random.default_rng(0).standard_normal((3, 5, 4)), 0.0))
