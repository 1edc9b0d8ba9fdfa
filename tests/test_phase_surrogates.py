"""Random phases keep what they promise and lose the time course."""

import numpy as np
import pytest

from alignment.phase_surrogates import phase_randomised


def epochs(n_times: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    data = generator.standard_normal((6, 4, n_times)).cumsum(axis=2)
    return np.einsum("cd,ndt->nct", generator.standard_normal((4, 4)), data) + 3


def cross_spectrum(data: np.ndarray) -> np.ndarray:
    spectrum = np.fft.rfft(data, axis=2)
    return np.einsum("nct,ndt->ncdt", spectrum, spectrum.conj())


@pytest.mark.parametrize("n_times", [64, 65])
@pytest.mark.parametrize("shared", [True, False])
def test_spectrum_mean_and_variance_of_each_channel_stay(n_times: int, shared: bool) -> None:
    data = epochs(n_times)
    changed = phase_randomised(data, np.random.default_rng(1), shared=shared)
    truth = np.abs(np.fft.rfft(data, axis=2))
    assert np.allclose(np.abs(np.fft.rfft(changed, axis=2)), truth, atol=1e-5 * truth.max(), rtol=1e-4)
    assert np.allclose(changed.mean(axis=2), data.mean(axis=2), atol=1e-5)
    assert np.allclose(changed.var(axis=2), data.var(axis=2), rtol=1e-4)
    assert changed.shape == data.shape and changed.dtype == np.float32


@pytest.mark.parametrize("n_times", [64, 65])
def test_only_shared_phases_keep_cross_spectra_and_covariance(n_times: int) -> None:
    data = epochs(n_times)
    together = phase_randomised(data, np.random.default_rng(1), shared=True)
    apart = phase_randomised(data, np.random.default_rng(1), shared=False)
    truth = cross_spectrum(data)
    assert np.allclose(cross_spectrum(together), truth, atol=1e-5 * np.abs(truth).max(), rtol=1e-4)
    assert np.allclose(np.cov(together[0]), np.cov(data[0]), rtol=1e-3)
    off = ~np.eye(4, dtype=bool)
    distance = np.abs(cross_spectrum(apart) - truth)[:, off, 1:].sum() / np.abs(truth)[:, off, 1:].sum()
    assert distance > 0.5


@pytest.mark.parametrize("shared", [True, False])
def test_the_average_over_surrogates_holds_no_response(shared: bool) -> None:
    response = np.sin(np.linspace(0, 6, 50)) * np.hanning(50)
    data = np.tile(response, (500, 3, 1))
    changed = phase_randomised(data, np.random.default_rng(2), shared=shared)
    left = changed.mean(axis=0) - data.mean(axis=(0, 2))[:, None]
    assert np.abs(left).max() < 0.25 * np.abs(response - response.mean()).max()
    assert not np.allclose(changed[0], changed[1])


def test_too_short_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match="3 or more"):
        phase_randomised(np.zeros((1, 1, 2)), np.random.default_rng(0))
