"""Averages use each presentation once."""

from dataclasses import replace

import numpy as np
import pytest

from alignment.repetitions import average_blocks, repetition_counts
from encoders.epochs import SignalEpochs


def epochs() -> SignalEpochs:
    generator = np.random.default_rng(0)
    data = generator.standard_normal((10, 2, 60)).astype("f")
    names = ("Cz", "Pz")
    stimulus = tuple("ababababab")
    return SignalEpochs(data, 100.0, -0.1, names, ("eeg", "eeg"), np.zeros((2, 3), "f"), stimulus=stimulus)


def test_counts_double_and_end_with_all() -> None:
    assert repetition_counts(80) == (1, 2, 4, 8, 16, 32, 64, 80)
    assert repetition_counts(4) == (1, 2, 4) and repetition_counts(1) == (1,)
    with pytest.raises(ValueError, match="at least 1"):
        repetition_counts(0)


def test_each_presentation_is_in_one_average() -> None:
    whole = epochs()
    found = average_blocks(whole, 2)
    assert found.stimulus == ("a", "a", "b", "b") and found.n_averaged == (2,) * 4
    assert np.allclose(found.data[0], whole.data[[0, 2]].mean(axis=0), atol=1e-6)
    assert np.allclose(found.data[3], whole.data[[5, 7]].mean(axis=0), atol=1e-6)
    assert np.array_equal(np.sort(average_blocks(whole, 1).data, axis=0), np.sort(whole.data, axis=0))
    assert np.allclose(average_blocks(whole, 5).data, whole.average_repetitions().data, atol=1e-6)


def test_averages_of_averages_and_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 5"):
        average_blocks(epochs(), 6)
    with pytest.raises(ValueError, match="before averaging"):
        average_blocks(epochs().average_repetitions(), 1)
    with pytest.raises(ValueError, match="before averaging"):
        average_blocks(replace(epochs(), stimulus=("",) * 10), 1)
