"""Ranges of epochs: each epoch once, read as the whole file is read, without holding it in memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import tiny_recording
from toy_recordings import toy_source

from encoders.epoch_ranges import ranges, read_range, summarise
from encoders.epochs import SignalEpochs
from encoders.store import EpochStore
from encoders.store_build import build_store


def test_ranges_of_a_file_hold_what_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "x-epo.fif"
    tiny_recording("eeg", 7).save(path)
    whole = SignalEpochs.load(path)
    parts = list(ranges(path, 3))
    assert [(part.start, part.stop) for part in parts] == [(0, 3), (3, 6), (6, 7)]
    read = [read_range(part) for part in parts]
    assert np.array_equal(np.concatenate([part.data for part in read]), whole.data)
    assert sum((part.stimulus for part in read), ()) == whole.stimulus
    assert summarise(path).n_epochs == 7


def test_ranges_of_a_store_never_mix_people(tmp_path: Path) -> None:
    build_store(toy_source(tmp_path / "in"), tmp_path / "store", shard_bytes=2000)
    store = EpochStore.open(tmp_path / "store")
    parts = list(ranges(tmp_path / "store", 10))
    assert [index for part in parts for index in range(part.start, part.stop)] == list(range(len(store)))
    people = store.metadata["subject"].to_pylist()
    assert all(len(set(people[part.start : part.stop])) == 1 for part in parts)
    read = [read_range(part) for part in parts]
    assert np.array_equal(np.concatenate([part.data for part in read]), store.read(slice(None)))
    assert [one.subject for one in read] == [people[part.start] for part in parts]


def test_one_range_of_a_long_file_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "long-epo.fif"
    epochs = tiny_recording("eeg", 600)
    epochs.save(path)
    list(ranges(path, 8))  # what is imported and cached on first use does not count
    tracemalloc.start()
    for part in list(ranges(path, 8))[:3]:
        read_range(part)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < epochs.data.nbytes / 3


def test_other_data_has_another_fingerprint(tmp_path: Path) -> None:
    tiny_recording("eeg", 2).save(tmp_path / "a-epo.fif")
    before = summarise(tmp_path)
    tiny_recording("eeg", 3).save(tmp_path / "b-epo.fif")
    after = summarise(tmp_path)
    assert before.sha256 != after.sha256 and after.n_epochs == 5


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "absent"):
        with pytest.raises(ValueError, match="expected a store"):
            summarise(path)
