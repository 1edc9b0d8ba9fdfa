"""Whitening finds a signal under loud directions, uses no held-out row, and leaves noise at chance."""

import numpy as np
import pytest
from sklearn.covariance import empirical_covariance

from alignment.embedding_map import SHRINKAGES, fit_embedding_map, held_out_retrieval, picture_folds
from alignment.retrieval import report_similarity


def pairs(n: int = 80, d: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Brain embeddings with a picture in them, under three loud directions that know nothing of it."""
    generator = np.random.default_rng(seed)
    image = generator.standard_normal((n, d)) + 3
    loud = generator.standard_normal((n, 3)) @ generator.standard_normal((3, d)) * 6
    brain = image + generator.standard_normal((n, d)) + loud + 5
    return brain.astype("f"), image.astype("f")


def test_gains_are_those_of_the_shrunken_covariance() -> None:
    brain, image = pairs(30, 10)
    fitted = fit_embedding_map(brain, image, 0.5)
    covariance = empirical_covariance(brain)
    values, vectors = np.linalg.eigh(covariance + 0.5 * np.trace(covariance) / 10 * np.eye(10))
    whitened = (brain - brain.mean(axis=0)) @ vectors / np.sqrt(values) @ vectors.T
    found = fitted.transform(brain)
    assert np.allclose(found / np.linalg.norm(found), whitened / np.linalg.norm(whitened), atol=1e-5)


def test_endless_shrinkage_is_centring() -> None:
    brain, image = pairs()
    fitted = fit_embedding_map(brain, image, np.inf)
    assert np.allclose(fitted.transform(brain), brain - brain.mean(axis=0), atol=1e-4)


def test_it_improves_on_the_cosine_and_the_noise_baseline_is_chance() -> None:
    brain, image = pairs()
    held_out = held_out_retrieval(brain, image, n_folds=8)
    plain = report_similarity(brain @ (image / np.linalg.norm(image, axis=1, keepdims=True)).T).top_1
    assert report_similarity(held_out.similarity).top_1 > plain + 0.3
    noise = report_similarity(held_out.noise_similarity, np.tile(np.arange(80), 20))
    assert noise.top_1 == pytest.approx(1 / 80, abs=0.012) and noise.two_way == pytest.approx(0.5, abs=0.03)
    assert set(held_out.shrinkages) <= set(SHRINKAGES) and len(held_out.shrinkages) == 8


def test_a_held_out_row_has_no_part_in_its_own_map() -> None:
    brain, image = pairs()
    one = held_out_retrieval(brain, image, n_folds=8, n_noise=1)
    changed = brain.copy()
    rows = one.fold == 3
    changed[rows] += 100 * np.random.default_rng(1).standard_normal(changed[rows].shape).astype("f")
    other = held_out_retrieval(changed, image, n_folds=8, n_noise=1)
    assert np.array_equal(one.fold, other.fold) and one.shrinkages[3] == other.shrinkages[3]
    # the map of fold 3 comes from the other folds alone, whatever happens to fold 3
    fitted = [fit_embedding_map(part[~rows], image[~rows], one.shrinkages[3]) for part in (brain, changed)]
    assert np.array_equal(fitted[0].similarity(brain[rows], image), fitted[1].similarity(brain[rows], image))
    assert np.array_equal(fitted[0].similarity(brain[rows], image), one.similarity[rows])


def test_folds_are_even_and_refusals_say_what_to_do() -> None:
    fold = picture_folds(20, 4, np.random.default_rng(0))
    assert np.bincount(fold).tolist() == [5] * 4
    brain, image = pairs(20, 5)
    with pytest.raises(ValueError, match="use fewer folds"):
        picture_folds(20, 11, np.random.default_rng(0))
    with pytest.raises(ValueError, match="average repetitions first"):
        held_out_retrieval(brain, np.repeat(image[:10], 2, axis=0))
    with pytest.raises(ValueError, match="positive shrinkage"):
        fit_embedding_map(brain, image, 0.0)
