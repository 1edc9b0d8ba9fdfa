import pytest
import torch

from encoders.build import SignalShape
from encoders.networks.eegnet import EEGNet, EEGNetConfig
from encoders.networks.eegnet_ssvep import EEGNetSSVEP, EEGNetSSVEPConfig


def test_published_sizes_and_count():
    network = EEGNetSSVEP(EEGNetSSVEPConfig(), SignalShape(8, 256, 256.0, 1), 12)
    blocks = network.blocks
    assert blocks.bank.temporal.weight.shape == (96, 1, 256) and blocks.bank.spatial.weight.shape == (96, 1, 8, 1)
    assert (blocks.pool, blocks.depthwise.kernel_size[0], network.second_pool) == (4, 16, 8)
    # 96*256 + 2*96 + 96*8 + 2*96 + 96*16 + 96*96 + 2*96 + (96*8 + 1)*12
    assert sum(parameter.numel() for parameter in network.parameters()) == 45_900


def test_is_eegnet_with_depth_1_but_for_the_limit_of_the_dense_layer():
    torch.manual_seed(0)
    shape = SignalShape(4, 128, 128.0, 1)
    one = EEGNetSSVEP(EEGNetSSVEPConfig(n_filters=6, kernel=0.5), shape, 3).eval()
    other = EEGNet(
        EEGNetConfig(n_filters=6, depth=1, pool=1 / 64, separable_kernel=0.25, second_pool=0.125), shape, 3
    ).eval()
    other.load_state_dict(one.state_dict())
    inputs = torch.randn(2, 4, 128), torch.rand(4, 2), torch.zeros(2).long()
    torch.testing.assert_close(one(*inputs), other(*inputs))
    assert type(one.dense) is torch.nn.Linear
    assert one.tokens(*inputs).shape == (2, 64, one.token_width)


def test_too_short_epochs_are_refused_with_the_length_needed():
    with pytest.raises(ValueError, match="at least 32 samples at 256 Hz, got 31"):
        EEGNetSSVEP(EEGNetSSVEPConfig(), SignalShape(8, 31, 256.0, 1), 12)
