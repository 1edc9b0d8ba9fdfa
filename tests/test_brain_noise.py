"""Noise whose covariance must be exactly what the observer believes."""

import numpy as np
import pytest

from encoders.brain_noise import build_noise, layout_noise

N_TIMES, SFREQ = 16, 100.0


def small_noise():
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((4, 4))
    return build_noise(mixing @ mixing.T + np.eye(4), 2.0 * generator.standard_normal((4, 2)), N_TIMES, SFREQ)


def test_whitening_makes_the_covariance_the_identity() -> None:
    noise = small_noise()
    covariance = noise.covariance()
    n = len(covariance)
    whitener = noise.whiten(np.eye(n).reshape(n, 4, N_TIMES)).reshape(n, n)
    np.testing.assert_allclose(whitener.T @ covariance @ whitener, np.eye(n), atol=1e-8)


def test_adjoint() -> None:
    noise = small_noise()
    a, b = np.random.default_rng(1).standard_normal((2, 3, 4, N_TIMES))
    assert np.sum(a * noise.whiten(b)) == pytest.approx(np.sum(noise.whiten_adjoint(a) * b))


def test_samples_have_the_stated_covariance() -> None:
    noise = small_noise()
    data = np.zeros((40_000, 4, N_TIMES), dtype=np.float32)
    noise.add_to(data, 0.5, np.random.default_rng(2))
    flat = data.reshape(len(data), -1).astype(np.float64)
    expected = 0.25 * noise.covariance()
    error = np.abs(flat.T @ flat / len(flat) - expected).max()
    assert error < 0.04 * np.abs(expected).max()


def test_spectrum_falls_and_has_an_alpha_peak() -> None:
    noise = layout_noise("things_eeg2_63", 80, 100.0)
    data = np.zeros((400, 63, 80), dtype=np.float32)
    noise.add_to(data, 1.0, np.random.default_rng(3))
    power = (np.abs(np.fft.rfft(data * np.hanning(80), axis=2)) ** 2).mean(axis=(0, 1))
    hertz = np.fft.rfftfreq(80, 0.01)
    at = {f: power[np.abs(hertz - f).argmin()] for f in (1.25, 5.0, 6.25, 10.0, 15.0, 40.0)}
    assert at[1.25] > at[6.25] > at[15.0] > at[40.0]
    assert at[10.0] > 1.3 * at[6.25]


@pytest.mark.parametrize(("layout", "low", "high"), [("things_eeg2_63", 8e-6, 25e-6), ("ctf275", 250e-15, 1e-12)])
def test_amplitude_is_plausible_and_neighbours_correlate(layout: str, low: float, high: float) -> None:
    noise = layout_noise(layout, 80, 100.0)
    data = np.zeros((200, len(noise.space), 80), dtype=np.float32)
    noise.add_to(data, 1.0, np.random.default_rng(4))
    assert low < np.median(data.std(axis=(0, 2))) < high
    correlation = np.corrcoef(data.transpose(1, 0, 2).reshape(data.shape[1], -1))
    np.fill_diagonal(correlation, 0.0)
    assert np.median(np.abs(correlation).max(axis=1)) > 0.4
