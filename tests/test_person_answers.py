"""What is put in place of a recording keeps what it promises, and windows keep their samples."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from alignment.person_answers import KINDS, NOISE, RECORDING, in_window, stand_in, time_windows, white_noise
from encoders.epochs import SignalEpochs
from encoders.preprocess import PreprocessConfig, Preprocessor, default_preprocess
from encoders.sensors import standard_layout


def epochs() -> SignalEpochs:
    data = np.random.default_rng(0).standard_normal((200, 3, 50)) * np.array([1, 5, 20])[:, None] + 2
    return SignalEpochs(
        data.astype("f"), 100.0, -0.1, ("Oz", "Pz", "Cz"), ("eeg",) * 3, np.zeros((3, 3), "f"), "a", tuple("ab" * 100)
    )


def test_noise_keeps_each_channels_mean_and_spread_and_nothing_else() -> None:
    data = epochs().data
    noise = white_noise(data, 0)
    assert np.allclose(noise.std(axis=(0, 2)), data.std(axis=(0, 2)), rtol=0.05) and noise.dtype == np.float32
    assert np.allclose(noise.mean(axis=(0, 2)), data.mean(axis=(0, 2)), atol=0.5)
    assert abs(np.corrcoef(noise.ravel(), data.ravel())[0, 1]) < 0.05
    assert np.array_equal(noise, white_noise(data, 0)) and not np.array_equal(noise, white_noise(data, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_stand_ins_show_the_same_pictures_and_are_seeded(kind: str) -> None:
    given = epochs()
    found = stand_in(given, kind, 3)
    assert found.stimulus == given.stimulus and found.data.shape == given.data.shape
    assert (found is given) == (kind == RECORDING)
    assert np.array_equal(found.data, stand_in(given, kind, 3).data)
    if kind not in (RECORDING, NOISE):
        spectra = [np.abs(np.fft.rfft(one.data, axis=2)) for one in (given, found)]
        assert np.allclose(*spectra, rtol=1e-3, atol=1e-2) and not np.allclose(given.data, found.data)


def test_windows_cover_the_time_after_onset_once() -> None:
    layout = standard_layout("things_eeg2_63")
    preprocessor = Preprocessor(default_preprocess("eeg", sfreq=100.0, n_times=64), layout)
    model: Any = SimpleNamespace(preprocessors={"eeg": preprocessor})
    windows = time_windows(model)
    assert windows[0] == (0.0, 0.1) and windows[-1] == (0.6, 0.64) and len(windows) == 7
    assert np.array_equal(sum(in_window(preprocessor, one) for one in windows), np.ones(64))
    earlier = SimpleNamespace(config=PreprocessConfig(tmin=-0.2, n_times=50))
    both: Any = SimpleNamespace(preprocessors={"eeg": preprocessor, "meg": earlier})
    assert time_windows(both) == ((0.0, 0.1), (0.1, 0.2), (0.2, 0.3))


def test_a_window_keeps_its_samples() -> None:
    preprocessor = Preprocessor(default_preprocess("eeg", sfreq=100.0, n_times=50), standard_layout("things_eeg2_63"))
    assert in_window(preprocessor, (0.1, 0.2)).nonzero()[0].tolist() == list(range(10, 20))
    with pytest.raises(ValueError, match="holds no sample"):
        in_window(preprocessor, (0.9, 1.0))
