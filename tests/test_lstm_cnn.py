import pytest
import torch
from torch.nn import functional

from encoders.build import SignalShape, build_encoder
from encoders.networks.lstm_cnn import LSTMCNNConfig

SHAPE = SignalShape(6, 40, 100.0, 1)
ORDERS = pytest.mark.parametrize("name", ["lstm_cnn", "cnn_lstm"])


def arguments(data):
    return data, torch.zeros(data.shape[1], 2), torch.zeros(len(data), dtype=torch.int64)


@ORDERS
def test_forget_gates_start_open(name):
    network = build_encoder(LSTMCNNConfig(name=name, hidden=5), SHAPE, 3)
    for layer in range(2):
        total = getattr(network.memory, f"bias_ih_l{layer}") + getattr(network.memory, f"bias_hh_l{layer}")
        assert torch.equal(total[5:10], torch.ones(5))


@ORDERS
@pytest.mark.parametrize("pooling", ["steps", "last"])
def test_no_output_of_a_causal_network_depends_on_the_future(name, pooling):
    torch.manual_seed(0)
    network = build_encoder(LSTMCNNConfig(name=name, hidden=8, causal=True, pooling=pooling), SHAPE, 4).eval()
    data = torch.randn(2, 6, 40)
    changed = data.clone()
    changed[..., 20:] = 100 * torch.randn(2, 6, 20)
    past, other = network.over_time(*arguments(data)), network.over_time(*arguments(changed))
    assert torch.equal(past[:, :10], other[:, :10]) and not torch.equal(past[:, 10:], other[:, 10:])
    torch.testing.assert_close(past[:, -1], network(*arguments(data)), atol=1e-5, rtol=1e-5)


@ORDERS
def test_a_network_that_looks_ahead_has_no_running_output(name):
    with pytest.raises(ValueError, match="expected causal=True"):
        build_encoder(LSTMCNNConfig(name=name), SHAPE, 4).over_time(*arguments(torch.randn(1, 6, 40)))
    for bad in ({"bidirectional": True}, {"pooling": "attention"}):
        with pytest.raises(ValueError, match="nothing that reads the future"):
            build_encoder(LSTMCNNConfig(name=name, causal=True, **bad), SHAPE, 4)


def pulses(n, seed):
    """Make epochs with a pulse on each of two channels; which came first is the class."""
    generator = torch.Generator().manual_seed(seed)
    data = 0.1 * torch.randn(n, 6, 40, generator=generator)
    labels = torch.randint(0, 2, (n,), generator=generator)
    early = torch.randint(2, 12, (n,), generator=generator)
    late = early + torch.randint(6, 24, (n,), generator=generator)
    rows = torch.arange(n)
    data[rows, labels, early] += 3
    data[rows, 1 - labels, late] += 3
    return data, labels


@ORDERS
def test_which_pulse_came_first(name):
    torch.manual_seed(0)
    data, labels = pulses(512, 0)
    held, held_labels = pulses(512, 1)
    network = build_encoder(LSTMCNNConfig(name=name, hidden=32, layers=1, pooling="last", dropout=0.0), SHAPE, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(150):
        rows = torch.randperm(512, generator=torch.Generator().manual_seed(step))[:128]
        optimizer.zero_grad()
        functional.cross_entropy(network(*arguments(data[rows])), labels[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        found = network.eval()(*arguments(held)).argmax(1)
    assert float((found == held_labels).float().mean()) >= 0.95
