"""Subsets keep every concept of every modality, are reproducible, and never grow pairs of different pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignment import study_subset as module
from alignment.joined_pairs import JoinedPairs, ModalityEpochs
from alignment.pairs import Pairs
from alignment.study import Study
from alignment.study_subset import StudySubset, SubsetConfig, study_subset, training_concepts
from alignment.target_space import TargetSpace
from alignment.train_config import TrainConfig
from tests.toy_brain import toy_splits, write_toy_targets

N_CONCEPTS, PER_CONCEPT, N_VAL = 30, 10, 12
CONCEPTS = np.repeat(np.arange(N_CONCEPTS), PER_CONCEPT)
PEOPLE = {"eeg": 4, "meg": 3}


def modality(name: str, pictures: np.ndarray, repeats: int) -> ModalityEpochs:
    n_people = PEOPLE[name]
    target = np.tile(np.repeat(pictures, repeats), n_people).astype(np.int64)
    subject = np.repeat(np.arange(n_people), len(pictures) * repeats)
    data = np.arange(len(target), dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    return ModalityEpochs(data, subject, target)


def a_study(train: Pairs | JoinedPairs, val: Pairs | JoinedPairs) -> Study:
    embeds = np.random.default_rng(0).standard_normal((len(CONCEPTS), 8)).astype(np.float32)
    space = TargetSpace.fit(embeds)
    people = {name: [f"{name}-{i}" for i in range(n)] for name, n in PEOPLE.items()}
    return Study(None, {}, people, space, embeds, embeds[:N_VAL], train, val, torch.zeros(len(embeds), 8))


def joined_study() -> Study:
    """EEG lacks the first concept and MEG the last; each picture of the others is lacked by one of them at times."""
    pictures = np.arange(len(CONCEPTS))
    eeg = pictures[(CONCEPTS > 0) & (pictures % 10 != 3)]
    meg = pictures[(CONCEPTS < N_CONCEPTS - 1) & ~np.isin(pictures % 10, [5, 6, 7, 8, 9])]
    parts = {"eeg": modality("eeg", eeg, 2), "meg": modality("meg", meg, 1)}
    val = {name: modality(name, np.arange(N_VAL), 1) for name in PEOPLE}
    return a_study(JoinedPairs(parts), JoinedPairs(val))


def plain_study() -> Study:
    one = modality("eeg", np.arange(len(CONCEPTS)), 2)
    train = Pairs({"eeg": np.asarray(one.data[:])}, one.subject, one.target, 1)
    val = modality("eeg", np.arange(N_VAL), 1)
    study = a_study(train, Pairs({"eeg": np.asarray(val.data[:])}, val.subject, val.target, 4))
    return replace(study, subjects={"eeg": study.subjects["eeg"]})


def parts_of(found: StudySubset) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Original row, person and picture of every epoch."""
    train = found.study.train
    if isinstance(train, Pairs):
        return {name: (one[:][:, 0, 0], train.subject, train.target) for name, one in train.data.items()}
    return {name: (np.asarray(p.data[:])[:, 0, 0], p.subject, p.target) for name, p in train.parts.items()}


@pytest.mark.parametrize("keep", ["concepts", "pictures"])
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("make", [joined_study, plain_study])
def test_every_concept_of_every_modality_stays_and_rows_are_the_same_again(
    make: Any, fraction: float, keep: Any
) -> None:
    study = make()
    config = SubsetConfig(fraction=fraction, keep=keep, n_people=2, seed=1)
    found, again = (study_subset(make(), CONCEPTS, config) for _ in range(2))
    full = parts_of(study_subset(study, CONCEPTS, SubsetConfig()))
    for name, (row, subject, target) in parts_of(found).items():
        rows = row.astype(int)
        assert np.array_equal(row, parts_of(again)[name][0]) and np.array_equal(row, np.sort(row))
        assert np.array_equal(full[name][1][rows], subject) and np.array_equal(full[name][2][rows], target)
        assert set(CONCEPTS[target]) == set(CONCEPTS[full[name][2]])  # 100 % of this modality's concepts
        assert len(set(subject)) == 2
        if keep == "pictures":
            assert set(target) == set(full[name][2])
    assert found.n_concepts == found.n_concepts_full == N_CONCEPTS
    assert found.n_rows == sum(len(row) for row, *_ in parts_of(found).values()) < found.n_rows_full
    other = study_subset(study, CONCEPTS, config.model_copy(update={"seed": 2}))
    assert any(
        len(a) != len(b) or (a != b).any() for a, b in ((parts_of(found)[n][0], parts_of(other)[n][0]) for n in full)
    )


def test_concepts_that_both_modalities_share_stay_shared() -> None:
    whole = joined_study().train
    assert isinstance(whole, JoinedPairs)
    for seed in range(5):
        part = study_subset(joined_study(), CONCEPTS, SubsetConfig(fraction=0.1, seed=seed)).study.train
        assert isinstance(part, JoinedPairs)
        together = [set(CONCEPTS[one.view(("eeg", "meg")).target]) for one in (whole, part)]
        assert together[0] == together[1] and len(together[0]) == N_CONCEPTS - 2
        batch = part.batch(16, 0, 0, 1, seed=0)
        assert len(batch.target) == 16


def test_the_share_is_as_large_as_asked_for() -> None:
    found = study_subset(plain_study(), CONCEPTS, SubsetConfig(fraction=0.3))
    assert found.n_rows == round(0.3 * found.n_rows_full)
    everything = study_subset(plain_study(), CONCEPTS, SubsetConfig())
    assert everything.n_rows == everything.n_rows_full
    assert len(everything.study.train) == len(plain_study().train)


def test_validation_keeps_all_pictures_of_the_people_who_stay() -> None:
    for study in (joined_study(), plain_study()):
        found = study_subset(study, CONCEPTS, SubsetConfig(fraction=0.1, n_people=2)).study
        assert found.val_embeds is study.val_embeds
        for name in found.subjects:
            val, train = (one.view((name,)) for one in (found.val, found.train))
            assert set(val.target) == set(range(N_VAL)) and len(val) == 2 * N_VAL
            assert set(val.subject) == set(train.subject)


def test_too_many_people_and_concepts_that_only_others_saw_are_refused() -> None:
    with pytest.raises(ValueError, match="at most the 4 people of eeg"):
        study_subset(plain_study(), CONCEPTS, SubsetConfig(n_people=5))
    study = plain_study()
    assert isinstance(study.train, Pairs)
    rows = np.flatnonzero((study.train.subject == 0) | (CONCEPTS[study.train.target] < 5))
    with pytest.raises(ValueError, match="were shown .* of 30 concepts"):
        for seed in range(8):
            study_subset(
                replace(study, train=study.train.select(rows)), CONCEPTS, SubsetConfig(n_people=1, seed=seed)
            )  # fmt: skip


def test_concepts_of_simulated_pictures_come_from_the_training_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError("the test split was read")

    settings = {
        "targets": str(write_toy_targets(tmp_path / "targets.safetensors")),
        "modalities": {"eeg": {"layout": "things_eeg2_63", "encoder": "brain_module_demo"}},
        "fit": {"max_steps": 1},
    }
    split = toy_splits()["train"]
    splits: dict[str, Any] = {**toy_splits(), "test": Untouchable(), "val": Untouchable()}
    monkeypatch.setattr(module, "read_targets", lambda path: splits)
    shown = np.random.default_rng(0).permutation(len(split.embeds))[:50]
    study = replace(plain_study(), train_embeds=split.embeds[shown])
    found = training_concepts(TrainConfig.model_validate(settings), study)
    assert np.array_equal(found, split.concepts[shown])
