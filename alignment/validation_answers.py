"""Answers to validation pictures of recorded data, for what a bundle needs before it may say how sure it is.

Test epochs are not read. The pictures chose the weights too, so what is fitted on them flatters a little.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alignment.answer_calibration import ScoredAnswers, fit_answer_calibration
from alignment.brain_model import BrainModel
from alignment.calibrate import MIN_NULL, ConfidenceNull, build_null
from alignment.recorded_data import RecordedSplits
from alignment.retrieval_metrics import own_ranks
from alignment.stored_calibrations import Calibrations, StoredCalibration
from alignment.target_table import TargetTable
from encoders.epochs import SignalEpochs
from encoders.modality import combination
from encoders.store import EpochStore

logger = logging.getLogger(__name__)
MOST_PICTURES = 200  # of each person
MOST_PEOPLE = 8  # for the null, whose surrogates are many
SPLIT = "val"
Float = NDArray[np.float32]
Recording = tuple[SignalEpochs, ...]
"""One person's epochs of one modality, or of several row by row the same pictures."""


@dataclass(frozen=True)
class AnswerGallery:
    """Raw embeddings (m, d) of the pictures that a bundle compares with, and the sha256 of their files."""

    image_embeds: Float
    digests: tuple[str, ...]


def validation_recordings(
    stores: Mapping[str, EpochStore], splits: RecordedSplits, *, seed: int = 0
) -> dict[str, list[Recording]]:
    """Read each person's presentations of validation pictures.

    Parameters
    ----------
    stores : mapping of str to EpochStore
    splits : RecordedSplits
    seed : int
        Of the pictures, where a person saw more than `MOST_PICTURES`.

    Returns
    -------
    dict of str to list of tuple of SignalEpochs
        Per combination of modalities. Those of several hold averages of the pictures that both people saw, in pairs of
        the first person of each, the second of each, and so on.
    """
    found: dict[str, list[Recording]] = {}
    for name, store in stores.items():
        rows = splits.modalities[name].rows[SPLIT]
        columns = {one: np.array(store.metadata[one].take(rows).to_pylist()) for one in ("subject", "image")}
        found[name] = []
        for index, person in enumerate(sorted(set(columns["subject"].tolist()))):
            mine = columns["subject"] == person
            pictures = np.unique(columns["image"][mine])
            drawn = np.random.default_rng([seed, index]).permutation(pictures)[:MOST_PICTURES]
            found[name].append((store.epochs(rows[mine & np.isin(columns["image"], drawn)]),))
    names = list(stores)
    if len(names) > 1:
        pairs = zip(*(found[name] for name in names), strict=False)
        together = [_together([one for part in parts for one in part]) for parts in pairs]
        found[combination(names)] = [one for one in together if one]
    empty = [key for key, recordings in found.items() if not recordings]
    if empty:
        raise ValueError(
            f"{empty[0]}: no validation picture was shown to people of all its modalities; without them confidence "
            "cannot be calibrated: choose other validation concepts, or bundle a training of one modality"
        )
    return found


