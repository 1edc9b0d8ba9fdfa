from pathlib import Path

import numpy as np
import pytest

from alignment.calibrate import SURROGATE_KINDS, ConfidenceNull, SurrogateKind, build_null, surrogates
from encoders.epochs import SignalEpochs
from encoders.modality import combination
from tests.toy_brain import ToyBrain, toy_splits

EMBEDS = toy_splits()["test"].embeds
EEG = ToyBrain().record(EMBEDS, modality="eeg", subject=0, stimulus=[str(i) for i in range(len(EMBEDS))])


@pytest.mark.parametrize("kind", SURROGATE_KINDS)
def test_surrogates_change_the_data_only_and_follow_the_seed(kind: SurrogateKind) -> None:
    one = surrogates(EEG, kind, 1)
    assert one.data.shape == EEG.data.shape and one.data.dtype == np.float32
    assert (one.ch_names, one.stimulus, one.sfreq) == (EEG.ch_names, EEG.stimulus, EEG.sfreq)
    assert np.array_equal(one.data, surrogates(EEG, kind, 1).data)
    assert not np.array_equal(one.data, surrogates(EEG, kind, 2).data)
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(one.data, EEG.data, strict=True)]
    assert abs(np.mean(correlation)) < 0.1


def test_random_phases_keep_spectra_and_sensor_covariance() -> None:
    changed = surrogates(EEG, "phase", 1).data.astype(np.float64)
    data = EEG.data.astype(np.float64)
    spectra = [np.abs(np.fft.rfft(one, axis=2))[..., 1:] for one in (changed, data)]
    assert np.allclose(*spectra, rtol=1e-3, atol=1e-3 * spectra[1].max())
    covariances = [np.cov(one[0] - one[0].mean(axis=1, keepdims=True)) for one in (changed, data)]
    assert np.allclose(*covariances, atol=1e-3 * covariances[1].max())


def test_shuffling_keeps_the_set_of_sensor_signals() -> None:
    changed = surrogates(EEG, "shuffle", 1).data
    assert np.array_equal(np.sort(changed[0], axis=0), np.sort(EEG.data[0], axis=0))


def test_white_noise_keeps_each_sensors_spread() -> None:
    changed = surrogates(EEG, "white", 1).data
    assert np.allclose(changed.std(axis=2).mean(axis=0), EEG.data.std(axis=2).mean(axis=0), rtol=0.1)
    lag = [np.corrcoef(one[:-1], one[1:])[0, 1] for one in changed[0]]
    assert abs(np.mean(lag)) < 0.1


def strength(recordings: list[SignalEpochs]) -> np.ndarray:
    """A score that knows nothing of pictures: how far the mean over sensors deviates."""
    return np.abs(recordings[0].data.mean(axis=(1, 2))).astype("f")


def test_fresh_surrogates_are_uniform_on_the_null() -> None:
    null = build_null(strength, {"eeg": [EEG]}, n=1000, seed=0)
    assert len(null.scores["eeg"]) >= 1000
    fresh = [strength([surrogates(EEG, kind, 5000 + turn)]) for kind in SURROGATE_KINDS for turn in range(4)]
    share = null.percentile(np.concatenate(fresh), ["eeg"])
    assert share.shape == (240,) and share.min() >= 0 and share.max() <= 1
    assert share.mean() == pytest.approx(0.5, abs=0.1)


def test_percentile_counts_ties_half_and_reaches_both_ends() -> None:
    null = ConfidenceNull({"eeg": np.array([1, 2, 2, 3], dtype="f")})
    found = null.percentile(np.array([0, 1, 2, 2.5, 9], dtype="f"), ["eeg"])
    assert found.tolist() == [0, 0.125, 0.5, 0.75, 1]


def test_combinations_have_their_own_null_in_any_order(tmp_path: Path) -> None:
    null = ConfidenceNull({"eeg+meg": np.arange(4, dtype="f"), "eeg": np.arange(4, dtype="f") + 10})
    null.save(tmp_path / "null.safetensors")
    again = ConfidenceNull.load(tmp_path / "null.safetensors")
    assert again.percentile(np.array([1.5], "f"), ["meg", "eeg"])[0] == 0.5
    assert again.percentile(np.array([1.5], "f"), ["eeg"])[0] == 0
    assert combination(["meg", "eeg", "eeg"]) == "eeg+meg"
    with pytest.raises(ValueError, match="no null for the modalities 'meg'"):
        again.percentile(np.zeros(1, "f"), ["meg"])


def test_small_nulls_are_refused() -> None:
    with pytest.raises(ValueError, match="1000"):
        build_null(strength, {"eeg": [EEG]}, n=200)
