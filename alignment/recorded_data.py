"""Which recorded epochs are trained on, which select, and which neither may see: splits by picture and concept.

The data set says what its test pictures are. Everything else is for training, less some concepts that are cut off for
the selection. Test epochs are never copied into the folder that trainers read.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from alignment.target_table import TargetTable
from encoders.store import EpochStore

Ints = NDArray[np.int64]


class RecordedDataConfig(BaseModel):
    """Stores of recorded epochs and how they are split.

    Attributes
    ----------
    stores
        Folder or URL of each modality's store, as ``phosphene convert`` writes it.
    folder
        Where ``phosphene prepare`` puts preprocessed training and validation epochs.
    subjects
        People to use; empty for all.
    held_out_subjects
        People who are neither trained nor selected on (leave-one-subject-out).
    n_val_concepts
        Concepts of training pictures that are kept for the selection.
    average_train
        Average a person's repetitions of a training picture, as within-subject recipes do.
    test_concepts_elsewhere
        What to do with training pictures whose concept is among the test pictures, of any modality.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["recorded"] = "recorded"
    stores: dict[str, str]
    folder: Path
    subjects: tuple[str, ...] = ()
    held_out_subjects: tuple[str, ...] = ()
    n_val_concepts: int = Field(default=100, gt=0)
    n_test_concepts: int = Field(default=0, ge=0, description="to cut off for testing, if the data set has no split")
    average_train: bool = True
    test_concepts_elsewhere: Literal["refuse", "drop"] = "refuse"
    split_seed: int = Field(default=0, ge=0)
    n_fit_epochs: int = Field(default=2000, ge=50, description="training epochs that the preprocessing is fitted on")


@dataclass(frozen=True)
class SplitRows:
    """One modality's rows of a store by split.

    Attributes
    ----------
    people : tuple of str
        Whose epochs are trained on, sorted.
    rows : mapping of str to ndarray
        Store rows of ``train``, ``val`` and ``test``; the latter holds everybody's, held-out people included.
    """

    people: tuple[str, ...]
    rows: Mapping[str, Ints]


@dataclass(frozen=True)
class RecordedSplits:
    """Splits of all modalities.

    Attributes
    ----------
    modalities : mapping of str to SplitRows
    images : mapping of str to tuple of str
        Pictures of each split over all modalities, sorted.
    n_dropped : int
        Epochs of training pictures that were left out because their concept is tested.
    """

    modalities: Mapping[str, SplitRows]
    images: Mapping[str, tuple[str, ...]]
    n_dropped: int


def split_rows(config: RecordedDataConfig, stores: Mapping[str, EpochStore], targets: TargetTable) -> RecordedSplits:
    """Decide the split of every epoch and check that no picture or concept is on two sides.

    Parameters
    ----------
    config : RecordedDataConfig
    stores : mapping of str to EpochStore
    targets : TargetTable
        Of all pictures, with concepts and the sha256 of their files.

    Returns
    -------
    RecordedSplits

    Raises
    ------
    ValueError
        If a person, a picture or a concept is unknown, store and table disagree on a concept, splits overlap by
        concept, picture or content of the picture's file, or nothing is left to train on.
    """
    tables = columns_of(config, stores)
    _check_people(config, tables)
    for name, table in tables.items():
        _check_concepts(name, table, targets)
    concept = dict(zip(targets.images, targets.concepts, strict=True))
    tested = {concept[image] for table in tables.values() for image in table.images_of("test")}
    chosen, n_dropped = {}, 0
    for name, table in tables.items():
        mask = table.of_split("train") & table.of_people(config)
        clash = mask & np.array([image != "" and concept[image] in tested for image in table.image])
        if clash.any() and config.test_concepts_elsewhere == "refuse":
            found = sorted({concept[image] for image in table.image[clash].tolist()})
            raise ValueError(
                f"{name}: {int(clash.sum())} training epochs show {len(found)} concepts of test pictures, the first "
                f"{found[:5]}; set test_concepts_elsewhere to 'drop' to train without them"
            )
        n_dropped += int(clash.sum())
        chosen[name] = np.flatnonzero(mask & ~clash)
        if len(chosen[name]) == 0:
            raise ValueError(f"{name}: no training epoch is left of {len(table.image)}; check subjects and splits")
    concepts = {name: {concept[image] for image in tables[name].image[rows].tolist()} for name, rows in chosen.items()}
    held = _val_concepts(concepts, config)
    modalities, images = {}, {split: set[str]() for split in ("train", "val", "test")}
    for name, rows in chosen.items():
        table = tables[name]
        is_val = np.array([concept[image] in held for image in table.image[rows].tolist()])
        parts = {"train": rows[~is_val], "val": rows[is_val], "test": np.flatnonzero(table.of_split("test"))}
        for split, some in parts.items():
            images[split] |= set(table.image[some].tolist())
        modalities[name] = SplitRows(tuple(sorted(set(table.subject[rows].tolist()))), parts)
    found_images = {split: tuple(sorted(names)) for split, names in images.items()}
    targets.check_disjoint(found_images)
    return RecordedSplits(modalities, found_images, n_dropped)


