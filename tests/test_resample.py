import mne
import numpy as np
import pytest

from encoders.resample import _kept_matrix, band_pass, band_pass_kernel, window_matrix


@pytest.mark.parametrize(
    ("frequency", "low", "high"),
    [
        (0.01, 0.013, 0.023),
        (0.05, 0.48, 0.52),
        (1.0, 0.99, 1.01),
        (10.0, 0.99, 1.01),
        (50.0, 0.99, 1.01),
        (99.0, 0.99, 1.01),
        (112.5, 0.48, 0.52),
        (120.0, 0.06, 0.10),
        (130.0, 0.0, 0.002),
        (200.0, 0.0, 0.002),
    ],
)
def test_gain_of_the_things_preset(frequency: float, low: float, high: float) -> None:
    kernel = band_pass_kernel(1000.0, 0.1, 100.0)
    gain = abs(np.exp(-2j * np.pi * frequency * np.arange(len(kernel)) / 1000.0) @ kernel)
    assert low <= gain <= high


def test_band_pass_has_no_delay() -> None:
    times = np.arange(60_000) / 1000.0
    inside, outside = np.sin(2 * np.pi * 10 * times), np.sin(2 * np.pi * 200 * times)
    passed = band_pass((inside + outside)[None] * 1e-6, 1000.0, 0.1, 100.0)[0] * 1e6
    np.testing.assert_allclose(passed[20_000:40_000], inside[20_000:40_000], atol=5e-3)


def resampled(signal: np.ndarray, sfreq: float, tmin: float, out_sfreq: float = 100.0) -> np.ndarray:
    return signal @ window_matrix(sfreq, tmin, signal.shape[-1], out_sfreq, 0.0, 64, 40.0)


@pytest.mark.parametrize("sfreq", [100.0, 128.0, 250.0, 256.0, 600.615, 1000.0, 2048.0])
@pytest.mark.parametrize("tmin", [-0.2, -0.1037])
def test_window_is_exact_for_slow_signals_whatever_the_rate(sfreq: float, tmin: float) -> None:
    times = tmin + np.arange(round(1.1 * sfreq)) / sfreq
    out = np.arange(64) / 100.0
    for frequency in (0.0, 3.0, 10.0, 25.0):
        got = resampled(np.cos(2 * np.pi * frequency * times + 0.3).astype(np.float32), sfreq, tmin)
        np.testing.assert_allclose(got[:60], np.cos(2 * np.pi * frequency * out + 0.3)[:60], atol=0.02)


def test_frequencies_above_the_band_are_removed() -> None:
    times = -0.3 + np.arange(1400) / 1000.0
    for frequency in (52.0, 60.0, 90.0, 150.0, 250.0):
        got = resampled(np.cos(2 * np.pi * frequency * times).astype(np.float32), 1000.0, -0.3)
        assert np.abs(got[:60]).max() < 0.02


def test_latency_is_kept_to_a_fraction_of_a_sample() -> None:
    for sfreq in (250.0, 512.0, 1000.0):
        for latency in (0.1512, 0.2, 0.3333):
            times = -0.2 + np.arange(round(1.2 * sfreq)) / sfreq
            got = resampled(np.exp(-0.5 * ((times - latency) / 0.03) ** 2).astype(np.float32), sfreq, -0.2)
            centre = (np.arange(64) / 100.0 * got).sum() / got.sum()
            assert abs(centre - latency) < 1e-4


def test_agrees_with_mne_away_from_the_edges() -> None:
    rng = np.random.default_rng(0)
    signal = rng.standard_normal(3000)
    oracle = mne.filter.filter_data(signal, 1000.0, None, 40.0, fir_window="hamming", verbose="error")[1000:1640:10]
    got = signal @ window_matrix(1000.0, -1.0, 3000, 100.0, 0.0, 64, 40.0)
    np.testing.assert_allclose(got, oracle, atol=0.01)


def test_constants_and_ramps_survive_at_the_edges() -> None:
    ramp = np.arange(160, dtype=np.float32) / 250.0
    np.testing.assert_allclose(resampled(np.ones(160, np.float32), 250.0, 0.0), 1.0, atol=1e-5)
    np.testing.assert_allclose(resampled(ramp, 250.0, 0.0), np.arange(64) / 100.0, atol=5e-4)


def test_matrices_of_ever_other_recordings_do_not_gather() -> None:
    _kept_matrix.cache_clear()
    for n in range(2):
        window_matrix(20_000.0 + n, -0.2, 40_000, 100.0, 0.0, 64, 40.0)
    assert _kept_matrix.cache_info().currsize == 0
    for n in range(40):
        assert window_matrix(250.0, -0.2, 400 + n, 100.0, 0.0, 64, 40.0).shape == (400 + n, 64)
    assert 0 < _kept_matrix.cache_info().currsize <= 16
