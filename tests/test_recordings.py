from dataclasses import replace

import numpy as np
import pytest

from alignment.recordings import by_modality, joined
from encoders.epochs import EpochsMismatch, SignalEpochs
from tests.toy_brain import ToyBrain, toy_splits

STIMULI = [f"picture {i}" for i in range(4)]


def recording(modality: str, stimulus: list[str] | None = None) -> SignalEpochs:
    embeds = toy_splits()["test"].embeds[:4]
    return ToyBrain().record(embeds, modality=modality, subject=0, stimulus=STIMULI if stimulus is None else stimulus)


def merged(first: SignalEpochs, second: SignalEpochs) -> SignalEpochs:
    return replace(
        first,
        data=np.concatenate([first.data, second.data], axis=1),
        ch_names=first.ch_names + second.ch_names,
        ch_types=first.ch_types + second.ch_types,
        positions=np.concatenate([first.positions, second.positions]),
    )


def test_one_file_with_both_kinds_is_two_recordings() -> None:
    eeg, meg = recording("eeg"), recording("meg")
    parts, notes = by_modality([merged(meg, eeg)], ["eeg", "meg"])
    assert list(parts) == ["eeg", "meg"] and notes == ()
    assert np.array_equal(parts["eeg"].data, eeg.data) and np.array_equal(parts["meg"].data, meg.data)


def test_modalities_of_no_use_are_named() -> None:
    parts, notes = by_modality([recording("meg"), recording("eeg")], ["eeg"])
    assert list(parts) == ["eeg"] and "meg" in notes[0]
    with pytest.raises(EpochsMismatch, match=r"\['mag'\].*\['eeg'\]"):
        by_modality([recording("meg")], ["eeg"])


def test_the_same_modality_twice_is_refused() -> None:
    with pytest.raises(EpochsMismatch, match="two recordings hold eeg"):
        by_modality([recording("eeg"), recording("eeg")], ["eeg"])


def test_stimuli_are_brought_into_one_order() -> None:
    eeg, meg = recording("eeg"), recording("meg").select([2, 0, 3, 1])
    parts, notes = joined({"eeg": eeg, "meg": meg})
    assert parts["meg"].stimulus == eeg.stimulus and notes == ()
    assert np.array_equal(parts["meg"].data, recording("meg").data)


def test_repeated_stimuli_in_the_same_order_are_fine() -> None:
    twice = ["a", "a", "b", "b"]
    parts, _ = joined({"eeg": recording("eeg", twice), "meg": recording("meg", twice)})
    assert parts["meg"].stimulus == tuple(twice)


@pytest.mark.parametrize("stimulus", [["a", "b", "c", "d"], ["a", "b", "b", "a"]])
def test_other_stimuli_are_refused(stimulus: list[str]) -> None:
    first = ["a", "b", "a", "b"] if len(set(stimulus)) == 2 else STIMULI
    with pytest.raises(EpochsMismatch, match="same order"):
        joined({"eeg": recording("eeg", first), "meg": recording("meg", stimulus)})


def test_other_counts_are_refused() -> None:
    with pytest.raises(EpochsMismatch, match="4 epochs.*3"):
        joined({"eeg": recording("eeg"), "meg": recording("meg").select([0, 1, 2])})


def test_without_ids_epochs_are_paired_by_position_and_it_is_said() -> None:
    parts, notes = joined({"eeg": recording("eeg"), "meg": recording("meg", [])})
    assert "by position" in notes[0] and np.array_equal(parts["meg"].data, recording("meg").data)
