import mne
import numpy as np
import pytest

from encoders import cutting
from encoders.cutting import cut_epochs
from encoders.epochs import EpochsMismatch, SignalEpochs


def recording(n_seconds: float = 10.0, sfreq: float = 200.0, **annotations: list[float]) -> mne.io.BaseRaw:
    """Two EEG channels that hold the time in volt, an EOG channel, and annotations."""
    times = np.arange(round(n_seconds * sfreq)) / sfreq
    info = mne.create_info(["Cz", "Pz", "EOG1"], sfreq, ["eeg", "eeg", "eog"])
    raw = mne.io.RawArray(np.stack([times, -times, times]), info, verbose="error")
    rows = [(onset, text) for text, onsets in annotations.items() for onset in onsets]
    raw.set_annotations(mne.Annotations([row[0] for row in rows], [0.0] * len(rows), [row[1] for row in rows]))
    return raw


def cut(raw: mne.io.BaseRaw, onsets: list[float] | None = None, **changes: float | None) -> SignalEpochs:
    arguments = {"tmin": -0.1, "tmax": 0.5, "l_freq": None, "h_freq": None} | changes
    return cut_epochs(raw, onsets, **arguments)


def test_onsets_that_are_given() -> None:
    epochs = cut(recording(dog=[1.0]), [2.0, 5.0])
    assert epochs.ch_names == ("Cz", "Pz")
    assert epochs.stimulus == ("", "")
    assert (epochs.tmin, epochs.n_times) == (pytest.approx(-0.1), 121)
    np.testing.assert_allclose(epochs.data[:, 0, 20], [2.0, 5.0], atol=0.5 / 200)


def test_onsets_count_from_the_first_sample_of_the_file() -> None:
    raw = recording().crop(1.0)
    assert raw.first_samp > 0
    np.testing.assert_allclose(cut(raw, [2.0]).data[0, 0, 20], 3.0)


def test_annotations_become_stimuli() -> None:
    raw = recording(dog=[2.0, 4.0], cat=[3.0], BAD_blink=[6.0], boundary=[7.0])
    epochs = cut(raw)
    assert epochs.stimulus == ("dog", "cat", "dog")
    np.testing.assert_allclose(epochs.data[:, 0, 20], [2.0, 3.0, 4.0])


def test_stimuli_win_over_responses() -> None:
    raw = recording(**{"Stimulus/S  1": [2.0], "Response/R  1": [3.0], "New Segment/": [0.5]})
    assert cut(raw).stimulus == ("Stimulus/S  1",)


def with_triggers(raw: mne.io.BaseRaw) -> mne.io.BaseRaw:
    trigger = np.zeros((1, len(raw.times)))
    trigger[0, 400:410] = 64
    trigger[0, 800:810] = 65 + 2**16
    stim = mne.io.RawArray(trigger, mne.create_info(["STI 014"], raw.info["sfreq"], "stim"), verbose="error")
    return raw.add_channels([stim], force_update_info=True)


def test_trigger_channel_is_used_without_annotations() -> None:
    epochs = cut(with_triggers(recording()))
    assert epochs.stimulus == ("64", "65")
    np.testing.assert_allclose(epochs.data[:, 0, 20], [2.0, 4.0])


def test_annotations_win_over_the_trigger_channel() -> None:
    assert cut(with_triggers(recording(dog=[5.0]))).stimulus == ("dog",)


def test_events_too_close_to_an_end_are_left_out() -> None:
    assert cut(recording(dog=[0.01, 5.0, 9.9])).n_epochs == 1


@pytest.mark.parametrize(
    ("annotations", "onsets", "message"),
    [
        ({}, None, "no events.*give onsets"),
        ({"BAD": [3.0], "EDGE boundary": [4.0]}, None, "no events"),
        ({"dog": [9.9]}, None, "none of the 1 onsets"),
        ({}, [], "none usable"),
        ({}, [np.nan], "none usable"),
        ({}, [2.0, 9.9], r"\[9.9\]"),
        ({}, [0.0], "seconds from the start"),
    ],
)
def test_refusals(annotations: dict[str, list[float]], onsets: list[float] | None, message: str) -> None:
    with pytest.raises(EpochsMismatch, match=message):
        cut(recording(**annotations), onsets)


def test_bad_channels_are_left_out() -> None:
    raw = recording(dog=[2.0])
    raw.info["bads"] = ["Cz"]
    assert cut(raw).ch_names == ("Pz",)
    raw.info["bads"] = ["Cz", "Pz"]
    with pytest.raises(EpochsMismatch, match="no usable"):
        cut(raw)


def test_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "MAX_BYTES", 10_000)
    with pytest.raises(EpochsMismatch, match="at most 10000"):
        cut(recording(dog=[2.0]))


def test_filter_acts_on_continuous_data() -> None:
    raw = recording(80.0, dog=[40.0])
    raw.apply_function(lambda x: 1e-5 * np.sin(2 * np.pi * 10 * raw.times) + 1e-3)
    epochs = cut(raw, l_freq=0.1, h_freq=40.0)
    np.testing.assert_allclose(epochs.data[0, 0], 1e-5 * np.sin(2 * np.pi * 10 * epochs.times), atol=3e-7)


def test_edges_that_the_recording_cannot_carry_are_left_out() -> None:
    raw = recording(10.0, sfreq=60.0, dog=[5.0])
    np.testing.assert_array_equal(cut(raw, l_freq=0.1, h_freq=40.0).data, cut(raw).data)
