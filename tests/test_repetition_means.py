"""Means of repetitions that come one by one: those of all at once, and no more memory than allowed."""

from dataclasses import replace

import numpy as np

from encoders.epochs import SignalEpochs
from encoders.repetition_means import RepetitionMeans


def recording(names: tuple[str, ...], n_averaged: tuple[int, ...] = ()) -> SignalEpochs:
    data = (1e-5 * np.random.default_rng(0).standard_normal((len(names), 3, 40))).astype(np.float32)
    positions = np.full((3, 3), np.nan, np.float32)
    return SignalEpochs(
        data, 100.0, -0.1, ("Cz", "Pz", "Oz"), ("eeg",) * 3, positions, stimulus=names, n_averaged=n_averaged
    )


def test_after_every_repetition_the_mean_is_that_of_an_upload_of_the_same_epochs() -> None:
    names = tuple("abacbaaabca" * 3)
    weights = tuple(1 + index % 3 for index in range(len(names)))
    whole, means = recording(names, weights), RepetitionMeans(1 << 20)
    for index, name in enumerate(names):
        found = means.add(whole.select([index]))
        filed = whole.select(range(index + 1)).average_repetitions()
        row = filed.stimulus.index(name)
        np.testing.assert_array_equal(found.data[0], filed.data[row])
        assert (found.stimulus, found.n_averaged) == ((name,), (filed.n_averaged[row],))


def test_epochs_without_a_name_stay_alone() -> None:
    whole, means = recording(("", "")), RepetitionMeans(0)
    for index in range(2):
        one = whole.select([index])
        assert means.has_room(one) and means.add(one) is one


def test_there_is_room_for_so_many_stimuli_and_any_number_of_repetitions() -> None:
    one = recording(("a",))
    means = RepetitionMeans(2 * 8 * one.data.size)
    for name in "abab":
        assert means.has_room(replace(one, stimulus=(name,)))
        means.add(replace(one, stimulus=(name,)))
    assert not means.has_room(replace(one, stimulus=("c",)))
    assert means.has_room(one)
