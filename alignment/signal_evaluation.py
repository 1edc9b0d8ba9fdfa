"""Evaluate a decoder on recordings of people: by person, by presentations averaged, by time window, and on noise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.answer_calibration import ScoredAnswers, confidence_figures
from alignment.calibrate import surrogates
from alignment.evaluation_report import ConfidenceFigures, Figure, Metric
from alignment.phase_surrogates import phase_randomised
from alignment.repetitions import average_blocks, keep_window, repetition_counts
from alignment.retrieval_figures import GALLERY_SIZES, RetrievalAnswers, retrieval_figures
from encoders.epochs import SignalEpochs

Similarity = Callable[[Sequence[SignalEpochs]], NDArray[np.float32]]
"""Recordings of the same presentations of one person, one per modality -> (n, m) similarities to the gallery."""
Recordings = Mapping[str, Sequence[SignalEpochs]]
"""Per person: single presentations, one recording per modality, in the same order."""
MAIN_METRICS: tuple[Metric, ...] = ("top_1", "top_5")


@dataclass(frozen=True)
class EvaluationPlan:
    """What is measured.

    Attributes
    ----------
    columns : mapping of str to int
        Gallery column of each stimulus id.
    n_repetitions : int
        Presentations of each picture.
    windows : sequence of (float, float)
        Seconds.
    split, selection_split : str
    modalities : str
        Name of the combination, for the figures' groups.
    seed : int
    """

    columns: Mapping[str, int]
    n_repetitions: int
    windows: Sequence[tuple[float, float]]
    split: str
    selection_split: str
    modalities: str
    seed: int = 0


def signal_figures(similarity: Similarity, recordings: Recordings, plan: EvaluationPlan) -> list[Figure]:
    """Score all people together and each alone, for 1, 2, 4, ... presentations averaged, and single windows.

    Returns
    -------
    list of Figure
        Every metric and gallery size for all people; top-1 and top-5 of the whole gallery by person and by window, the
        latter for single presentations and for averages of all. Noise: white, with each channel's deviation.
    """
    found: list[Figure] = []
    for count in repetition_counts(plan.n_repetitions):
        averaged = {person: _averaged(parts, count) for person, parts in recordings.items()}
        answers = {person: _answers(similarity, parts, plan, count) for person, parts in averaged.items()}
        found += retrieval_figures(
            _joined(answers.values(), {"modality": plan.modalities}), gallery_sizes=GALLERY_SIZES, seed=plan.seed
        )
        for person, one in answers.items():
            group = {"modality": plan.modalities, "person": person}
            found += retrieval_figures(
                replace(one, group=group), gallery_sizes=(), metrics=MAIN_METRICS, seed=plan.seed
            )
        if count in (1, plan.n_repetitions):
            found += _window_figures(similarity, averaged, answers, plan, count)
    return found


def signal_confidence(
    similarity: Similarity,
    recordings: Recordings,
    validation_similarity: Similarity,
    validation: Recordings,
    plan: EvaluationPlan,
    validation_plan: EvaluationPlan,
) -> list[ConfidenceFigures]:
    """Calibrate confidence on other pictures, for single presentations and averages of all, and measure it.

    Parameters
    ----------
    similarity, recordings, plan
        Of the test pictures.
    validation_similarity, validation, validation_plan
        Of pictures that share none with the test, in a gallery of the same size.

    Returns
    -------
    list of ConfidenceFigures
        With surrogates of the test recordings whose phases are random: the same for all channels, or one by one.
    """
    found = []
    for count in sorted({1, plan.n_repetitions}):
        averaged = {person: _averaged(parts, count) for person, parts in recordings.items()}
        null = {
            f"phases random, {kind}": np.concatenate(
                [similarity([_turned(part, plan.seed, shared) for part in parts]) for parts in averaged.values()]
            )
            for kind, shared in (("the same for all channels", True), ("channel by channel", False))
        }
        sides = [
            _scored(validation_similarity, {one: _averaged(parts, count) for one, parts in validation.items()},
                    validation_plan, count),
            _scored(similarity, averaged, plan, count),
        ]  # fmt: skip
        found.append(confidence_figures(sides[0], sides[1], null, seed=plan.seed))
    return found


def _averaged(parts: Sequence[SignalEpochs], count: int) -> list[SignalEpochs]:
    return [average_blocks(part, count) for part in parts]


def _answers(
    similarity: Similarity, parts: Sequence[SignalEpochs], plan: EvaluationPlan, count: int
) -> RetrievalAnswers:
    noise = [surrogates(part, "white", plan.seed + index) for index, part in enumerate(parts)]
    target = np.array([plan.columns[one] for one in parts[0].stimulus], dtype=np.int64)
    return RetrievalAnswers(
        similarity(parts), similarity(noise), target, count, plan.split, plan.selection_split
    )


def _joined(answers: Any, group: Mapping[str, str]) -> RetrievalAnswers:
    parts: list[RetrievalAnswers] = list(answers)
    return replace(
        parts[0],
        similarity=np.concatenate([one.similarity for one in parts]),
        noise_similarity=np.concatenate([one.noise_similarity for one in parts]),
        target=np.concatenate([one.target for one in parts]),
        group=group,
    )


def _window_figures(
    similarity: Similarity,
    averaged: Recordings,
    answers: Mapping[str, RetrievalAnswers],
    plan: EvaluationPlan,
    count: int,
) -> list[Figure]:
    found = []
    for start, stop in plan.windows:
        group = {"modality": plan.modalities, "window": f"{start:g} to {stop:g} s"}
        parts = [
            replace(answers[person], similarity=similarity([keep_window(part, start, stop) for part in recordings]))
            for person, recordings in averaged.items()
        ]
        found += retrieval_figures(_joined(parts, group), gallery_sizes=(), metrics=MAIN_METRICS, seed=plan.seed)
    return found


def _scored(similarity: Similarity, averaged: Recordings, plan: EvaluationPlan, count: int) -> ScoredAnswers:
    stimulus = tuple(one for parts in averaged.values() for one in parts[0].stimulus)
    return ScoredAnswers(
        similarity=np.concatenate([similarity(parts) for parts in averaged.values()]),
        target=np.array([plan.columns[one] for one in stimulus], dtype=np.int64),
        image=stimulus, n_averaged=count, split=plan.split, group={"modality": plan.modalities},
    )  # fmt: skip


def _turned(part: SignalEpochs, seed: int, shared: bool) -> SignalEpochs:
    turned = phase_randomised(part.data, np.random.default_rng([seed, 7]), shared=shared)
    return replace(part, data=turned.astype(np.float32))