def answer_null(
    model: BrainModel, gallery: AnswerGallery, recordings: Mapping[str, Sequence[Recording]], *, seed: int = 0
) -> ConfidenceNull:
    """Score surrogates of averaged validation recordings; see `alignment.calibrate.build_null`."""

    def best(parts: Sequence[SignalEpochs]) -> Float:
        found: Float = _similarity(model, gallery, parts).max(axis=1)
        return found

    scores = {}
    for key, everybody in recordings.items():
        people = everybody[:MOST_PEOPLE]
        n = max(MIN_NULL, 3 * MIN_NULL // len(people))
        nulls = [
            build_null(best, {key: [part.average_repetitions() for part in parts]}, n=n, seed=seed + 100_000 * index)
            for index, parts in enumerate(people)
        ]
        scores[key] = np.sort(np.concatenate([one.scores[key] for one in nulls]))
    return ConfidenceNull(scores)


def answer_calibrations(
    model: BrainModel,
    gallery: AnswerGallery,
    recordings: Mapping[str, Sequence[Recording]],
    targets: TargetTable,
    *,
    seed: int = 0,
) -> Calibrations | None:
    """Fit how often the first picture is right: for single presentations, and for a person's averages.

    The gallery need not hold the validation pictures. Where it lacks the one that was shown, that one takes the place
    of a picture drawn at random, so what is calibrated is the choice among as many pictures with the right one in.

    Returns
    -------
    Calibrations or None
        Without those for which all validation answers are right, or all wrong: they would be as sure of noise.

    Raises
    ------
    ValueError
        If the gallery has one picture only.
    """
    if len(gallery.digests) < 2:
        raise ValueError(f"a gallery of {len(gallery.digests)} pictures leaves no choice, expected at least 2")
    entries = []
    for key, everybody in recordings.items():
        averaged = [tuple(part.average_repetitions() for part in parts) for parts in everybody]
        levels = {_level(people): people for people in (averaged, list(everybody))}
        for n_averaged, people in sorted(levels.items()):
            answers = _scored(model, gallery, people, targets, n_averaged, seed)
            n_right = int((own_ranks(answers.similarity, answers.target) <= 1).sum())
            if n_right in (0, len(answers.target)):
                logger.warning(
                    "%s, %d presentations averaged: %d of %d validation answers are right, so the chance of being "
                    "right cannot be calibrated and is left out", key, n_averaged, n_right, len(answers.target),
                )  # fmt: skip
                continue
            fitted = fit_answer_calibration(answers)
            entries.append(
                StoredCalibration(
                    modalities=key, n_averaged=n_averaged, temperature=fitted.temperature, slope=fitted.slope,
                    offset=fitted.offset, gallery_size=fitted.gallery_size, n=len(answers.target), n_right=n_right,
                    split=SPLIT,
                )
            )  # fmt: skip
    return Calibrations(entries=tuple(entries)) if entries else None


def _together(parts: Sequence[SignalEpochs]) -> Recording:
    """Average pictures that all parts show, in one order; empty if there are none."""
    shared = sorted(set.intersection(*(set(part.stimulus) for part in parts)))
    if not shared:
        return ()
    found = []
    for part in (one.average_repetitions() for one in parts):
        found.append(part.select([part.stimulus.index(image) for image in shared]))
    people = {part.subject for part in found}
    return tuple(found) if len(people) == 1 else tuple(replace(part, subject="") for part in found)


def _level(people: Sequence[Recording]) -> int:
    return min(min(part.n_averaged) for parts in people for part in parts)


def _similarity(model: BrainModel, gallery: AnswerGallery, parts: Sequence[SignalEpochs]) -> Float:
    found = model.embed(parts)
    return model.similarity(found.brain_embeds, gallery.image_embeds, found.report.modalities)


def _scored(
    model: BrainModel,
    gallery: AnswerGallery,
    people: Sequence[Recording],
    targets: TargetTable,
    n_averaged: int,
    seed: int,
) -> ScoredAnswers:
    place = {digest: column for column, digest in enumerate(gallery.digests)}
    generator = np.random.default_rng(seed)
    similarities, columns = [], []
    images: list[str] = []
    for parts in people:
        found = model.embed(parts)
        similarity = model.similarity(found.brain_embeds, gallery.image_embeds, found.report.modalities)
        shown = sorted(set(found.stimulus))
        own = model.similarity(found.brain_embeds, targets.embeds[targets.index(shown)], found.report.modalities)
        for row, image in enumerate(found.stimulus):
            digest = targets.digests[int(targets.index([image])[0])]
            column = place.get(digest, -1) if digest else -1
            if column < 0:
                column = int(generator.integers(len(gallery.digests)))
                similarity[row, column] = own[row, shown.index(image)]
            columns.append(column)
        similarities.append(similarity)
        images += found.stimulus
    return ScoredAnswers(np.concatenate(similarities), np.array(columns), tuple(images), n_averaged, SPLIT)
