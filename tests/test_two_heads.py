import pytest
import torch

from alignment.two_heads import TwoHeads, two_heads_loss
from encoders.build import SignalShape, build_encoder
from encoders.networks.brain_module import BrainModuleConfig

CONFIG = BrainModuleConfig(n_virtual=16, fourier_width=32, width=24, n_convs=2, head_width=32, time_agg="linear")
SHAPE = SignalShape(17, 64, 100.0, 2)


def _network(hidden=0):
    torch.manual_seed(0)
    return TwoHeads(build_encoder(CONFIG, SHAPE, 48), 48, 12, 20, hidden)


def _batch():
    return torch.randn(6, 17, 64), torch.rand(17, 2), torch.arange(6) % 2


def _loss(network, weight):
    targets = torch.randn(6, 12), torch.randn(6, 20)
    return two_heads_loss(network.both(*_batch()), targets, torch.tensor(10.0), weight)


@pytest.mark.parametrize("hidden", [0, 8])
def test_forward_is_the_retrieval_head_and_both_have_their_own_width(hidden):
    network, batch = _network(hidden).eval(), _batch()
    retrieval, generation = network.both(*batch)
    assert retrieval.shape == (6, 12) and generation.shape == (6, 20)
    assert torch.equal(network(*batch), retrieval)


@pytest.mark.parametrize(
    ("weight", "still", "moved"), [(1.0, "generation", "retrieval"), (0.0, "retrieval", "generation")]
)
def test_a_loss_of_weight_zero_leaves_its_head_untouched(weight, still, moved):
    network = _network(8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
    loss, parts = _loss(network, weight)
    loss.backward()
    optimizer.step()
    assert len(parts) == 1
    for name, value in network.state_dict().items():
        if name.startswith(still):
            assert torch.equal(value, before[name]), name
        if name.startswith((moved, "encoder.head")):
            assert not torch.equal(value, before[name]), name


def test_gradients_of_the_heads_are_independent():
    """Each head's gradient is that of its own loss, times its weight, whatever the other one's target."""
    alone, mixed = _network(), _network()
    torch.manual_seed(1)
    _loss(alone, 0.0)[0].backward()
    torch.manual_seed(1)
    loss, parts = _loss(mixed, 0.75)
    loss.backward()
    torch.testing.assert_close(mixed.generation.weight.grad, 0.25 * alone.generation.weight.grad)
    torch.testing.assert_close(loss, 0.75 * parts["contrastive"] + 0.25 * parts["mse"])


def test_weights_that_are_no_share_are_refused():
    with pytest.raises(ValueError, match=r"1\.5, expected 0 to 1"):
        _loss(_network(), 1.5)
