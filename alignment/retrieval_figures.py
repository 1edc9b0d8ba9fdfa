"""From similarities to figures of a report: each metric with its chance level, interval, p value and noise baseline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.evaluation_report import LOWER_IS_BETTER, Figure, Metric
from alignment.resampling import (
    MIN_PERMUTATIONS,
    Statistic,
    bootstrap_means,
    bootstrap_median,
    image_permutation_p,
)
from alignment.retrieval_metrics import (
    GalleryRanks,
    check_similarity,
    expected_reciprocal_rank,
    gallery_ranks,
    target_ranks,
)

GALLERY_SIZES = (200, 100, 50)
RETRIEVAL_METRICS: tuple[Metric, ...] = (
    "top_1", "top_5", "two_way", "mean_rank", "median_rank", "mean_average_precision"
)  # fmt: skip
TOP_K: Mapping[Metric, int] = {"top_1": 1, "top_5": 5}
_MEDIAN: tuple[Metric, ...] = ("median_rank",)
Ints = NDArray[np.int64]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class RetrievalAnswers:
    """Similarities of one set of recordings to one gallery, and of noise put through the same decoder.

    Attributes
    ----------
    similarity, noise_similarity : ndarray, (n, m)
        Row: recording; column: gallery picture. ``noise_similarity`` may have another number of rows, a multiple of n
        in the same order.
    target : ndarray, (n,), int64
        Column of each row's own picture.
    n_averaged : int
    split, selection_split : str
        As in `Figure`.
    group : mapping of str to str
    blocks : ndarray, (m,), optional
        Fold of each picture in a cross-validation; see `image_permutation_p`.
    """

    similarity: NDArray[Any]
    noise_similarity: NDArray[Any]
    target: Ints
    n_averaged: int
    split: str
    selection_split: str
    group: Mapping[str, str] = field(default_factory=dict)
    blocks: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        """Check both matrices."""
        check_similarity(self.similarity, self.target)
        copies, rest = divmod(len(self.noise_similarity), len(self.target))
        if copies < 1 or rest or self.noise_similarity.shape[1] != self.similarity.shape[1]:
            raise ValueError(
                f"noise_similarity {self.noise_similarity.shape} must have the gallery of {self.similarity.shape} and "
                "a multiple of its rows; put noise in place of every recording"
            )
        check_similarity(self.noise_similarity, np.tile(self.target, copies))


def retrieval_figures(
    answers: RetrievalAnswers,
    *,
    gallery_sizes: Sequence[int] = GALLERY_SIZES,
    metrics: Sequence[Metric] = RETRIEVAL_METRICS,
    n_permutations: int = MIN_PERMUTATIONS,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> list[Figure]:
    """Score top-1 and top-5 in galleries of several sizes, two-way identification, ranks and mAP.

    Parameters
    ----------
    answers : RetrievalAnswers
    gallery_sizes : sequence of int
        Those larger than the gallery, and too small for k, are left out; the whole gallery is always scored. Smaller
        galleries are averaged over all choices of the others.
    metrics : sequence of str
        Some of `RETRIEVAL_METRICS`.
    n_permutations, n_bootstrap, seed : int
        Pictures are permuted and resampled, with all their recordings.

    Returns
    -------
    list of Figure
    """
    m = answers.similarity.shape[1]
    sizes = sorted({m, *(size for size in gallery_sizes if size < m)}, reverse=True)
    table: list[tuple[Metric, Callable[[GalleryRanks], Float64], float, int]] = [
        (metric, partial(_hits, k=k, gallery_size=size), k / size, size)
        for metric, k in TOP_K.items()
        for size in sizes
        if size > k
    ]
    if m > 2:
        table.append(("two_way", partial(_hits, k=1, gallery_size=2), 0.5, 2))
    table += [
        ("mean_rank", lambda ranked: ranked.ranks, (m + 1) / 2, m),
        ("median_rank", lambda ranked: ranked.ranks, (m + 1) / 2, m),
        ("mean_average_precision", lambda ranked: 1 / ranked.ranks, expected_reciprocal_rank(m), m),
    ]
    copies = len(answers.noise_similarity) // len(answers.target)
    ranked = gallery_ranks(answers.similarity), target_ranks(answers.noise_similarity, np.tile(answers.target, copies))
    return [
        _figure(answers, ranked, metric, credit_of, chance, size, n_permutations, n_bootstrap, seed)
        for metric, credit_of, chance, size in table
        if metric in metrics
    ]


def _hits(ranked: GalleryRanks, *, k: int, gallery_size: int) -> Float64:
    return ranked.hits(k, gallery_size)


def _figure(
    answers: RetrievalAnswers,
    ranked: tuple[GalleryRanks, GalleryRanks],
    metric: Metric,
    credit_of: Callable[[GalleryRanks], Float64],
    chance: float,
    size: int,
    n_permutations: int,
    n_bootstrap: int,
    seed: int,
) -> Figure:
    """Make one figure; ``ranked`` holds all ranks of the recordings and the own ranks of noise."""
    credit, noise, target = credit_of(ranked[0]), credit_of(ranked[1]), answers.target
    own = credit[np.arange(len(target)), target]
    statistic: Statistic = "median" if metric in _MEDIAN else "mean"
    if statistic == "median":
        value, baseline = float(np.median(own)), float(np.median(noise))
        interval = bootstrap_median(own, target, n_bootstrap, seed)
    else:
        value, baseline = float(own.mean()), float(noise.mean())
        interval = bootstrap_means(own[:, None], target, n_bootstrap, seed)[0]
    p = image_permutation_p(
        -credit if metric in LOWER_IS_BETTER else credit, target, answers.blocks, statistic=statistic,
        n_permutations=n_permutations, seed=seed,
    )  # fmt: skip
    return Figure(
        metric=metric, value=value, chance=chance, n=len(target), n_groups=len(np.unique(target)),
        noise_baseline=baseline, resampled="image", n_averaged=answers.n_averaged, gallery_size=size,
        split=answers.split, selection_split=answers.selection_split, interval=interval, permutation_p=p,
        n_permutations=n_permutations, group=dict(answers.group),
    )  # fmt: skip
