"""Answers to one person's recordings by presentations averaged, and the collection of all people's for the figures."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from alignment.brain_model import BrainModel
from alignment.person_answers import KINDS, Float, PersonAnswers, Window, answer, recording_inputs
from alignment.repetitions import average_blocks
from encoders.epochs import SignalEpochs

Answers = dict[str, dict[int, PersonAnswers]]
"""Combination of modalities -> number of presentations averaged -> one person's answers."""


def answers_by_count(
    model: BrainModel,
    parts: Mapping[str, SignalEpochs],
    person: str,
    gallery: Float,
    counts: Iterable[int],
    combinations: Sequence[Sequence[str]],
    *,
    kinds: Sequence[str] = KINDS,
    windows: Sequence[Window] = (),
    seed: int = 0,
) -> Answers:
    """Decode one person's presentations, averaged by every number that some picture has.

    Parameters
    ----------
    model : BrainModel
    parts : mapping of str to SignalEpochs
        Single presentations by modality; the same ones in the same order if there are several.
    person : str
        Whose layers to use; a stranger gets the mean person's.
    gallery : ndarray, (m, d), float32
        Raw image embeddings.
    counts : iterable of int
        Presentations per average; each presentation is in one average only.
    combinations, kinds
        See `alignment.person_answers.answer`.
    windows : sequence of (float, float)
        For single presentations and the largest averages.
    seed : int
        Of noise and surrogates.

    Returns
    -------
    dict of str to dict of int to PersonAnswers

    Raises
    ------
    ValueError
        If epochs are averages already, or the parts show other pictures.
    """
    first = next(iter(parts.values()))
    if any(part.stimulus != first.stimulus for part in parts.values()):
        raise ValueError(f"{person}: recordings of {sorted(parts)} show other pictures; give the same presentations")
    most = int(np.unique(np.asarray(first.stimulus), return_counts=True)[1].max())
    chosen = sorted({n for n in counts if n <= most})
    found: Answers = {}
    for n in chosen:
        averaged = {name: average_blocks(part, n) for name, part in parts.items()}
        shown = next(iter(averaged.values())).stimulus
        one = answer(
            model, recording_inputs(model, averaged, seed), shown, model.person_index(person), gallery, combinations,
            kinds=kinds, windows=windows if n in (1, chosen[-1]) else (),
        )  # fmt: skip
        for key, answers in one.items():
            found.setdefault(key, {})[n] = answers
    return found


def collected(people: Mapping[str, Answers]) -> dict[str, dict[int, dict[str, PersonAnswers]]]:
    """Turn people's answers around: combination -> number averaged -> person -> answers."""
    found: dict[str, dict[int, dict[str, PersonAnswers]]] = {}
    for person, answers in people.items():
        for key, by_count in answers.items():
            for n, one in by_count.items():
                found.setdefault(key, {}).setdefault(n, {})[person] = one
    return found
