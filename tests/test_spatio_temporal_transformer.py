import numpy as np
import pytest
import torch
from scipy.signal import welch

from encoders.layers.band_power import FLOOR
from encoders.layers.signal_shape import SignalShape
from encoders.networks.spatio_temporal_transformer import (
    SpatioTemporalTransformer,
    SpatioTemporalTransformerConfig,
)

SHAPE = SignalShape(20, 100, 100.0, 2)
PATCH = SpatioTemporalTransformerConfig(width=16, heads=4)
BANDS = PATCH.model_copy(update={"features": "band_power", "window": 0.25, "readout": "token"})
BOTH = pytest.mark.parametrize("config", [PATCH, BANDS], ids=["patch", "band_power"])


def _network(config, shape=SHAPE):
    torch.manual_seed(0)
    network = SpatioTemporalTransformer(config, shape, 24).eval()
    with torch.no_grad():
        network.times.normal_()  # as after training
    return network


def _inputs(n=3, n_channels=20):
    return torch.randn(n, n_channels, 100), torch.rand(n_channels, 2), torch.zeros(n).long()


@BOTH
def test_shuffling_electrodes_with_their_places_changes_nothing(config):
    network = _network(config)
    data, positions, subject = _inputs()
    expected, order = network(data, positions, subject), torch.randperm(20)
    torch.testing.assert_close(network(data[:, order], positions[order], subject), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(network(data[:, order], positions, subject), expected, atol=1e-3)
    torch.testing.assert_close(network(data, positions.expand(3, -1, -1), subject), expected, atol=1e-5, rtol=1e-5)


@BOTH
def test_shuffling_windows_changes_the_output(config):
    network = _network(config)
    data, positions, subject = _inputs()
    windows = data.unflatten(-1, (-1, network.n_window))
    shuffled = windows[:, :, torch.randperm(windows.shape[2])].flatten(2)
    assert not torch.allclose(network(shuffled, positions, subject), network(data, positions, subject), atol=1e-3)


@BOTH
def test_windows_meet_only_in_the_temporal_encoder(config):
    network = _network(config)
    data, positions, _ = _inputs()
    windows = network.windows(data)
    embedded = network.embed_windows(windows, positions)
    other = windows.clone()
    other[:, 1] += 1
    again = network.embed_windows(other, positions)
    assert torch.equal(again[:, [0, 2]], embedded[:, [0, 2]]) and not torch.allclose(again[:, 1], embedded[:, 1])


def test_band_features_are_the_logarithm_of_welchs_band_power():
    network = _network(BANDS)
    data = torch.randn(2, 20, 100)
    features = network.windows(data)
    assert features.shape == (2, 4, 20, 5)
    for window in range(4):
        piece = data[:, :, 25 * window : 25 * (window + 1)].double().numpy()
        frequencies, density = welch(piece, 100.0, nperseg=25)
        fine = np.union1d(np.linspace(8, 13, 5001), frequencies[(frequencies > 8) & (frequencies < 13)])
        curve = np.apply_along_axis(lambda row, f=frequencies, fine=fine: np.interp(fine, f, row), -1, density)
        expected = np.trapezoid(curve, fine, axis=-1) + FLOOR
        white = 5 * 2 / 100  # power of white noise of unit variance between 8 and 13 Hz
        np.testing.assert_allclose(features[:, window, :, 2].exp() * white, expected, rtol=1e-4)


def test_the_same_weights_read_another_montage():
    network = _network(PATCH)
    assert network(*_inputs(n_channels=31)).shape == (3, 24)


def test_unknown_places_have_no_code_and_one_at_least_must_be_known():
    network = _network(PATCH)
    data, positions, subject = _inputs()
    positions[3] = -0.1
    expected = network(data, positions, subject)
    positions[3] = -0.7
    assert torch.equal(network(data, positions, subject), expected) and expected.isfinite().all()
    with pytest.raises(ValueError, match="20 sensors without one"):
        network(data, torch.full((20, 2), -0.1), subject)


@BOTH
def test_tokens_are_windows(config):
    network = _network(config)
    n = 5 if config is BANDS else 10
    assert network.tokens(*_inputs()).shape == (3, n, network.token_width)


@pytest.mark.parametrize(
    ("wrong", "shape", "named"),
    [
        ({"bands": ((8.0, 13.0),)}, SHAPE, "bands"),
        ({}, SignalShape(20, 9, 100.0, 1), "at least 10 samples at 100 Hz, got 9"),
        ({"features": "band_power"}, SignalShape(20, 64, 60.0, 1), "30 to 45 Hz is impossible at 60 Hz"),
    ],
)
def test_settings_without_effect_or_sense_are_refused(wrong, shape, named):
    with pytest.raises(ValueError, match=named):
        SpatioTemporalTransformer(PATCH.model_copy(update=wrong), shape, 8)


def test_people_matter_only_with_subject_layers():
    data, positions, subject = _inputs()
    plain, people = _network(PATCH), _network(PATCH.model_copy(update={"subject_layers": True}))
    assert torch.equal(plain(data, positions, subject), plain(data, positions, subject + 1))
    with torch.no_grad():
        people.people.weight[1] *= -1
    assert not torch.allclose(people(data, positions, subject), people(data, positions, subject + 1))
