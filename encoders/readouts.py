"""What the sources of a simulated brain read out of an image embedding: linear, fixed, and known to the observer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FLATTENING = 0.5
"""Exponent of an axis' standard deviation in a read-out: 1 keeps the embedding's spectrum, 0 whitens it."""


@dataclass(frozen=True)
class Readouts:
    """Linear read-outs of normalised embeddings.

    Attributes
    ----------
    embed_mean : ndarray, (d,), float64
        Mean of the normalised training embeddings.
    embed_covariance : ndarray, (d, d), float64
        Their covariance.
    weights : ndarray, (n_sources, d), float64
        One row per source; over the training images the variances of each half average to 1.
    """

    embed_mean: Array
    embed_covariance: Array
    weights: Array

    def amplitudes(self, image_embeds: NDArray[np.float32]) -> Array:
        """Return the amplitude of every source, (n_images, n_sources); embeddings of any length are accepted."""
        amplitudes: Array = (unit_rows(image_embeds) - self.embed_mean) @ self.weights.T
        return amplitudes


def unit_rows(embeds: NDArray[np.float32]) -> Array:
    """Return the embeddings as float64 with length 1."""
    rows = np.asarray(embeds, dtype=np.float64)
    unit: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def draw_readouts(
    late: NDArray[np.bool_],
    embed_dim: int,
    n_axes: int,
    generator: np.random.Generator,
    train_embeds: NDArray[np.float32] | None = None,
    train_concepts: NDArray[np.int64] | None = None,
) -> Readouts:
    """Draw the read-out of every source.

    The embedding's leading principal axes are split in two: the semantic half separates concepts best (share of an
    axis' variance that lies between concepts), the low-level half worst. Without concepts the split is random;
    without embeddings the axes are random too and embeddings count as uniform on the sphere. A source reads a
    random direction of its half, and the sources of a half cover it evenly.

    Parameters
    ----------
    late : ndarray, (n_sources,), bool
        Late sources read the semantic half, the others the low-level half.
    embed_dim : int
        Width of the embeddings.
    n_axes : int
        Number of principal axes, at least 2; fewer are used if the embeddings span fewer.
    generator : numpy.random.Generator
        Random source.
    train_embeds : ndarray, (n, d), float32, optional
        Training embeddings, of any length, that axes and scales come from.
    train_concepts : ndarray, (n,), int64, optional
        Concept of each training embedding.

    Returns
    -------
    Readouts

    Raises
    ------
    ValueError
        If the training embeddings have another width.
    """
    if train_embeds is None:
        mean, covariance = np.zeros(embed_dim), np.eye(embed_dim) / embed_dim
        basis = _random_columns(embed_dim, min(n_axes, embed_dim), generator)
        directions, spread = basis * embed_dim**0.5, np.full(basis.shape[1], embed_dim**-0.5)
    else:
        if train_embeds.ndim != 2 or train_embeds.shape[1] != embed_dim:
            raise ValueError(f"train_embeds has shape {train_embeds.shape}, expected (n, {embed_dim}); pass raw embeds")
        unit = unit_rows(train_embeds)
        mean, covariance = unit.mean(axis=0), np.cov(unit.T, bias=True)
        directions, spread = _principal_directions(covariance, n_axes)
        order = generator.permutation(len(spread))
        if train_concepts is not None:
            order = _semantic_order((unit - mean) @ directions, train_concepts)
        directions, spread = directions[:, order], spread[order]
    n_semantic = len(spread) // 2
    weights = np.empty((len(late), embed_dim))
    for members, half in ((late, slice(0, n_semantic)), (~late, slice(n_semantic, None))):
        mixing = _stacked_rotations(int(members.sum()), len(spread[half]), generator) * spread[half] ** FLATTENING
        mixing /= np.sqrt((mixing**2).sum(axis=1).mean())
        weights[members] = mixing @ directions[:, half].T
    return Readouts(mean, covariance, weights)


def _principal_directions(covariance: Array, n_axes: int) -> tuple[Array, Array]:
    """Return directions (d, n) along which the embeddings have unit variance, and the spread they really have."""
    values, vectors = np.linalg.eigh(covariance)
    kept = np.flatnonzero(values > 1e-9 * values[-1])[::-1][:n_axes]
    spread = np.sqrt(values[kept])
    return _fix_signs(vectors[:, kept]) / spread, spread


def _semantic_order(scores: Array, concepts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order white scores (n, n_axes) by the share of their variance between concepts, largest first."""
    _, index, counts = np.unique(concepts, return_inverse=True, return_counts=True)
    means = np.zeros((len(counts), scores.shape[1]))
    np.add.at(means, index, scores)
    means /= counts[:, None]
    between = (counts[:, None] * means**2).sum(axis=0)
    order: NDArray[np.int64] = np.argsort(-between, kind="stable")
    return order


def _stacked_rotations(n_rows: int, n_columns: int, generator: np.random.Generator) -> Array:
    """Draw a matrix whose rows have length 1 and cover all columns evenly."""
    blocks = [_random_columns(n_columns, n_columns, generator) for _ in range(-(-n_rows // n_columns))]
    stacked: Array = np.concatenate(blocks)[:n_rows]
    return stacked


def _random_columns(n_rows: int, n_columns: int, generator: np.random.Generator) -> Array:
    """Draw orthonormal columns."""
    return _fix_signs(np.linalg.qr(generator.standard_normal((n_rows, n_columns)))[0])


def _fix_signs(vectors: Array) -> Array:
    """Make the largest entry of each column positive, so that every linear-algebra library gives the same brain."""
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    signed: Array = vectors * np.sign(largest)
    return signed
