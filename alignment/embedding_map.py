"""A map of finished brain embeddings that was fitted on other pictures: centring and shrunken whitening.

Directions in which the encoder's output varies much whatever the picture is drown the others in a cosine. Whitening by
the training rows' covariance turns them down; shrinkage decides how far. The map never looks at pairs, so it cannot
pull answers towards pictures that it was fitted on (ridge regression does: every training picture in the gallery
becomes a distractor).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignment.retrieval import cosine_similarity
from alignment.retrieval_metrics import own_ranks

SHRINKAGES = (0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 1000.0)
"""Candidates, in units of the mean variance of a principal direction; the last one is all but centring alone."""

Float = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class EmbeddingMap:
    """A fitted map.

    Attributes
    ----------
    brain_mean, image_mean : ndarray, (d,), float64
        Of the training rows.
    directions : ndarray, (k, d), float64
        Principal directions of the training brain embeddings.
    gains : ndarray, (k,), float64
        Of each, relative to the gain 1 of what lies outside them.
    shrinkage : float
    """

    brain_mean: Float64
    image_mean: Float64
    directions: Float64
    gains: Float64
    shrinkage: float

    def transform(self, brain_embeds: NDArray[np.floating]) -> Float:
        """Map (n, d) brain embeddings; the result is to be compared with images minus ``image_mean``."""
        centred = brain_embeds - self.brain_mean
        mapped = centred + ((centred @ self.directions.T) * (self.gains - 1)) @ self.directions
        return np.asarray(mapped, dtype=np.float32)

    def similarity(self, brain_embeds: NDArray[np.floating], image_embeds: NDArray[np.floating]) -> Float:
        """Give the cosine (n, m) of mapped brain and centred image embeddings."""
        images = np.asarray(image_embeds - self.image_mean, dtype=np.float32)
        return cosine_similarity(self.transform(brain_embeds), images)


def fit_embedding_map(brain_embeds: Float, image_embeds: Float, shrinkage: float) -> EmbeddingMap:
    """Fit means and whitening on training rows.

    Parameters
    ----------
    brain_embeds, image_embeds : ndarray, (n, d), float32
        n of at least 3; images as the gallery holds them.
    shrinkage : float
        Added to every direction's variance, in units of the mean one; infinity is centring alone.

    Returns
    -------
    EmbeddingMap
    """
    if brain_embeds.shape != image_embeds.shape or len(brain_embeds) < 3 or not shrinkage > 0:
        raise ValueError(
            f"an embedding map got brain_embeds {brain_embeds.shape}, image_embeds {image_embeds.shape} and shrinkage "
            f"{shrinkage}, expected the same (n, d) with n >= 3 and a positive shrinkage"
        )
    brain = brain_embeds.astype(np.float64)
    mean = brain.mean(axis=0)
    _, singular, directions = np.linalg.svd(brain - mean, full_matrices=False)
    variance = singular**2 / len(brain)
    ratio = variance / variance.mean() / shrinkage
    image_mean = image_embeds.astype(np.float64).mean(axis=0)
    return EmbeddingMap(mean, image_mean, directions, 1 / np.sqrt(1 + ratio), shrinkage)


@dataclass(frozen=True)
class HeldOutRetrieval:
    """Similarities in which every row was mapped by a map that saw neither it nor its picture.

    Attributes
    ----------
    similarity : ndarray, (n, n), float32
    noise_similarity : ndarray, (n_noise * n, n), float32
        The same maps applied to random embeddings with mean and covariance of the training rows.
    fold : ndarray, (n,), int64
    shrinkages : tuple of float
        Chosen in each fold, on its training rows.
    """

    similarity: Float
    noise_similarity: Float
    fold: Ints
    shrinkages: tuple[float, ...]


def held_out_retrieval(
    brain_embeds: Float,
    image_embeds: Float,
    shrinkages: Sequence[float] = SHRINKAGES,
    *,
    n_folds: int = 10,
    n_inner: int = 5,
    n_noise: int = 20,
    seed: int = 0,
) -> HeldOutRetrieval:
    """Map every row with what other rows teach; folds within the training rows choose the shrinkage.

    The gallery of all n pictures is used for scoring alone; the choice is made in a gallery of training pictures.

    Parameters
    ----------
    brain_embeds, image_embeds : ndarray, (n, d), float32
        Row i of both belongs to picture i; pictures differ.
    shrinkages : sequence of float
    n_folds, n_inner : int
        Outer and inner folds, by picture.
    n_noise : int
        Copies of the noise baseline.
    seed : int
        Of folds and noise.

    Returns
    -------
    HeldOutRetrieval
    """
    n = len(brain_embeds)
    if len({row.tobytes() for row in image_embeds}) != n:
        raise ValueError(f"{n} image embeddings hold copies, expected different pictures; average repetitions first")
    generator = np.random.default_rng(seed)
    fold = picture_folds(n, n_folds, generator)
    similarity = np.empty((n, n), np.float32)
    noise_similarity = np.empty((n_noise, n, n), np.float32)
    chosen = []
    for name in range(n_folds):
        train, test = np.flatnonzero(fold != name), np.flatnonzero(fold == name)
        best = choose_shrinkage(brain_embeds[train], image_embeds[train], shrinkages, n_inner, generator)
        fitted = fit_embedding_map(brain_embeds[train], image_embeds[train], best)
        similarity[test] = fitted.similarity(brain_embeds[test], image_embeds)
        noise = _noise_like(brain_embeds[train], n_noise * len(test), generator)
        noise_similarity[:, test] = fitted.similarity(noise, image_embeds).reshape(n_noise, len(test), n)
        chosen.append(best)
    return HeldOutRetrieval(similarity, noise_similarity.reshape(-1, n), fold, tuple(chosen))


def choose_shrinkage(
    brain_embeds: Float,
    image_embeds: Float,
    shrinkages: Sequence[float],
    n_folds: int,
    generator: np.random.Generator,
) -> float:
    """Return the shrinkage with the best mean reciprocal rank of held-out rows among these rows' pictures."""
    fold = picture_folds(len(brain_embeds), n_folds, generator)
    score = np.zeros(len(shrinkages))
    for name in range(n_folds):
        train, test = np.flatnonzero(fold != name), np.flatnonzero(fold == name)
        for index, shrinkage in enumerate(shrinkages):
            fitted = fit_embedding_map(brain_embeds[train], image_embeds[train], shrinkage)
            ranks = own_ranks(fitted.similarity(brain_embeds[test], image_embeds), test)
            score[index] += (1 / ranks).sum()
    return float(shrinkages[int(score.argmax())])


def picture_folds(n: int, n_folds: int, generator: np.random.Generator) -> Ints:
    """Deal n pictures into folds of equal size, (n,), at random."""
    if not 2 <= n_folds <= n // 2:
        raise ValueError(f"n_folds is {n_folds}, expected 2 to {n // 2} for {n} pictures; use fewer folds")
    fold: Ints = generator.permutation(np.arange(n) % n_folds)
    return fold


def _noise_like(rows: Float, n: int, generator: np.random.Generator) -> Float:
    """Draw normal vectors with the mean and covariance of ``rows``."""
    mean = rows.mean(axis=0)
    mixed = generator.standard_normal((n, len(rows))) @ (rows - mean) / np.sqrt(len(rows))
    return np.asarray(mixed + mean, dtype=np.float32)
