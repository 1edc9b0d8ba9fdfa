import numpy as np
import pytest
import torch

from encoders.build import PRESETS, SignalShape
from encoders.layers.constraints import apply_constraints
from encoders.networks.shallow_conv_net import ShallowConvNet, ShallowConvNetConfig


def inputs(shape, n=3):
    return torch.randn(n, shape.n_channels, shape.n_times), torch.rand(shape.n_channels, 2), torch.zeros(n).long()


def test_published_count():
    network = ShallowConvNet(ShallowConvNetConfig(), SignalShape(64, 128, 128.0, 1), 4)
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == 104_964
    assert (network.norm.eps, network.norm.momentum) == (1e-5, 0.1) and network.front.spatial.bias is None


def test_features_are_log_powers_in_sliding_windows():
    torch.manual_seed(0)
    shape = SignalShape(4, 128, 128.0, 1)
    network = ShallowConvNet(ShallowConvNetConfig(), shape, 3).double().eval()
    data, positions, subject = inputs(shape)
    data = data.double()
    series = network.front.spatial(network.front.temporal(data.unsqueeze(1))).squeeze(2) / np.sqrt(1 + 1e-5)
    windows = series.square().unfold(-1, 35, 7).mean(-1)
    expected = windows.clamp(1e-7, 1e4).log()
    torch.testing.assert_close(network.tokens(data, positions, subject), expected.transpose(1, 2))
    torch.testing.assert_close(network(data, positions, subject), network.dense(expected.flatten(1)))


def test_silence_and_thunder_stay_finite():
    shape = SignalShape(4, 128, 128.0, 1)
    network = ShallowConvNet(ShallowConvNetConfig(), shape, 3).eval()
    data, positions, subject = inputs(shape)
    with torch.no_grad():
        network.front.temporal.bias.zero_()
    quiet = network.tokens(0 * data, positions, subject)
    torch.testing.assert_close(quiet, torch.full_like(quiet, float(np.log(1e-7))))
    assert float(network.tokens(1e9 * data, positions, subject).max()) <= np.log(1e4) + 1e-6


def test_filters_have_limits():
    network = ShallowConvNet(ShallowConvNetConfig(), SignalShape(4, 128, 128.0, 1), 3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(100)
    apply_constraints(network)
    limited = (network.front.temporal, network.front.spatial)
    assert all(part.weight.flatten(1).norm(dim=1).max().item() <= 2 + 1e-6 for part in limited)
    assert network.dense.weight.norm(dim=1).max().item() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("preset", "sfreq", "expected"),
    [
        ("shallow_conv_net", 128.0, (13, 35, 7)),
        ("shallow_conv_net", 100.0, (10, 27, 5)),
        ("shallow_conv_net_original", 250.0, (25, 75, 15)),
    ],
)
def test_kernels_keep_their_duration(preset, sfreq, expected):
    network = ShallowConvNet(PRESETS[preset], SignalShape(4, 256, sfreq, 1), 3)
    assert (network.front.temporal.kernel_size[1], network.pool, network.stride) == expected


def test_too_short_epochs_are_refused_with_the_length_needed():
    with pytest.raises(ValueError, match="at least 47 samples at 128 Hz, got 46"):
        ShallowConvNet(ShallowConvNetConfig(), SignalShape(4, 46, 128.0, 1), 3)
