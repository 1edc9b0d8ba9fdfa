from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alignment.pairs import SPLITS, TargetSplit, batch_rows, read_targets, record_pairs, write_targets
from encoders.preprocess import Preprocessor, default_preprocess
from encoders.sensors import standard_layout
from tests.toy_brain import ToyBrain, toy_splits


def preprocessors() -> dict[str, Preprocessor]:
    return {"eeg": Preprocessor(default_preprocess("eeg"), standard_layout("things_eeg2_63"))}


def test_targets_round_trip(tmp_path: Path) -> None:
    splits = toy_splits()
    write_targets(tmp_path / "t.safetensors", splits, {"clip_digest": "x"})
    found = read_targets(tmp_path / "t.safetensors")
    assert tuple(found) == SPLITS
    for name, split in splits.items():
        assert np.array_equal(found[name].embeds, split.embeds)
        assert np.array_equal(found[name].concepts, split.concepts)


def broken(splits: dict[str, TargetSplit], what: str) -> dict[str, TargetSplit]:
    train, test = splits["train"], splits["test"]
    if what == "concept":
        return splits | {"test": replace(test, concepts=train.concepts[: len(test.concepts)])}
    if what == "picture":
        return splits | {"test": replace(test, embeds=train.embeds[: len(test.embeds)])}
    if what == "missing":
        return {name: split for name, split in splits.items() if name != "val"}
    if what == "finite":
        return splits | {"val": replace(splits["val"], embeds=splits["val"].embeds * np.nan)}
    return splits | {"val": replace(splits["val"], concepts=splits["val"].concepts[:-1])}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("concept", "in both train and test"),
        ("picture", "20 pictures are in both train and test"),
        ("missing", "lacks .*val_embeds"),
        ("finite", "non-finite"),
        ("length", r"val_concepts \(19,\)"),
    ],
)
def test_targets_that_leak_or_lack_are_refused(tmp_path: Path, what: str, message: str) -> None:
    write_targets(tmp_path / "t.safetensors", broken(toy_splits(), what), {})
    with pytest.raises(ValueError, match=message):
        read_targets(tmp_path / "t.safetensors")


def test_pairs_are_ordered_and_paired() -> None:
    embeds = toy_splits()["train"].embeds[:10]
    pairs = record_pairs(ToyBrain(), preprocessors(), embeds, 2, n_repetitions=3, average=False, seed=1)
    assert len(pairs) == 60 and pairs.data["eeg"].shape == (60, 63, 64) and pairs.n_averaged == 1
    assert pairs.subject.tolist() == [0] * 30 + [1] * 30
    assert pairs.target[:6].tolist() == [0, 0, 0, 1, 1, 1] and pairs.target[30] == 0


def test_averages_are_means_before_preprocessing_and_other_seeds_other_noise() -> None:
    embeds = toy_splits()["train"].embeds[:10]
    fitted = preprocessors()
    single = record_pairs(ToyBrain(), fitted, embeds, 1, n_repetitions=4, average=False, seed=1)
    average = record_pairs(ToyBrain(), fitted, embeds, 1, n_repetitions=4, average=True, seed=1)
    assert len(average) == 10 and average.n_averaged == 4
    means = single.data["eeg"].astype(np.float32).reshape(10, 4, 63, 64).mean(axis=1)
    assert np.allclose(average.data["eeg"], means, atol=0.02)
    other = record_pairs(ToyBrain(), fitted, embeds, 1, n_repetitions=4, average=True, seed=2)
    assert not np.allclose(average.data["eeg"], other.data["eeg"], atol=0.1)


def test_every_row_once_per_pass_and_shares_make_the_batch() -> None:
    first = [batch_rows(50, 10, step, 0, 1, seed=3) for step in range(5)]
    assert sorted(np.concatenate(first).tolist()) == list(range(50))
    assert not np.array_equal(first[0], batch_rows(50, 10, 5, 0, 1, seed=3))
    halves = [batch_rows(50, 10, 2, rank, 2, seed=3) for rank in (0, 1)]
    assert np.array_equal(np.concatenate(halves), first[2])


@pytest.mark.parametrize(
    ("n", "batch", "world", "advised"), [(50, 9, 2, 8), (50, 51, 1, 50), (51, 60, 2, 50), (50, 0, 1, 1), (50, 1, 4, 4)]
)
def test_impossible_batches_are_refused_with_one_that_is_possible(n: int, batch: int, world: int, advised: int) -> None:
    said = f"got batch_size {batch} for {n} rows and {world} processes, expected a multiple of {world} from {world} to"
    with pytest.raises(ValueError, match=f"{said} {n}; set batch_size to {advised}$"):
        batch_rows(n, batch, 0, 0, world, seed=0)
    assert len(batch_rows(n, advised, 0, 0, world, seed=0)) == advised // world


def test_fewer_rows_than_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="; give more rows, or at most 3 processes$"):
        batch_rows(3, 4, 0, 0, 4, seed=0)
