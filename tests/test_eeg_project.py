import pytest
import torch

from encoders.build import PRESETS, SignalShape
from encoders.networks.eeg_project import EEGProject, EEGProjectConfig


@pytest.mark.parametrize(
    ("n_channels", "n_times", "n_features"), [(17, 250, 4250), (63, 250, 15750), (271, 201, 54471)]
)
def test_published_shapes(n_channels, n_times, n_features):
    with torch.device("meta"):
        network = EEGProject(EEGProjectConfig(), SignalShape(n_channels, n_times, 250.0, 1), 1024)
    assert network.head.linear.weight.shape == (1024, n_features)
    assert network.head.residual[1].weight.shape == (1024, 1024)
    assert network.head.norm.weight.shape == (1024,)


def test_published_count():
    network = EEGProject(EEGProjectConfig(), SignalShape(63, 250, 250.0, 1), 1024)
    assert sum(parameter.numel() for parameter in network.parameters()) == 17_180_672


def test_flattens_channel_by_channel():
    torch.manual_seed(0)
    network = EEGProject(EEGProjectConfig(), SignalShape(3, 4, 100.0, 1), 8).eval()
    data = torch.zeros(1, 3, 4)
    data[0, 1, 2] = 1
    expected = network.head(torch.eye(12)[1 * 4 + 2][None])
    assert torch.equal(network(data, torch.rand(3, 2), torch.tensor([0])), expected)


def test_people_start_equal_and_may_part():
    torch.manual_seed(0)
    network = EEGProject(PRESETS["eeg_project_people"], SignalShape(3, 4, 100.0, 2), 8).eval()
    data, positions = torch.randn(2, 3, 4), torch.rand(3, 2)
    first, second = torch.tensor([0, 0]), torch.tensor([1, 1])
    assert torch.equal(network(data, positions, first), network(data, positions, second))
    with torch.no_grad():
        network.people.weight[1] *= 2
    assert not torch.allclose(network(data, positions, first), network(data, positions, second))
