"""From similarities to figures of a report: each metric with its chance level, interval, p value and noise baseline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from alignment.evaluation_report import LOWER_IS_BETTER, Figure, Metric
from alignment.resampling import MIN_PERMUTATIONS, bootstrap_means, bootstrap_score, image_permutation_p
from alignment.retrieval_metrics import check_similarity, expected_hits, expected_reciprocal_rank

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
    found = []
    for metric, k in ((name, k) for name, k in TOP_K.items() if name in metrics):
        for size in (one for one in sizes if one > k):

            def hits(similarity: NDArray[Any], k: int = k, size: int = size) -> Float64:
                return expected_hits(similarity, k, size)

            found.append(_figure(answers, metric, hits, k / size, size, n_permutations, n_bootstrap, seed))
    table: list[tuple[Metric, Callable[[NDArray[Any]], Float64], float, int]] = [
        ("mean_rank", all_ranks, (m + 1) / 2, m),
        ("median_rank", all_ranks, (m + 1) / 2, m),
        ("mean_average_precision", lambda one: 1 / all_ranks(one), expected_reciprocal_rank(m), m),
    ]
    if m > 2:
        table.insert(0, ("two_way", lambda one: expected_hits(one, 1, 2), 0.5, 2))
    for name, credit, chance, size in (one for one in table if one[0] in metrics):
        found.append(_figure(answers, name, credit, chance, size, n_permutations, n_bootstrap, seed))
    return found


def all_ranks(similarity: NDArray[Any]) -> Float64:
    """Rank every column of every row, (n, m): 1 is best, ties share their mean rank."""
    ranks: Float64 = rankdata(-similarity, axis=1)
    return ranks


def _figure(
    answers: RetrievalAnswers,
    metric: Metric,
    credit_of: Callable[[NDArray[Any]], Float64],
    chance: float,
    size: int,
    n_permutations: int,
    n_bootstrap: int,
    seed: int,
) -> Figure:
    statistic: Callable[[NDArray[Any]], Any] = np.median if metric in _MEDIAN else np.mean
    credit, rows, target = credit_of(answers.similarity), np.arange(len(answers.target)), answers.target
    own = credit[rows, target]
    noise = credit_of(answers.noise_similarity)
    noise_target = np.tile(target, len(noise) // len(target))
    if metric in _MEDIAN:
        interval = bootstrap_score(lambda drawn: float(np.median(own[drawn])), target, n_bootstrap, seed)
    else:
        interval = bootstrap_means(own[:, None], target, n_bootstrap, seed)[0]
    p = image_permutation_p(
        -credit if metric in LOWER_IS_BETTER else credit, target, answers.blocks, statistic=statistic,
        n_permutations=n_permutations, seed=seed,
    )  # fmt: skip
    return Figure(
        metric=metric, value=float(statistic(own)), chance=chance, n=len(target), n_groups=len(np.unique(target)),
        noise_baseline=float(statistic(noise[np.arange(len(noise)), noise_target])), resampled="image",
        n_averaged=answers.n_averaged, gallery_size=size, split=answers.split,
        selection_split=answers.selection_split, interval=interval, permutation_p=p, n_permutations=n_permutations,
        group=dict(answers.group),
    )  # fmt: skip
