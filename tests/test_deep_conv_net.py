import pytest
import torch
from torch.nn import functional

from encoders.build import PRESETS, SignalShape
from encoders.layers.constraints import apply_constraints
from encoders.networks.deep_conv_net import DeepConvNet, DeepConvNetConfig


def inputs(shape, n=3):
    return torch.randn(n, shape.n_channels, shape.n_times), torch.rand(shape.n_channels, 2), torch.zeros(n).long()


def test_published_count():
    network = DeepConvNet(DeepConvNetConfig(), SignalShape(64, 256, 128.0, 1), 4)
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == 182_129
    assert all(norm.eps == 1e-5 and norm.momentum == 0.1 for norm in network.norms)


def test_equals_the_layers_in_published_order():
    torch.manual_seed(0)
    shape = SignalShape(6, 128, 128.0, 1)
    network = DeepConvNet(DeepConvNetConfig(), shape, 5).double().eval()
    data, positions, subject = inputs(shape)
    data = data.double()
    maps = network.front.spatial(network.front.temporal(data.unsqueeze(1)))
    for i in range(4):
        if i:
            maps = network.convs[i - 1](maps)
        maps = functional.elu(network.norms[i](maps.squeeze(2)).unsqueeze(2))
        maps = functional.max_pool2d(maps, (1, 2))
    torch.testing.assert_close(network(data, positions, subject), network.dense(maps.flatten(1)))


def test_every_convolution_and_the_dense_layer_have_a_limit():
    network = DeepConvNet(DeepConvNetConfig(), SignalShape(6, 128, 128.0, 1), 5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(100)
    apply_constraints(network)
    limited = [network.front.temporal, network.front.spatial, *network.convs]
    assert all(part.weight.flatten(1).norm(dim=1).max().item() <= 2 + 1e-6 for part in limited)
    assert network.dense.weight.norm(dim=1).max().item() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("config", "sfreq", "expected"),
    [
        (DeepConvNetConfig(), 128.0, [(5, 2)] * 4),
        (DeepConvNetConfig(), 256.0, [(10, 4), (5, 2), (5, 2), (5, 2)]),
        (DeepConvNetConfig(), 100.0, [(4, 2)] * 4),
        (DeepConvNetConfig(kernel=10, pool=3, published_sfreq=250.0), 250.0, [(10, 3)] * 4),
    ],
)
def test_kernels_keep_their_duration_at_the_rate_that_reaches_them(config, sfreq, expected):
    assert config.sizes(sfreq) == expected


def test_short_epochs_need_fewer_blocks():
    with pytest.raises(ValueError, match="4 blocks needs epochs of at least 76 samples at 128 Hz, got 75"):
        DeepConvNet(DeepConvNetConfig(), SignalShape(6, 75, 128.0, 1), 5)
    shape = SignalShape(6, 64, 100.0, 1)
    for config, n_steps in ((DeepConvNetConfig(), 1), (PRESETS["deep_conv_net_embed"], 13)):
        network = DeepConvNet(config, shape, 5).eval()
        assert network.tokens(*inputs(shape)).shape == (3, n_steps, network.token_width)
