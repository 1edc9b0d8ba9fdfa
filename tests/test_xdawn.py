"""Filters find a hidden response, and covariances with prototypes tell which response an epoch follows."""

import numpy as np
import pytest

from encoders.xdawn import fit_xdawn


def responses(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two classes that differ in the time course of one source, under correlated noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    pattern = generator.standard_normal(8)
    times = np.linspace(0, 1, 40)
    course = np.stack([np.exp(-(((times - centre) / 0.1) ** 2)) for centre in (0.3, 0.6)])
    mixing = generator.standard_normal((8, 8))
    noise = np.einsum("cd,ndt->nct", mixing, generator.standard_normal((n, 8, 40)))
    return noise + 1.5 * pattern[:, None] * course[labels][:, None], labels, pattern


def test_the_first_filter_raises_the_signal_to_noise_ratio() -> None:
    data, labels, pattern = responses()
    found = fit_xdawn(data, labels, 1)

    def ratio(weights: np.ndarray) -> float:
        filtered = np.einsum("c,nct->nt", weights, data[labels == 0])
        return float((filtered.mean(axis=0) ** 2).sum() / filtered.var(axis=0).sum())

    best_channel = max(ratio(np.eye(8)[channel]) for channel in range(8))
    assert ratio(found.filters[0]) > 2 * best_channel
    assert np.allclose(found.prototypes[0], found.filters[0] @ data[labels == 0].mean(axis=0))


def test_covariances_are_positive_definite_and_hold_the_similarity_to_each_prototype() -> None:
    data, labels, _ = responses()
    found = fit_xdawn(data[:100], labels[:100], 1)
    matrices = found.covariances(data[100:])
    assert matrices.shape == (100, 4, 4) and np.linalg.eigvalsh(matrices).min() > 0
    assert np.allclose(matrices, matrices.transpose(0, 2, 1))
    likeness = matrices[:, 0, 2] / np.sqrt(matrices[:, 0, 0]) - matrices[:, 1, 3] / np.sqrt(matrices[:, 1, 1])
    held = labels[100:]
    assert (likeness[held == 0][:, None] > likeness[held == 1][None]).mean() > 0.8
    plain = found.covariances(data[:3], 0.0)
    filtered = found.filters @ data[0]
    assert np.allclose(plain[0][2:, 2:], filtered @ filtered.T / 40)


def test_refusals() -> None:
    data, labels, _ = responses(20)
    with pytest.raises(ValueError, match="ask for fewer"):
        fit_xdawn(data, labels, 9)
    with pytest.raises(ValueError, match="at least 2 classes"):
        fit_xdawn(data, np.zeros(20), 1)
