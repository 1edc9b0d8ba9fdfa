import networkx
import numpy as np
import pytest
import torch

from encoders.graph_measures import graph_measures, shortest_paths


def _graph(n=12, density=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    upper = torch.rand(n, n, generator=generator).double() * (torch.rand(n, n, generator=generator) < density)
    upper = upper.triu(1)
    return upper + upper.mT


@pytest.mark.parametrize("seed", range(3))
def test_measures_equal_networkx(seed):
    adjacency = _graph(density=0.15 + 0.2 * seed, seed=seed)
    adjacency[3] = adjacency[:, 3] = 0  # a node alone
    oracle = networkx.from_numpy_array(adjacency.numpy())
    found = graph_measures(adjacency)
    np.testing.assert_array_equal(found.degree, [degree for _, degree in oracle.degree()])
    np.testing.assert_allclose(found.strength, [degree for _, degree in oracle.degree(weight="weight")])
    clustering = networkx.clustering(oracle, weight="weight")
    np.testing.assert_allclose(found.clustering, [clustering[i] for i in range(12)], atol=1e-12)
    lengths = dict(networkx.all_pairs_dijkstra_path_length(oracle, weight=lambda a, b, edge: 1 / edge["weight"]))
    expected = np.full((12, 12), np.inf)
    for i, row in lengths.items():
        for j, length in row.items():
            expected[i, j] = length
    np.testing.assert_allclose(shortest_paths(adjacency), expected)
    np.testing.assert_allclose(found.efficiency, (1 / expected[~np.eye(12, dtype=bool)]).mean())


def test_efficiency_of_a_graph_of_ones_is_the_unweighted_one():
    adjacency = (_graph() > 0).double()
    expected = networkx.global_efficiency(networkx.from_numpy_array(adjacency.numpy()))
    np.testing.assert_allclose(graph_measures(adjacency).efficiency, expected)


def test_graphs_of_a_batch_do_not_mix_and_no_edges_are_fine():
    both = torch.stack([_graph(seed=1), torch.zeros(12, 12).double()])
    found = graph_measures(both)
    torch.testing.assert_close(found.clustering[0], graph_measures(both[0]).clustering)
    torch.testing.assert_close(found.efficiency[0], graph_measures(both[0]).efficiency)
    assert found.efficiency[1] == 0 and (found.clustering[1] == 0).all()


@pytest.mark.parametrize("wrong", [torch.tensor([[0.0, -1], [-1, 0]]), torch.tensor([[0.0, 1], [0, 0]]), torch.eye(2)])
def test_other_graphs_are_refused(wrong):
    with pytest.raises(ValueError, match="symmetrise"):
        graph_measures(wrong)