def data_digest(
    config: RecordedDataConfig, stores: Mapping[str, EpochStore], targets: TargetTable, processing: str
) -> str:
    """Identify prepared data: stores, targets, splits and, as text, the preprocessing."""
    told = config.model_dump(mode="json", exclude={"folder", "stores"})
    digest = hashlib.sha256(json.dumps([told, processing, targets.space], sort_keys=True).encode())
    for name, store in stores.items():
        digest.update(f"{name} {store.manifest.to_text()}\n".encode())
    digest.update(json.dumps([targets.images, targets.concepts, targets.digests]).encode())
    digest.update(np.ascontiguousarray(targets.embeds, dtype="<f4").tobytes())
    return digest.hexdigest()


def columns_of(config: RecordedDataConfig, stores: Mapping[str, EpochStore]) -> dict[str, "EpochColumns"]:
    """Read the tables of all stores; where a data set has no split of its own, some concepts become the test.

    Raises
    ------
    ValueError
        If there is neither a split nor a number of concepts to test, or both.
    """
    tables = {name: EpochColumns.of(store) for name, store in stores.items()}
    blank = [name for name, table in tables.items() if not (table.split != "").any()]
    if not config.n_test_concepts:
        if blank:
            raise ValueError(
                f"{blank[0]}: no epoch of the store has a split; set n_test_concepts to keep that many for testing"
            )
        return tables
    if len(blank) < len(tables):
        raise ValueError(
            f"n_test_concepts has no effect: stores {sorted(set(tables) - set(blank))} have splits; set it to 0"
        )
    concepts = sorted({c for table in tables.values() for c in table.concept[table.image != ""].tolist()})
    if config.n_test_concepts >= len(concepts):
        raise ValueError(f"n_test_concepts is {config.n_test_concepts}, expected fewer than {len(concepts)}; lower it")
    order = np.random.default_rng([config.split_seed, 1]).permutation(len(concepts))[: config.n_test_concepts]
    tested = [concepts[index] for index in order]
    return {
        name: replace(table, split=np.where(np.isin(table.concept, tested), "test", "train"))
        for name, table in tables.items()
    }


@dataclass(frozen=True)
class EpochColumns:
    """Columns of a store's table, as arrays of text."""

    image: NDArray[np.str_]
    concept: NDArray[np.str_]
    split: NDArray[np.str_]
    subject: NDArray[np.str_]

    @classmethod
    def of(cls, store: EpochStore) -> "EpochColumns":
        return cls(
            **{one: np.array(store.metadata[one].to_pylist()) for one in ("image", "concept", "split", "subject")}
        )

    def of_split(self, split: str) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = (self.split == split) & (self.image != "")
        return mask

    def of_people(self, config: RecordedDataConfig) -> NDArray[np.bool_]:
        mask = ~np.isin(self.subject, list(config.held_out_subjects))
        return mask & np.isin(self.subject, list(config.subjects)) if config.subjects else mask

    def images_of(self, split: str) -> list[str]:
        return sorted(set(self.image[self.of_split(split)].tolist()))


def _check_people(config: RecordedDataConfig, tables: Mapping[str, EpochColumns]) -> None:
    known = {person for table in tables.values() for person in table.subject.tolist()}
    unknown = sorted(({*config.subjects, *config.held_out_subjects}) - known)
    if unknown:
        raise ValueError(f"no epochs of people {unknown}; the stores have {sorted(known)}")


def _check_concepts(name: str, table: EpochColumns, targets: TargetTable) -> None:
    pairs = sorted({(i, c) for i, c in zip(table.image.tolist(), table.concept.tolist(), strict=True) if i})
    rows = targets.index([image for image, _ in pairs])
    wrong = [
        (i, c, targets.concepts[row]) for (i, c), row in zip(pairs, rows, strict=True) if c != targets.concepts[row]
    ]
    if wrong:
        image, one, other = wrong[0]
        raise ValueError(
            f"{name}: the store says {len(wrong)} concepts otherwise than the targets, first {one!r} and {other!r} for "
            f"{image!r}; make both from one list of concepts"
        )


def _val_concepts(concepts: Mapping[str, set[str]], config: RecordedDataConfig) -> set[str]:
    """Draw the concepts of the selection among those that every modality has."""
    shared = sorted(set.intersection(*concepts.values()) or set.union(*concepts.values()))
    if len(shared) <= config.n_val_concepts:
        raise ValueError(
            f"n_val_concepts is {config.n_val_concepts}, expected fewer than the {len(shared)} concepts of training "
            "pictures; lower it"
        )
    order = np.random.default_rng(config.split_seed).permutation(len(shared))[: config.n_val_concepts]
    return {shared[index] for index in order}
