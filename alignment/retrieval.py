"""How well embeddings find their picture in a gallery; every figure comes with chance, n and an interval.

Retrieval is greedy: each row picks for itself. (Assigning all rows at once, each picture to one row only, gives higher
figures that no single recording can have.)
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.resampling import bootstrap_means
from alignment.retrieval_metrics import check_similarity, own_ranks

Float = NDArray[np.float32]


@dataclass(frozen=True)
class RetrievalReport:
    """Scores of one set of recordings against one gallery.

    Attributes
    ----------
    n, n_stimuli, n_gallery : int
        Rows, different stimuli among them, and pictures to choose from.
    top_1, top_5 : float
        Share of rows whose picture is first, or among the first five.
    median_rank : float
        1 is best; ``(n_gallery + 1) / 2`` is chance.
    two_way : float
        Chance that the right picture beats a random other one; 0.5 is chance.
    chance_top_1, chance_top_5 : float
    interval_top_1, interval_top_5 : tuple of float
        95 % bootstrap interval; stimuli are resampled, so repeated rows of one stimulus do not narrow it.
    """

    n: int
    n_stimuli: int
    n_gallery: int
    top_1: float
    top_5: float
    median_rank: float
    two_way: float
    chance_top_1: float
    chance_top_5: float
    interval_top_1: tuple[float, float]
    interval_top_5: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cosine_similarity(brain_embeds: Float, image_embeds: Float, centre: Float | None = None) -> Float:
    """Compare every brain embedding with every image embedding.

    Parameters
    ----------
    brain_embeds : ndarray, (n, d), float32
    image_embeds : ndarray, (m, d), float32
    centre : ndarray, (d,), optional
        Subtracted from both first, usually the mean of the training targets: CLIP embeddings share a large common
        part that says nothing about the picture.

    Returns
    -------
    ndarray, (n, m), float32
        Cosines; 0 for a zero vector.
    """
    if brain_embeds.ndim != 2 or image_embeds.ndim != 2 or brain_embeds.shape[1] != image_embeds.shape[1]:
        raise ValueError(
            f"brain_embeds {brain_embeds.shape} and image_embeds {image_embeds.shape} must be (n, d) and (m, d) with "
            "one width d; encode both into the same CLIP space"
        )
    offset = 0 if centre is None else centre
    cosines: Float = (_unit(brain_embeds - offset) @ _unit(image_embeds - offset).T).astype(np.float32)
    return cosines


def retrieval_scores(
    brain_embeds: Float,
    image_embeds: Float,
    target: NDArray[np.int64] | None = None,
    *,
    centre: Float | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> RetrievalReport:
    """Score cosine retrieval; see `report_similarity` and `cosine_similarity` for the arguments."""
    similarity = cosine_similarity(brain_embeds, image_embeds, centre)
    return report_similarity(similarity, target, n_bootstrap=n_bootstrap, seed=seed)


def report_similarity(
    similarity: NDArray[Any], target: NDArray[np.int64] | None = None, *, n_bootstrap: int = 1000, seed: int = 0
) -> RetrievalReport:
    """Score a matrix of similarities (or log-likelihoods).

    Parameters
    ----------
    similarity : ndarray, (n, m)
        Row: recording; column: gallery picture; larger is more alike.
    target : ndarray, (n,), int64, optional
        Column of each row's own picture; ``0 .. n-1`` by default.
    n_bootstrap, seed : int
        For the interval.

    Returns
    -------
    RetrievalReport
        A tie counts as half a better picture, so constant similarities score no hit.

    Raises
    ------
    ValueError
        If a value is not finite, or a target lies outside the gallery.
    """
    columns = check_similarity(similarity, target)
    n, n_gallery = similarity.shape
    rank = own_ranks(similarity, columns)
    hit_1, hit_5 = rank <= 1, rank <= 5
    interval_1, interval_5 = bootstrap_means(np.stack([hit_1, hit_5], axis=1), columns, n_bootstrap, seed)
    return RetrievalReport(
        n=n, n_stimuli=len(np.unique(columns)), n_gallery=n_gallery,
        top_1=float(hit_1.mean()), top_5=float(hit_5.mean()), median_rank=float(np.median(rank)),
        two_way=float(((n_gallery - rank) / max(n_gallery - 1, 1)).mean()),
        chance_top_1=1 / n_gallery, chance_top_5=min(5 / n_gallery, 1.0),
        interval_top_1=interval_1, interval_top_5=interval_5,
    )  # fmt: skip


def _unit(vectors: NDArray[Any]) -> NDArray[Any]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[Any] = vectors / np.where(length > 0, length, 1)
    return unit
