"""What the sources of a simulated brain read out of an image embedding: linear, fixed, and known to the observer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Readouts:
    """Linear read-outs of normalised embeddings.

    Attributes
    ----------
    embed_mean : ndarray, (d,), float64
        Mean of the normalised training embeddings.
    weights : ndarray, (n_sources, d), float64
        One row per source, scaled to unit standard deviation over the training images.
    """

    embed_mean: Array
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
    generator: np.random.Generator,
    *,
    whitening: float,
    train_embeds: NDArray[np.float32] | None = None,
    train_concepts: NDArray[np.int64] | None = None,
) -> Readouts:
    """Draw the read-out of every source.

    The embedding's leading principal axes, as many as a group of sources can carry, are split in two: the semantic
    half separates concepts best (share of its variance that lies between concepts), the low-level half worst.
    Without concepts the split is random; without embeddings the axes are random too. A source reads a random
    direction of its half.

    Parameters
    ----------
    late : ndarray, (n_sources,), bool
        Late sources read the semantic half, the others the low-level half.
    embed_dim : int
        Width of the embeddings.
    generator : numpy.random.Generator
        Random source.
    whitening : float
        0 reads axes in proportion to their standard deviation, 1 makes all axes equally strong.
    train_embeds : ndarray, (n, d), float32, optional
        Training embeddings that axes and scales come from.
    train_concepts : ndarray, (n,), int64, optional
        Concept of each training embedding.

    Returns
    -------
    Readouts
    """
    n_axes = min(len(late), embed_dim)
    if train_embeds is None:
        mean, scale = np.zeros(embed_dim), np.full(n_axes, embed_dim**-0.5)
        axes = np.linalg.qr(generator.standard_normal((embed_dim, n_axes)))[0]
        order = generator.permutation(n_axes)
    else:
        unit = unit_rows(train_embeds)
        mean = unit.mean(axis=0)
        _, singular, basis = np.linalg.svd(unit - mean, full_matrices=False)
        n_axes = min(n_axes, int((singular > 1e-6 * singular[0]).sum()))
        axes, scale = basis[:n_axes].T, singular[:n_axes] / np.sqrt(len(unit))
        if train_concepts is None:
            order = generator.permutation(n_axes)
        else:
            axes, scale = _semantic_order(unit - mean, axes, train_concepts)
            order = np.arange(n_axes)
    halves = {True: order[: n_axes // 2], False: order[n_axes // 2 :]}
    weights = np.empty((len(late), embed_dim))
    for is_late, half in halves.items():
        members = np.flatnonzero(late == is_late)
        mixing = _mixing(len(members), len(half), generator) * scale[half] ** (1.0 - whitening)
        mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)
        weights[members] = (mixing / scale[half]) @ axes[:, half].T
    return Readouts(mean, weights)


def _mixing(n_rows: int, n_columns: int, generator: np.random.Generator) -> Array:
    """Draw a matrix whose rows cover all columns evenly: stacked random rotations."""
    blocks = [
        np.linalg.qr(generator.standard_normal((n_columns, n_columns)))[0] for _ in range(-(-n_rows // n_columns))
    ]
    stacked: Array = np.concatenate(blocks)[:n_rows]
    return stacked


def _semantic_order(centred: Array, axes: Array, concepts: NDArray[np.int64]) -> tuple[Array, Array]:
    """Rotate the axes to uncorrelated ones ordered by the between-concept share of variance, largest first.

    Returns the (not orthogonal) read-out directions (d, n_axes), scaled so that ``x @ axes / scale`` has unit
    variance, and their standard deviations.
    """
    scores = centred @ axes
    white = scores / scores.std(axis=0)
    _, index, counts = np.unique(concepts, return_inverse=True, return_counts=True)
    means = np.zeros((len(counts), white.shape[1]))
    np.add.at(means, index, white)
    means /= counts[:, None]
    between = (means * counts[:, None]).T @ means / len(white)
    _, rotation = np.linalg.eigh(between)
    rotation = rotation[:, ::-1]
    # uncorrelated unit-variance read-outs; the scale is the spread of the embedding along each
    directions = axes / scores.std(axis=0) @ rotation
    spread = np.sqrt((rotation**2 * scores.var(axis=0)[:, None]).sum(axis=0))
    scaled: Array = directions * spread
    return scaled, spread
