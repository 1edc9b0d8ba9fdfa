import numpy as np
import pytest
import torch
from scipy.signal import welch

from encoders.layers.band_power import FLOOR, BandPower, log_power


@pytest.mark.parametrize("sfreq", [100.0, 250.0])
@pytest.mark.parametrize("n_segment", [50, 51, 100])
def test_band_power_equals_the_integral_of_welchs_density(sfreq, n_segment):
    data = np.random.default_rng(0).standard_normal((3, 4, 200)) * 5 + 2
    bands = [(1.0, 4.0), (8.0, 13.0), (13.0, 30.5), (0.3, 0.9), (0.0, sfreq / 2)]
    found = BandPower(sfreq, bands, n_segment)(torch.from_numpy(data).float())
    frequencies, density = welch(data, sfreq, nperseg=n_segment)
    for i, (low, high) in enumerate(bands):
        fine = np.union1d(np.linspace(low, high, 20_001), frequencies[(frequencies > low) & (frequencies < high)])
        curve = np.apply_along_axis(lambda row, fine=fine: np.interp(fine, frequencies, row), -1, density)
        np.testing.assert_allclose(found[..., i], np.trapezoid(curve, fine, axis=-1), rtol=1e-4)


def test_band_edges_on_the_grid_give_the_trapezoidal_rule():
    data = np.random.default_rng(0).standard_normal((2, 100))
    frequencies, density = welch(data, 100.0, nperseg=100)
    inside = (frequencies >= 8) & (frequencies <= 13)
    expected = np.trapezoid(density[:, inside], frequencies[inside], axis=-1)
    found = BandPower(100.0, [(8.0, 13.0)], 100)(torch.from_numpy(data).float())
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4)


def test_a_sine_has_half_its_squared_amplitude_in_its_band():
    times = torch.arange(200) / 100
    power = BandPower(100.0, [(8.0, 12.0), (20.0, 30.0)], 100)(3 * torch.sin(2 * torch.pi * 10 * times))
    assert abs(power[0] - 4.5) < 0.05 and power[1] < 1e-6


def test_silence_has_a_finite_logarithm():
    power = BandPower(100.0, [(8.0, 12.0)], 50)(torch.zeros(2, 100))
    torch.testing.assert_close(log_power(power), torch.full((2, 1), FLOOR).log())


@pytest.mark.parametrize("band", [(8.0, 8.0), (13.0, 8.0), (30.0, 51.0), (-1.0, 4.0)])
def test_impossible_bands_are_refused(band):
    with pytest.raises(ValueError, match="between 0 and 50 Hz"):
        BandPower(100.0, [band], 50)


def test_segments_of_three_samples_are_refused():
    with pytest.raises(ValueError, match="at least 4"):
        BandPower(100.0, [(8.0, 12.0)], 3)
