import numpy as np
import pytest

from encoders.simulated_stream import simulate_stream


def test_the_response_stands_at_the_onsets_of_slow_noise():
    quiet = simulate_stream("eeg", n_onsets=3, noise_scale=0.0)
    noisy = simulate_stream("eeg", n_onsets=3)
    first, second, _ = quiet.template.data
    assert quiet.data.shape == (63, 7300) and quiet.onsets == (2000, 3100, 4200)
    np.testing.assert_allclose(first, second, atol=1e-12)
    assert np.abs(first[:, :150]).max() < 0.1 * np.abs(first).max()
    np.testing.assert_allclose(noisy.template.data[1], noisy.data[:, 2900:3900], rtol=1e-6)
    noise = noisy.data - quiet.data
    power = np.abs(np.fft.rfft(noise)) ** 2
    frequencies = np.fft.rfftfreq(noise.shape[1], 0.001)
    at = [power[:, (frequencies > f / 1.3) & (frequencies < f * 1.3)].mean() for f in (2.0, 20.0)]
    assert 7 < at[0] / at[1] < 14  # 1 / f
    assert 3e-6 < noise.std() < 3e-5


def test_the_seed_decides_the_noise():
    one, same, other = (simulate_stream("eeg", n_onsets=1, sfreq=200.0, seed=seed).data for seed in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_an_odd_rate_is_refused():
    with pytest.raises(ValueError, match="multiple of 100"):
        simulate_stream("eeg", n_onsets=1, sfreq=250.0)
