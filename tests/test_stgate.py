import pytest
import torch

from encoders.layers.signal_shape import SignalShape
from encoders.networks.stgate import STGATE, STGATEConfig

SHAPE = SignalShape(20, 64, 100.0, 2)
CONFIG = STGATEConfig(width=16, heads=4, top_k=10)


def _network(config=CONFIG, shape=SHAPE):
    torch.manual_seed(0)
    network = STGATE(config, shape, 24).eval()
    with torch.no_grad():  # as after some training: nothing is zero or symmetric
        for scores in (network.spatial_scores, network.temporal_scores):
            scores.bias.normal_()
    return network


def _inputs(n=4, shape=SHAPE):
    return torch.randn(n, shape.n_channels, shape.n_times), torch.rand(shape.n_channels, 2), torch.zeros(n).long()


def _graph(network, data, subject):
    return network.adjacency(network.features(data, subject))


@pytest.mark.parametrize(("n_channels", "top_k"), [(63, 10), (20, 3), (11, 10)])
def test_every_row_of_the_graph_has_exactly_top_k_edges(n_channels, top_k):
    shape = SignalShape(n_channels, 100, 100.0, 1)
    network = _network(CONFIG.model_copy(update={"top_k": top_k}), shape)
    data, _, subject = _inputs(shape=shape)
    graph = _graph(network, data, subject)
    assert ((graph > 0).sum(-1) == top_k).all() and (graph >= 0).all()
    assert (graph.diagonal(dim1=1, dim2=2) == 0).all()
    torch.testing.assert_close(graph.sum(-1), torch.ones(4, n_channels))


def test_relabelled_channels_give_relabelled_nodes():
    network, other = _network(), _network()
    network.set_graph(torch.rand(20, 20))
    order = torch.randperm(20)
    with torch.no_grad():
        for ours, theirs in (
            (network.spatial_scores, other.spatial_scores),
            (network.temporal_scores, other.temporal_scores),
        ):
            theirs.to_nodes.copy_(ours.to_nodes[:, order])
            theirs.bias.copy_(ours.bias[order][:, order])
            theirs.mix.copy_(ours.mix[order][:, order])
        other.prior.copy_(network.prior[order][:, order])
    data, positions, subject = _inputs()
    expected = network.tokens(data, positions, subject)[:, order]
    torch.testing.assert_close(other.tokens(data[:, order], positions, subject), expected, atol=1e-5, rtol=1e-5)
    unchanged = network.tokens(data[:, order], positions, subject)
    assert not torch.allclose(unchanged, expected, atol=1e-2)  # the labels do matter


def test_graph_depends_on_the_epoch_and_not_on_its_batch_mates():
    network = _network()
    data, _, subject = _inputs()
    graph = _graph(network, data, subject)
    assert ((graph[0] > 0) != (graph[1] > 0)).any()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(_graph(network, data[order], subject), graph[order], atol=1e-6, rtol=1e-5)
    mates = torch.cat([data[:1], 100 * data[1:]])
    torch.testing.assert_close(_graph(network, mates, subject)[0], graph[0], atol=1e-6, rtol=1e-5)


def test_a_strong_prior_decides_the_graph_and_is_kept_with_the_weights():
    network = _network()
    data, positions, subject = _inputs()
    ring = torch.zeros(20, 20)
    for step in range(1, 11):
        ring[torch.arange(20), (torch.arange(20) + step) % 20] = 1.0
    network.set_graph(ring)
    before = _graph(network, data, subject)
    network.prior.mul_(100)
    assert ((_graph(network, data, subject) > 0) == (ring > 0)).all()
    again = _network()
    again.load_state_dict({**network.state_dict(), "prior": network.prior / 100})
    torch.testing.assert_close(_graph(again, data, subject), before)


@pytest.mark.parametrize("wrong", [torch.rand(3, 3), torch.ones(20, 20), torch.full((20, 20), torch.nan)])
def test_impossible_priors_are_refused(wrong):
    with pytest.raises(ValueError, match="graph prior"):
        _network().set_graph(wrong)


def test_too_few_channels_and_too_short_epochs_are_refused():
    with pytest.raises(ValueError, match="more than 10 channels, got 10"):
        STGATE(CONFIG, SignalShape(10, 64, 100.0, 1), 8)
    with pytest.raises(ValueError, match="at least 10 samples at 100 Hz, got 9"):
        STGATE(CONFIG, SignalShape(20, 9, 100.0, 1), 8)


def test_people_matter_only_with_subject_layers():
    data, positions, subject = _inputs()
    plain, people = _network(), _network(CONFIG.model_copy(update={"subject_layers": True}))
    assert torch.equal(plain(data, positions, subject), plain(data, positions + 1, subject + 1))
    with torch.no_grad():
        people.people.weight[1] *= -1
    assert not torch.allclose(people(data, positions, subject), people(data, positions, subject + 1))


def test_tokens_are_one_per_channel():
    network = _network()
    assert network.tokens(*_inputs()).shape == (4, 20, network.token_width)
