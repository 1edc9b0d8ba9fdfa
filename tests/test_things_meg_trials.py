"""The table of trials: splits, repetitions, catch trials, and the check against the events of a run."""

from collections import Counter
from pathlib import Path

import pytest
from things_meg_layout import EXP, TESTED, trials, write_attributes

from encoders.datasets.tables import read_table
from encoders.datasets.things_meg_trials import CATCH, check_numbers, image_number, read_trials, trials_of_rows


def test_full_count(tmp_path: Path) -> None:
    write_attributes(tmp_path / "sample_attributes_P1.csv")
    table = read_trials(tmp_path / "sample_attributes_P1.csv")
    assert len(table.numbers) == 27_048 and table.numbers.count(CATCH) == 2_400
    splits = Counter(table.metadata.split)
    assert splits == {"train": 19_848, "test": 2_400, "": 2_400 + 2_400}
    concepts = {split: set() for split in splits}
    shown = Counter()
    for image, concept, split in zip(table.metadata.image, table.metadata.concept, table.metadata.split, strict=True):
        concepts[split].add(concept)
        shown[split, image] += 1
    assert not concepts["train"] & concepts["test"] and len(concepts["test"]) == 200 and len(concepts["train"]) == 1654
    assert {n for (split, _), n in shown.items() if split == "test"} == {12}
    assert {n for (split, _), n in shown.items() if split == "train"} == {1}
    test = [r for r, s in zip(table.metadata.repetition, table.metadata.split, strict=True) if s == "test"]
    assert Counter(test) == {i: 200 for i in range(12)}


def test_small_table() -> None:
    table = trials_of_rows(trials(0) + trials(1))
    assert [split for split in table.metadata.split if split].count("test") == 12
    by_image = dict(zip(table.metadata.image, table.metadata.split, strict=True))
    assert by_image == {EXP[0]: "train", EXP[1]: "", EXP[2]: "train", EXP[3]: "", TESTED: "test", "": ""}
    assert len(table.where("01")) == 20 and len(table.where("01", "02")) == 10 and not table.where("02")
    assert [image_number(text) for text in ("24812.0", "", "N/A", "nan")] == [24812, CATCH, CATCH, CATCH]


def test_every_difference_is_counted() -> None:
    table = trials_of_rows(trials(0))
    check_numbers(table.numbers, table, "x")
    with pytest.raises(ValueError, match="x: {'events': 9, 'rows of sample_attributes': 10}, expected equal counts"):
        check_numbers(table.numbers[:-1], table, "x")
    with pytest.raises(ValueError, match="'triggers 64': 11"):
        check_numbers(table.numbers, table, "x", {"triggers 64": 11})
    with pytest.raises(ValueError, match="3 of 10 events show another picture .*first is event 7"):
        check_numbers([*table.numbers[:7], 1, 2, 3], table, "x")


def test_the_twenty_differences_of_real_runs_are_their_catch_trials(shared_data: Path) -> None:
    files = sorted((shared_data / "metadata" / "ds004212_things_meg").rglob("*_events.tsv"))
    assert len(files) == 10
    for file in files:
        rows = read_table(file, ("trial_type", "value", "sample"))
        numbers = [image_number(row["value"]) for row in rows]
        assert [n == CATCH for n in numbers] == [row["trial_type"] == "catch" for row in rows]
        assert numbers.count(CATCH) == 20 and all(1 <= n <= 26107 for n in numbers if n != CATCH)
        assert len({row["sample"] for row in rows}) == len(rows) in (225, 226)
