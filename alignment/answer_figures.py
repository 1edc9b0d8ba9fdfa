"""From the answers to all people's epochs to a report's figures and confidence, whatever the recordings were."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.answer_calibration import ScoredAnswers, confidence_figures
from alignment.dealt_galleries import deal_galleries
from alignment.evaluation_report import ConfidenceFigures, Figure, Metric
from alignment.person_answers import NOISE, PHASES, RECORDING, PersonAnswers
from alignment.resampling import MIN_PERMUTATIONS
from alignment.retrieval_figures import GALLERY_SIZES, RETRIEVAL_METRICS, RetrievalAnswers, retrieval_figures

ByCount = Mapping[int, Mapping[str, PersonAnswers]]
"""Number of presentations averaged -> person -> answers."""
WINDOW_METRICS: tuple[Metric, ...] = ("top_1", "top_5")
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Gallery:
    """Pictures to choose from, in the order of the columns of similarities, and their concepts."""

    images: tuple[str, ...]
    concepts: tuple[str, ...]

    def columns(self, images: Iterable[str]) -> Ints:
        """Give the column of each picture."""
        place = {image: column for column, image in enumerate(self.images)}
        return np.array([place[image] for image in images], dtype=np.int64)


@dataclass(frozen=True)
class FigurePlan:
    """How answers become figures.

    Attributes
    ----------
    gallery : Gallery
        Of the test pictures.
    split, selection_split : str
        As in `Figure`.
    group : mapping of str to str
        Of every figure.
    by_person : bool
        Whether to give each person's figures as well, for single presentations and for the largest averages.
    n_permutations, seed : int
    """

    gallery: Gallery
    split: str
    selection_split: str
    group: Mapping[str, str] = field(default_factory=dict)
    by_person: bool = True
    n_permutations: int = MIN_PERMUTATIONS
    seed: int = 0


def shared_counts(answers: ByCount) -> list[int]:
    """List the numbers of averages that everybody with single presentations has."""
    return [n for n, people in sorted(answers.items()) if len(people) == len(answers[1])]


def answer_figures(answers: ByCount, plan: FigurePlan) -> list[Figure]:
    """Score everybody by number of averages; each person and each window, for single ones and the largest averages.

    Parameters
    ----------
    answers : mapping of int to mapping of str to PersonAnswers
        With recordings and white noise.
    plan : FigurePlan

    Returns
    -------
    list of Figure
    """
    counts = shared_counts(answers)

    def score(
        people: Iterable[PersonAnswers], n: int, sizes: Sequence[int], only: str = "", **group: str
    ) -> list[Figure]:
        some = list(people)
        metrics = WINDOW_METRICS if only else RETRIEVAL_METRICS
        shown = [one.windows[only] if only else one.similarity[RECORDING] for one in some]
        given = RetrievalAnswers(
            similarity=np.concatenate(shown),
            noise_similarity=np.concatenate([one.similarity[NOISE] for one in some]),
            target=plan.gallery.columns(image for one in some for image in one.images),
            n_averaged=n, split=plan.split, selection_split=plan.selection_split, group={**plan.group, **group},
        )  # fmt: skip
        return retrieval_figures(
            given, gallery_sizes=sizes, metrics=metrics, n_permutations=plan.n_permutations, seed=plan.seed
        )

    found = []
    for n in counts:
        found += score(answers[n].values(), n, GALLERY_SIZES)
    for n in sorted({1, counts[-1]}):
        for person, one in answers[n].items() if plan.by_person else ():
            found += score([one], n, (), person=person)
        windows = next(iter(answers[n].values())).windows
        for window in windows:
            found += score(answers[n].values(), n, (), window, window=window)
    return found


def answer_confidence(
    answers: ByCount, validation: ByCount, gallery: Gallery, plan: FigurePlan, *, n_bootstrap: int = 1000
) -> list[ConfidenceFigures]:
    """Calibrate confidence on validation answers and measure it on test answers, for every number of averages.

    Parameters
    ----------
    answers : mapping of int to mapping of str to PersonAnswers
        Of test pictures, with surrogates.
    validation : mapping of int to mapping of str to PersonAnswers
        Of pictures that selected the model.
    gallery : Gallery
        Of the validation pictures.
    plan : FigurePlan
    n_bootstrap : int
        For the interval.

    Returns
    -------
    list of ConfidenceFigures
        Both sides choose among equally many pictures, those of the smaller of the two galleries. Averages of more
        presentations than the validation has are judged by the calibration of the largest that it has.
    """
    size = min(len(plan.gallery.images), len(gallery.images))
    per_concept = max(round(len(plan.gallery.images) / len(set(plan.gallery.concepts))), 1)
    found = []
    for n in shared_counts(answers):
        fitted_on = max(count for count in shared_counts(validation) if count <= n)
        held = deal_galleries(gallery.concepts, size, per_concept, plan.seed)
        dealt = deal_galleries(plan.gallery.concepts, size, per_concept, plan.seed)
        fit = _scored(list(validation[fitted_on].values()), gallery, held, plan.selection_split, fitted_on, plan)
        test = _scored(list(answers[n].values()), plan.gallery, dealt, plan.split, n, plan)
        null = {kind: _dealt(list(answers[n].values()), plan.gallery, dealt, kind)[0] for kind in PHASES}
        found.append(confidence_figures(fit, test, null, n_bootstrap=n_bootstrap, seed=plan.seed))
    return found


def _scored(
    people: Sequence[PersonAnswers], gallery: Gallery, dealt: Sequence[tuple[Ints, int]], split: str, n: int,
    plan: FigurePlan,
) -> ScoredAnswers:  # fmt: skip
    similarity, target, image = _dealt(people, gallery, dealt, RECORDING)
    return ScoredAnswers(similarity, target, image, n, split, dict(plan.group))


def _dealt(
    people: Sequence[PersonAnswers], gallery: Gallery, dealt: Sequence[tuple[Ints, int]], kind: str
) -> tuple[NDArray[Any], Ints, tuple[str, ...]]:
    """Let each row choose in the one gallery that asks for its picture: similarities, own columns, own pictures."""
    similarity = np.concatenate([one.similarity[kind] for one in people])
    images = np.array([image for one in people for image in one.images])
    target = gallery.columns(images.tolist())
    parts, targets, shown = [], [], []
    for columns, n_own in dealt:
        place = np.full(len(gallery.images), -1, np.int64)
        place[columns[:n_own]] = np.arange(n_own)
        rows = np.flatnonzero(place[target] >= 0)
        parts.append(similarity[np.ix_(rows, columns)])
        targets.append(place[target[rows]])
        shown.append(images[rows])
    return np.concatenate(parts), np.concatenate(targets), tuple(np.concatenate(shown).tolist())


def with_group(plan: FigurePlan, **group: str) -> FigurePlan:
    """Return the plan with more in the group of its figures."""
    return replace(plan, group={**plan.group, **group})
