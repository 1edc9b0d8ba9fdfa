"""Whether a search's subset ranks settings as all training data does: the best few, trained again on everything."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from alignment.runtime import Runtime
from alignment.train_config import TrainConfig

TRUSTED = 0.6
"""Rank correlation below which the subset's ranking says little about the full data."""

Score = Callable[[TrainConfig, Path, Runtime], float]


@dataclass(frozen=True)
class RankCheck:
    """Scores of the same settings on the subset and on all training data, both on validation pictures.

    Attributes
    ----------
    subset, full : mapping of int to float
        By trial; ``full`` is the mean over seeds.
    spearman : float or None
        None where all scores of a side are equal.
    best : int
        Trial with the highest ``full``.
    n_seeds : int
    """

    subset: Mapping[int, float]
    full: Mapping[int, float]
    spearman: float | None
    best: int
    n_seeds: int

    @property
    def text(self) -> str:
        if self.spearman is None:
            return "all scores of the checked trials are equal: their ranks cannot be compared"
        trusted = self.spearman >= TRUSTED
        return (
            f"Spearman of subset and full ranks {self.spearman:.2f} over the best {len(self.full)} trials "
            f"({self.n_seeds} seeds each): {'as' if trusted else 'less than'} the {TRUSTED} expected before the "
            f"ranking is trusted{'' if trusted else '; search on more data'}"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "text": self.text}


def check_top(
    candidates: Mapping[int, tuple[float, TrainConfig]], folder: Path, runtime: Runtime, score: Score, n_seeds: int
) -> RankCheck:
    """Train settings on all training data and compare their ranks with those of the subset.

    Parameters
    ----------
    candidates : mapping of int to (float, TrainConfig)
        By trial: score on the subset, config of the full training.
    folder : Path
        Holds one training folder per trial and seed; a stopped check goes on.
    runtime : Runtime
    score : callable
        ``score(config, folder, runtime)`` trains and gives the validation score.
    n_seeds : int

    Raises
    ------
    ValueError
        If there are fewer than 3 candidates or no seed.
    """
    if len(candidates) < 3 or n_seeds < 1:
        raise ValueError(
            f"got {len(candidates)} trials that ran to their end and {n_seeds} seeds, expected at least 3 and 1; run "
            "more trials"
        )
    full = {}
    for number, (_, config) in candidates.items():
        scores = [
            score(config.model_copy(update={"seed": config.seed + i}), folder / f"{number:05d}-{i}", runtime)
            for i in range(n_seeds)
        ]
        full[number] = float(np.mean(scores))
    subset = {number: one for number, (one, _) in candidates.items()}
    agreement = spearman(list(subset.values()), list(full.values()))
    return RankCheck(subset, full, agreement, max(full, key=full.__getitem__), n_seeds)


def spearman(one: list[float], other: list[float]) -> float | None:
    """Correlate ranks, ties sharing their mean rank; None where one side is constant."""
    ranks = np.stack([rankdata(one), rankdata(other)])
    if (ranks.std(axis=1) == 0).any():
        return None
    return float(np.corrcoef(ranks)[0, 1])
