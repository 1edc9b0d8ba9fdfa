"""Who sees what: splits by concept and picture, nothing of the test pictures in training or selection."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from alignment.recorded_data import RecordedDataConfig, data_digest, split_rows
from alignment.target_table import TargetTable
from encoders.store import EpochStore
from tests.toy_lab import N_CONCEPTS, build_lab, pictures


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, EpochStore]]:
    settings = build_lab(tmp_path_factory.mktemp("lab"))
    return settings, {name: EpochStore.open(path) for name, path in settings["data"]["stores"].items()}


def config(settings: dict[str, Any], **changes: Any) -> RecordedDataConfig:
    return RecordedDataConfig.model_validate({**settings["data"], **changes})


def test_no_concept_or_picture_is_in_two_splits(lab: Any) -> None:
    settings, stores = lab
    splits = split_rows(config(settings), stores, pictures())
    concepts = {split: {image.split("/")[0] for image in images} for split, images in splits.images.items()}
    assert len(concepts["val"]) == 8 and len(concepts["train"]) == N_CONCEPTS - 8 and len(concepts["test"]) == 10
    assert not concepts["train"] & concepts["val"] and not concepts["val"] & concepts["test"]
    for name, one in splits.modalities.items():
        image = np.array(stores[name].metadata["image"].to_pylist())
        used = np.concatenate(list(one.rows.values()))
        assert len(set(used.tolist())) == len(used) and "" not in set(image[used])  # the catch trial is in none
        for split, rows in one.rows.items():
            assert {name.split("/")[0] for name in image[rows]} <= concepts[split]
    assert splits.modalities["eeg"].people == ("sim-01", "sim-02")
    assert splits.modalities["meg"].people == ("sim-03", "sim-04")
    again = split_rows(config(settings, split_seed=1), stores, pictures())
    assert again.images["val"] != splits.images["val"]


def test_held_out_people_are_tested_only(lab: Any) -> None:
    settings, stores = lab
    splits = split_rows(config(settings, held_out_subjects=["sim-02"]), stores, pictures())
    subject = np.array(stores["eeg"].metadata["subject"].to_pylist())
    rows = splits.modalities["eeg"].rows
    assert {*subject[rows["train"]], *subject[rows["val"]]} == {"sim-01"} and "sim-02" in subject[rows["test"]]
    with pytest.raises(ValueError, match=r"no epochs of people \['nobody'\]"):
        split_rows(config(settings, subjects=["nobody"]), stores, pictures())
    with pytest.raises(ValueError, match="meg: no training epoch is left"):
        split_rows(config(settings, subjects=["sim-01"]), stores, pictures())


def changed(table: TargetTable, image: str, **values: str) -> TargetTable:
    row = table.images.index(image)
    columns = {
        name: (*getattr(table, name)[:row], value, *getattr(table, name)[row + 1 :]) for name, value in values.items()
    }
    return replace(table, **columns)


def test_a_copy_of_a_picture_under_another_concept_is_refused() -> None:
    table = pictures()
    with pytest.raises(ValueError, match="equal files one concept"):
        changed(table, "t03/t03_00.jpg", digests=table.digests[table.images.index("c07/c07_01.jpg")])


def test_concepts_of_test_pictures_in_training_are_refused_or_dropped(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _ = lab
    stores = {name: EpochStore.open(path) for name, path in settings["data"]["stores"].items()}
    columns = {one: stores["eeg"].metadata[one].to_pylist() for one in ("image", "split")}
    split = ["test" if i == "c05/c05_00.jpg" else s for i, s in zip(columns["image"], columns["split"], strict=True)]
    table = stores["eeg"].metadata.set_column(9, "split", [split])
    monkeypatch.setitem(stores["eeg"].__dict__, "metadata", table)
    said = r"eeg: 8 training epochs show 1 concepts of test pictures, the first .'c05'.; set .* 'drop'"
    with pytest.raises(ValueError, match=said):
        split_rows(config(settings), stores, pictures())
    splits = split_rows(config(settings, test_concepts_elsewhere="drop"), stores, pictures())
    assert splits.n_dropped == 8 + 12  # and the other modality's 3 pictures x 2 people x 2
    kept = {image for name in ("train", "val") for image in splits.images[name]}
    assert not any(image.startswith("c05") for image in kept) and "c05/c05_00.jpg" in splits.images["test"]


def test_store_and_targets_agree_on_concepts(lab: Any) -> None:
    settings, stores = lab
    with pytest.raises(ValueError, match="the store says 1 concepts otherwise than the targets, first 't03' and 'c07'"):
        split_rows(config(settings), stores, changed(pictures(), "t03/t03_00.jpg", concepts="c07"))


def test_pictures_without_a_target_are_named(lab: Any) -> None:
    settings, stores = lab
    table = pictures()
    short = replace(
        table, images=table.images[1:], concepts=table.concepts[1:], digests=table.digests[1:], embeds=table.embeds[1:]
    )
    with pytest.raises(ValueError, match="c00/c00_00.jpg"):
        split_rows(config(settings), stores, short)
    with pytest.raises(ValueError, match="n_val_concepts is 40, expected fewer than the 38 concepts"):
        split_rows(config(settings, n_val_concepts=40), stores, table)


def test_the_digest_knows_everything_that_changes_the_data(lab: Any) -> None:
    settings, stores = lab
    table = pictures()
    usual = data_digest(config(settings), stores, table, "x")
    assert data_digest(config(settings, folder="elsewhere"), stores, table, "x") == usual
    moved = copy.deepcopy(table.embeds)
    moved[0, 0] += 1
    others = [
        data_digest(config(settings, average_train=False), stores, table, "x"),
        data_digest(config(settings), {"eeg": stores["eeg"]}, table, "x"),
        data_digest(config(settings), stores, replace(table, embeds=moved), "x"),
        data_digest(config(settings), stores, table, "y"),
    ]
    assert len({usual, *others}) == 5


def test_stores_without_splits_are_refused(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, stores = lab
    blank = stores["eeg"].metadata.set_column(9, "split", [[""] * len(stores["eeg"])])
    other = EpochStore.open(settings["data"]["stores"]["eeg"])
    monkeypatch.setitem(other.__dict__, "metadata", blank)
    with pytest.raises(ValueError, match="eeg: no epoch of the store has a split; set n_test_concepts"):
        split_rows(config(settings), {"eeg": other}, pictures())
    splits = split_rows(config(settings, n_test_concepts=6), {"eeg": other}, pictures())
    tested = {image.split("/")[0] for image in splits.images["test"]}
    rest = {image.split("/")[0] for name in ("train", "val") for image in splits.images[name]}
    assert len(tested) == 6 and not tested & rest and len(rest) == 39 + 10 - 6  # EEG was not shown c39
    with pytest.raises(ValueError, match="n_test_concepts has no effect"):
        split_rows(config(settings, n_test_concepts=6), stores, pictures())
