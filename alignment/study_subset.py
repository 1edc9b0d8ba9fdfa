"""A small part of a study for searches over settings: fewer pictures or epochs and people, but every concept.

A subset without some concepts would rank settings for an easier task. Validation pictures all stay, of the people that
stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from alignment.joined_pairs import ChosenRows, JoinedPairs, ModalityEpochs
from alignment.pairs import Pairs, read_targets
from alignment.prepared_epochs import open_prepared
from alignment.recorded_data import RecordedDataConfig
from alignment.recorded_sources import open_sources
from alignment.study import Study
from alignment.train_config import TrainConfig

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class SubsetConfig(BaseModel):
    """How much of the training data trials see.

    Attributes
    ----------
    fraction
        Of the pictures of every concept, at least one, with all their epochs; or of the epochs of every picture.
    keep
        Whether every concept stays, or every picture.
    n_people
        Of each modality, drawn at random; 0: all.
    seed
        Same seed, same rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fraction: float = Field(default=1.0, gt=0, le=1)
    keep: Literal["concepts", "pictures"] = "concepts"
    n_people: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class StudySubset:
    """A part of a study, and how much of it that is.

    Attributes
    ----------
    study : Study
        Indices of people and pictures are those of the whole study.
    n_rows, n_rows_full : int
        Training epochs, summed over modalities with people of their own.
    n_concepts, n_concepts_full : int
        Concepts of the training pictures; equal.
    """

    study: Study
    n_rows: int
    n_rows_full: int
    n_concepts: int
    n_concepts_full: int


def training_concepts(config: TrainConfig, study: Study) -> Ints:
    """Give the concept of every training picture of a study, (n_pictures,) int64.

    Nothing of the test split is used.
    """
    if isinstance(config.data, RecordedDataConfig):
        sources = open_sources(config)
        images = open_prepared(config.data.folder, sources.digest).images["train"]
        names = [sources.targets.concepts[row] for row in sources.targets.index(images)]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)
    split = read_targets(config.targets)["train"]
    concept = {row.tobytes(): int(name) for row, name in zip(split.embeds, split.concepts, strict=True)}
    return np.array([concept[row.tobytes()] for row in study.train_embeds], dtype=np.int64)


def study_subset(study: Study, concepts: Ints, config: SubsetConfig) -> StudySubset:
    """Take a part of the training epochs in which every concept of every modality still occurs.

    Parameters
    ----------
    study : Study
    concepts : ndarray, (n_pictures,), int64
        Of the training pictures; see `training_concepts`.
    config : SubsetConfig

    Raises
    ------
    ValueError
        If more people are asked for than there are, or those drawn were not shown all concepts.
    """
    train = study.train
    people = {name: _people(len(names), config, name) for name, names in study.subjects.items()}
    if isinstance(train, Pairs):
        same = next(iter(people.values()))  # simulated people are recorded with every modality
        rows = _chosen_rows([(train.target, _of(train.subject, same))], concepts, config)[0]
        part: Pairs | JoinedPairs = train.select(rows)
        assert isinstance(study.val, Pairs)
        val: Pairs | JoinedPairs = study.val.select(np.flatnonzero(_of(study.val.subject, same)))
        before, after = [train.target], [train.target[rows]]
    else:
        parts = [(one.target, _of(one.subject, people[name])) for name, one in train.parts.items()]
        chosen = _chosen_rows(parts, concepts, config)
        part = _joined(train, chosen)
        assert isinstance(study.val, JoinedPairs)
        val = _joined(study.val, [np.flatnonzero(_of(p.subject, people[n])) for n, p in study.val.parts.items()])
        before = [one.target for one in train.parts.values()]
        after = [target[rows] for target, rows in zip(before, chosen, strict=True)]
    n_before, n_after = (len(np.unique(concepts[np.concatenate(targets)])) for targets in (before, after))
    if n_after < n_before:
        raise ValueError(
            f"the people drawn were shown {n_after} of {n_before} concepts, expected all; raise subset.n_people or "
            "change subset.seed"
        )
    return StudySubset(
        replace(study, train=part, val=val), sum(map(len, after)), sum(map(len, before)), n_after, n_before
    )


def _people(n: int, config: SubsetConfig, name: str) -> Ints:
    if config.n_people > n:
        raise ValueError(f"subset.n_people is {config.n_people}, expected at most the {n} people of {name}; lower it")
    order = np.random.default_rng([config.seed, 1]).permutation(n)
    return np.sort(order[: config.n_people or n]).astype(np.int64)


def _of(subject: Ints, people: Ints) -> Mask:
    mask: Mask = np.isin(subject if subject.ndim == 1 else subject[:, 0], people)
    return mask


def _joined(pairs: JoinedPairs, rows: Sequence[Ints]) -> JoinedPairs:
    parts = {}
    for (name, one), some in zip(pairs.parts.items(), rows, strict=True):
        data: Any = ChosenRows(one.data, some)
        parts[name] = ModalityEpochs(data, one.subject[some], one.target[some], one.n_averaged)
    return JoinedPairs(parts, pairs.seed)


def _chosen_rows(parts: Sequence[tuple[Ints, Mask]], concepts: Ints, config: SubsetConfig) -> list[Ints]:
    """Choose rows of each modality, given as pictures and whether the person stays."""
    if config.keep == "pictures":
        return [np.flatnonzero(mask)[_share(target[mask], config.fraction, config.seed)] for target, mask in parts]
    shown = np.stack([np.isin(np.arange(len(concepts)), target[mask]) for target, mask in parts])
    pictures = np.flatnonzero(shown.any(axis=0))
    kept = np.zeros(len(concepts), bool)
    kept[pictures[_share(concepts[pictures], config.fraction, config.seed)]] = True
    # a modality may lack the pictures that were drawn; its concepts, and those of joint pictures, must stay too
    for available in (*shown, shown.all(axis=0)):
        lacking = available & ~np.isin(concepts, concepts[available & kept])
        more = np.flatnonzero(lacking)
        kept[more[_share(concepts[more], 1e-9, config.seed)]] = True
    return [np.flatnonzero(mask & kept[target]) for target, mask in parts]


def _share(group: Ints, fraction: float, seed: int) -> Ints:
    """Choose a share of every group's members, rounded up or down at random, at least one; positions, ascending."""
    if len(group) == 0:
        return np.empty(0, np.int64)
    generator = np.random.default_rng([seed, 2])
    order = np.lexsort((generator.random(len(group)), group))
    names, first, counts = np.unique(group[order], return_index=True, return_counts=True)
    wanted = np.floor(np.round(fraction * counts, 9) + generator.random(len(names))).astype(np.int64)
    place = np.arange(len(group)) - np.repeat(first, counts)
    return np.sort(order[place < np.repeat(np.maximum(wanted, 1), counts)])
