import pytest
import torch
from torch import nn
from torch.nn import functional
from torch_geometric.nn import GATv2Conv

from encoders.layers.graph_attention import GATv2


def _edge_index(adjacency):
    listener, speaker = adjacency.nonzero(as_tuple=True)
    return torch.stack([speaker, listener])


def _copy_of(oracle, ours):
    """Give our layer the oracle's weights."""
    with torch.no_grad():
        ours.source_and_target.weight.copy_(torch.cat([oracle.lin_l.weight, oracle.lin_r.weight]))
        ours.source_and_target.bias.copy_(torch.cat([oracle.lin_l.bias, oracle.lin_r.bias]))
        ours.attention.copy_(oracle.att[0])
        ours.bias.copy_(oracle.bias.normal_())
        if ours.edges is not None:
            ours.edges.weight.copy_(oracle.lin_edge.weight)
    return ours


def _pair(n_in, n_out, heads, concat, edge_dim=0):
    torch.manual_seed(0)
    oracle = GATv2Conv(
        n_in, n_out, heads=heads, concat=concat, edge_dim=edge_dim or None, add_self_loops=False, bias=True
    )
    return oracle, _copy_of(oracle, GATv2(n_in, n_out, heads, concat, edge_dim))


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_63_nodes_and_4_heads_equal_torch_geometric(density):
    oracle, ours = _pair(16, 24, 4, concat=True)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 3456
    nodes = torch.randn(63, 16)
    adjacency = torch.rand(63, 63) < density
    adjacency.fill_diagonal_(True)
    expected = oracle(nodes, _edge_index(adjacency))
    torch.testing.assert_close(ours(nodes[None], adjacency)[0], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("concat", [True, False])
@pytest.mark.parametrize("edge_dim", [0, 3])
def test_values_and_gradients_equal_torch_geometric_in_float64(concat, edge_dim):
    oracle, ours = (layer.double() for layer in _pair(6, 5, 3, concat, edge_dim))
    nodes = torch.randn(11, 6, dtype=torch.float64)
    adjacency = torch.rand(11, 11) < 0.4
    adjacency[4] = False  # node 4 listens to nobody
    edges = torch.randn(11, 11, edge_dim, dtype=torch.float64) if edge_dim else None
    expected = oracle(nodes, _edge_index(adjacency), None if edges is None else edges[adjacency])
    found = ours(nodes[None], adjacency, edges)[0]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(found[4], ours.bias)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    both = torch.cat([oracle.lin_l.weight.grad, oracle.lin_r.weight.grad])
    torch.testing.assert_close(ours.source_and_target.weight.grad, both)
    torch.testing.assert_close(ours.attention.grad, oracle.att.grad[0])
    if edge_dim:
        torch.testing.assert_close(ours.edges.weight.grad, oracle.lin_edge.weight.grad)


@pytest.mark.parametrize("per_epoch", [False, True])
def test_a_batch_equals_its_epochs_one_by_one(per_epoch):
    """One edge list on a flattened batch would send all messages inside epoch 0."""
    oracle, ours = _pair(16, 24, 4, concat=True)
    nodes, adjacency = torch.randn(4, 63, 16), torch.rand(4, 63, 63) < 0.3
    adjacency = adjacency if per_epoch else adjacency[0].expand(4, -1, -1)
    batched = ours(nodes, adjacency if per_epoch else adjacency[0])
    for i in range(4):
        expected = oracle(nodes[i], _edge_index(adjacency[i]))
        torch.testing.assert_close(batched[i], expected, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("self_weights", ["shared", "separate"])
@pytest.mark.parametrize("edge_dim", [0, 2])
def test_relabelled_nodes_give_relabelled_outputs(self_weights, edge_dim):
    torch.manual_seed(0)
    layer = GATv2(8, 8, 2, True, edge_dim, self_weights)
    nodes, adjacency, order = torch.randn(3, 20, 8), torch.rand(20, 20), torch.randperm(20)
    edges = torch.randn(20, 20, edge_dim) if edge_dim else None
    out = layer(nodes, adjacency, edges)[:, order]
    moved = None if edges is None else edges[order][:, order]
    torch.testing.assert_close(layer(nodes[:, order], adjacency[order][:, order], moved), out, atol=1e-6, rtol=1e-5)


def test_weights_scale_the_attention_and_zeros_and_ones_are_a_mask():
    torch.manual_seed(0)
    layer = GATv2(8, 8, 2, True)
    nodes, weights = torch.randn(3, 20, 8), torch.rand(20, 20) * (torch.rand(20, 20) < 0.5)
    plain, weighted = (layer.attend(nodes, adjacency)[1] for adjacency in (None, weights))
    expected = plain * weights
    torch.testing.assert_close(weighted, expected / expected.sum(-1, keepdim=True))
    mask = weights > 0
    torch.testing.assert_close(layer(nodes, mask), layer(nodes, mask.float()))


def test_separate_weights_keep_the_node_out_of_its_own_softmax():
    torch.manual_seed(0)
    layer = GATv2(8, 8, 2, True, self_weights="separate")
    nodes = torch.randn(2, 10, 8)
    assert (layer.attend(nodes)[1].diagonal(dim1=-2, dim2=-1) == 0).all()
    nobody = torch.eye(10, dtype=torch.bool)
    torch.testing.assert_close(layer(nodes, nobody), layer.itself(nodes) + layer.bias)


def test_edge_features_are_asked_for_exactly_if_the_layer_has_them():
    with pytest.raises(ValueError, match="got no edge features"):
        GATv2(4, 4, 1, True, edge_dim=2)(torch.randn(1, 3, 4))
    with pytest.raises(ValueError, match="unexpected edge features"):
        GATv2(4, 4, 1, True)(torch.randn(1, 3, 4), None, torch.randn(3, 3, 2))


@pytest.mark.parametrize("edge_dim", [0, 1])
def test_nothing_of_size_nodes_x_nodes_x_features_is_kept_for_the_gradient(edge_dim):
    layer = GATv2(8, 32, 2, True, edge_dim)
    kept = []
    edges = torch.randn(40, 40, edge_dim) if edge_dim else None
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        layer(torch.randn(4, 40, 8), torch.rand(40, 40), edges)
    assert max(kept) <= 4 * 2 * 40 * 40  # the attention itself; with features it would be 32 times as much


class PlainGAT(nn.Module):
    """The first GAT: the non-linearity comes after the scalar product, so all nodes rank neighbours alike."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.linear, self.speaker, self.listener = nn.Linear(n_in, n_out), nn.Linear(n_out, 1), nn.Linear(n_out, 1)

    def forward(self, nodes, adjacency):
        hidden = self.linear(nodes)
        scores = functional.leaky_relu(self.listener(hidden) + self.speaker(hidden).mT, 0.2)
        return scores.masked_fill(~adjacency, -torch.inf).softmax(-1) @ hidden


def _dictionary(n, n_keys=6):
    """Nodes 0 to k - 1 hold a key and a value; nodes k to 2k - 1 hold a key and ask for its value."""
    values = torch.stack([torch.randperm(n_keys) for _ in range(n)])
    keys = torch.eye(n_keys).expand(n, -1, -1)
    pairs = torch.cat([keys, functional.one_hot(values, n_keys).float()], -1)
    return torch.cat([pairs, torch.cat([keys, torch.zeros(n, n_keys, n_keys)], -1)], 1), values


@pytest.mark.parametrize("kind", ["gat", "gatv2"])
def test_only_gatv2_looks_up_a_dictionary(kind):
    torch.manual_seed(0)
    k, width = 6, 24
    layer = PlainGAT(2 * k, width) if kind == "gat" else GATv2(2 * k, width, 1, True)
    head = nn.Linear(width, k)
    adjacency = torch.zeros(2 * k, 2 * k, dtype=torch.bool)
    adjacency[k:, :k] = True
    adjacency[:k].fill_diagonal_(True)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.01)
    for _ in range(400):
        nodes, values = _dictionary(64)
        optimizer.zero_grad()
        functional.cross_entropy(head(layer(nodes, adjacency)[:, k:]).flatten(0, 1), values.flatten()).backward()
        optimizer.step()
    nodes, values = _dictionary(500)
    with torch.no_grad():
        right = (head(layer(nodes, adjacency)[:, k:]).argmax(-1) == values).float().mean()
    assert right == 1.0 if kind == "gatv2" else right < 0.6, right


def _converges(self_weights, seed):
    """Regress each of 4 nodes' first feature minus twice the mean of the others' second; chance loss is about 2.3."""
    torch.manual_seed(seed)
    nodes = torch.randn(128, 4, 3)
    others = (nodes.sum(1, keepdim=True) - nodes)[..., 1] / 3
    targets = nodes[..., 0] - 2 * others
    layer, head = GATv2(3, 8, 2, True, self_weights=self_weights), nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        loss = functional.mse_loss(head(layer(nodes)).squeeze(-1), targets)
        loss.backward()
        optimizer.step()
    return loss.item() < 0.03


def test_separate_weights_converge_on_a_small_graph_where_shared_ones_fail():
    separate = sum(_converges("separate", seed) for seed in range(10))
    shared = sum(_converges("shared", seed) for seed in range(10))
    assert separate >= 9 and shared < separate, (separate, shared)
