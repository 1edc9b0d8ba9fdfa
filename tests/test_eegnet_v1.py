import pytest
import torch

from encoders.build import SignalShape, build_encoder
from encoders.networks.eegnet_v1 import EEGNetV1Config


def test_sizes_are_the_published_ones():
    network = build_encoder(EEGNetV1Config(), SignalShape(64, 128, 128.0, 1), 4)
    spatial, planes = 64 * 16 + 16, (4 * 2 * 32 + 4) + (4 * 4 * 8 * 4 + 4)
    norms, head = 2 * 16 + 2 * 4 + 2 * 4, (4 * 4 * 8) * 4 + 4
    assert sum(p.numel() for p in network.parameters()) == spatial + planes + norms + head
    assert [tuple(conv.kernel_size) for conv in network.planes] == [(2, 32), (8, 4)]


def test_padding_keeps_every_stride_like_keras():
    network = build_encoder(EEGNetV1Config(), SignalShape(5, 101, 128.0, 1), 4).eval()
    tokens = network.tokens(torch.randn(2, 5, 101), torch.zeros(5, 2), torch.zeros(2, dtype=torch.int64))
    assert tokens.shape == (2, 7, 16)  # ceil(ceil(101 / 4) / 4) steps, 4 maps x ceil(ceil(16 / 2) / 2) rows


def test_penalty_is_l1_of_the_filters_and_l2_of_all_kernels():
    network = build_encoder(EEGNetV1Config(l1=0.5, l2=0.25), SignalShape(3, 32, 128.0, 1), 4)
    kernels = [network.spatial.weight, network.planes[0].weight, network.planes[1].weight]
    expected = 0.5 * kernels[0].abs().sum() + 0.25 * sum((kernel**2).sum() for kernel in kernels)
    torch.testing.assert_close(network.penalty(), expected)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="eegnet_v1 needs epochs of at least 16 samples, got 15; lengthen"):
        build_encoder(EEGNetV1Config(), SignalShape(4, 15, 100.0, 1), 3)
