import pytest
import torch

from encoders.build import SignalShape
from encoders.layers.constraints import penalties
from encoders.networks.eegnet_v1 import EEGNetV1, EEGNetV1Config


def test_published_sizes_and_count():
    network = EEGNetV1(EEGNetV1Config(), SignalShape(64, 128, 128.0, 1), 4)
    assert network.first.weight.shape == (4, 1, 2, 32) and network.second.weight.shape == (4, 4, 8, 4)
    assert network.first.stride == network.second.stride == (2, 4)
    # (64+1)*16 + 2*16 + (64+1)*4 + 2*4 + (128+1)*4 + 2*4 + (4*4*8+1)*4
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_380


@pytest.mark.parametrize(("n_times", "n_steps"), [(128, 8), (129, 9), (100, 7)])
def test_strides_round_up_as_in_keras(n_times, n_steps):
    network = EEGNetV1(EEGNetV1Config(), SignalShape(3, n_times, 128.0, 1), 4).eval()
    inputs = torch.randn(2, 3, n_times), torch.rand(3, 2), torch.zeros(2).long()
    tokens = network.tokens(*inputs)
    assert tokens.shape == (2, n_steps, network.token_width) and network(*inputs).shape == (2, 4)


def test_penalty_is_l1_of_the_spatial_filters_and_l2_of_all():
    network = EEGNetV1(EEGNetV1Config(l1=0.5, l2=0.25), SignalShape(3, 64, 128.0, 1), 4)
    with torch.no_grad():
        network.spatial.weight.fill_(-1.0)
        network.first.weight.fill_(2.0)
        network.second.weight.fill_(0.0)
    expected = 0.5 * 48 + 0.25 * (48 + 4 * network.first.weight.numel())
    assert float(penalties(network).detach()) == pytest.approx(expected)


def test_too_short_epochs_are_refused_with_the_length_needed():
    with pytest.raises(ValueError, match="at least 32 samples at 128 Hz, got 31"):
        EEGNetV1(EEGNetV1Config(), SignalShape(3, 31, 128.0, 1), 4)
