import pytest
import torch

from encoders.build import SignalShape, build_encoder
from encoders.layers.constraints import apply_constraints
from encoders.networks.deep_conv_net import DeepConvNetConfig


def test_parameter_count_is_the_published_one():
    network = build_encoder(DeepConvNetConfig(), SignalShape(64, 256, 128.0, 1), 4)
    assert sum(p.numel() for p in network.parameters()) == 182_129


def test_kernels_are_ten_samples_at_250_hz():
    network = build_encoder(DeepConvNetConfig(), SignalShape(8, 1000, 250.0, 1), 4)
    assert network.first.temporal.kernel_size == (1, 10) and network.convs[0].kernel_size == (1, 10)


def test_short_epochs_are_refused_and_fewer_blocks_accept_them():
    shape = SignalShape(8, 30, 128.0, 1)
    with pytest.raises(ValueError, match="nothing left of 30 samples after 4 blocks of kernel 5 and pooling 2"):
        build_encoder(DeepConvNetConfig(), shape, 4)
    network = build_encoder(DeepConvNetConfig(widths=(25, 50)), shape, 4).eval()
    assert network(torch.randn(2, 8, 30), torch.zeros(8, 2), torch.zeros(2, dtype=torch.int64)).shape == (2, 4)


def test_max_norms_hold_after_a_step():
    network = build_encoder(DeepConvNetConfig(), SignalShape(8, 128, 128.0, 1), 4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(10 * torch.randn_like(parameter))
    apply_constraints(network)
    convs = [network.first.temporal, network.first.spatial, *network.convs]
    assert all(float(conv.weight.detach().flatten(1).norm(dim=1).max()) <= 2 + 1e-6 for conv in convs)
    assert float(network.head.weight.detach().norm(dim=1).max()) <= 0.5 + 1e-6
