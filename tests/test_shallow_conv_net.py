import pytest
import torch

from encoders.build import PRESETS, SignalShape, build_encoder
from encoders.networks.shallow_conv_net import ShallowConvNetConfig


def test_parameter_count_is_the_published_one():
    network = build_encoder(ShallowConvNetConfig(), SignalShape(64, 128, 128.0, 1), 4)
    assert sum(p.numel() for p in network.parameters()) == 104_964


def test_the_original_sizes_at_250_hz():
    network = build_encoder(PRESETS["shallow_conv_net_original"], SignalShape(8, 1000, 250.0, 1), 4)
    assert (network.filters.temporal.kernel_size, network.pool, network.stride) == ((1, 25), 75, 15)


def test_only_power_is_seen_and_silence_is_finite():
    network = build_encoder(ShallowConvNetConfig(), SignalShape(8, 128, 128.0, 1), 4).eval()
    with torch.no_grad():
        network.filters.temporal.bias.zero_()
    data, place, subject = torch.randn(2, 8, 128), torch.zeros(8, 2), torch.zeros(2, dtype=torch.int64)
    torch.testing.assert_close(network(data, place, subject), network(-data, place, subject), atol=1e-5, rtol=1e-5)
    assert network(0 * data, place, subject).isfinite().all()


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="shallow_conv_net needs epochs of at least 47 samples at 128 Hz, got 46"):
        build_encoder(ShallowConvNetConfig(), SignalShape(4, 46, 128.0, 1), 3)
