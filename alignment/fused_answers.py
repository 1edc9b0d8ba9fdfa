"""Answers to recordings of several modalities whose people differ: averages that are joined on the picture shown.

Within a picture the averages of all people of a modality are put in random order and paired with those of the other
modalities until one modality has none left, so every presentation is in one pair at most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from alignment.brain_model import BrainModel
from alignment.evaluated_epochs import EvaluatedEpochs
from alignment.joined_pairs import distinct_pairs
from alignment.person_answers import Float, PersonAnswers, Window, answer, stand_in
from alignment.repetitions import average_blocks
from alignment.runtime import STORED_SIGNAL
from encoders.epochs import SignalEpochs

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PairPlan:
    """Which averages of n presentations are joined.

    Attributes
    ----------
    images : tuple of str, (k,)
        Picture of each pair.
    people : mapping of str to tuple of str, (k,)
        Whose recording it is, by modality.
    rows : mapping of str to ndarray, (k,), int64
        Which of this person's averages, in the order of `average_blocks`.
    """

    images: tuple[str, ...]
    people: Mapping[str, tuple[str, ...]]
    rows: Mapping[str, Ints]


def plan_pairs(
    epochs: EvaluatedEpochs, people: Mapping[str, Sequence[str]], split: str, n: int, seed: int
) -> PairPlan | None:
    """Join averages of ``n`` presentations by ``people`` of each modality.

    None where fewer than two pictures have that many in every modality.
    """
    gallery, _ = epochs.gallery(tuple(people), split)
    column = {image: place for place, image in enumerate(gallery.images)}
    targets, whose, rows = [], [], []
    for name, some in people.items():
        target, person, row = list[int](), list[str](), list[int]()
        for one in some:
            n_before = 0
            for image, count in zip(*epochs.shown(name, one, split), strict=True):
                n_blocks = count // n
                if image in column:
                    target += [column[image]] * n_blocks
                    person += [one] * n_blocks
                    row += range(n_before, n_before + n_blocks)
                n_before += n_blocks
        targets.append(np.array(target, dtype=np.int64))
        whose.append(np.array(person))
        rows.append(np.array(row, dtype=np.int64))
    pairs = distinct_pairs(targets, seed)
    if len(set(targets[0][pairs[:, 0]].tolist())) < 2:
        return None
    return PairPlan(
        images=tuple(gallery.images[one] for one in targets[0][pairs[:, 0]]),
        people={name: tuple(whose[i][pairs[:, i]].tolist()) for i, name in enumerate(people)},
        rows={name: rows[i][pairs[:, i]] for i, name in enumerate(people)},
    )


class FusedAnswers:
    """Collects the preprocessed averages of planned pairs while people are read, and decodes them together.

    Parameters
    ----------
    model : BrainModel
    plans : mapping of int to PairPlan
        By number of presentations averaged.
    kinds : sequence of str
        Of `alignment.person_answers.KINDS`.
    seed : int
        Of noise and surrogates.
    """

    def __init__(self, model: BrainModel, plans: Mapping[int, PairPlan], kinds: Sequence[str], seed: int) -> None:
        self.model, self.plans, self.kinds, self.seed = model, dict(plans), tuple(kinds), seed
        self._data: dict[tuple[int, str, str], NDArray[np.float16]] = {}

    def add(self, name: str, person: str, epochs: SignalEpochs) -> None:
        """Take from a person's single presentations the averages that the plans ask for."""
        for n, plan in self.plans.items():
            places = np.flatnonzero(np.array(plan.people[name]) == person)
            if len(places) == 0:
                continue
            averaged = average_blocks(epochs, n).select(plan.rows[name][places])
            assert averaged.stimulus == tuple(plan.images[place] for place in places)
            for kind in self.kinds:
                data = self.model.preprocessors[name](stand_in(averaged, kind, self.seed)).data
                whole = self._data.setdefault(
                    (n, name, kind), np.zeros((len(plan.images), *data.shape[1:]), STORED_SIGNAL)
                )
                whole[places] = data

    def answers(self, gallery: Float, windows: Sequence[Window] = ()) -> dict[str, dict[int, dict[str, PersonAnswers]]]:
        """Decode the pairs: all modalities together, and each alone on the same rows.

        Returns
        -------
        dict of str to dict of int to dict of str to PersonAnswers
            Combination -> number averaged -> ``"pairs"`` -> answers.
        """
        names = list(self.model.modalities)
        found: dict[str, dict[int, dict[str, PersonAnswers]]] = {}
        for n, plan in sorted(self.plans.items()):
            each = [np.concatenate([self.model.person_index(person) for person in plan.people[name]]) for name in names]
            subject = np.stack([index[:, i] for i, index in enumerate(each)], axis=1)
            chosen = windows if n in (1, max(self.plans)) else ()
            one = answer(
                self.model, partial(self._inputs, n), plan.images, subject, gallery,
                [names, *([name] for name in names)], kinds=self.kinds, windows=chosen,
            )  # fmt: skip
            for key, answers in one.items():
                found.setdefault(key, {})[n] = {"pairs": answers}
        return found

    def _inputs(self, n: int, kind: str) -> dict[str, Float]:
        return {name: self._data[n, name, kind].astype(np.float32) for name in self.model.modalities}
