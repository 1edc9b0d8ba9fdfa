"""Measures of weighted graphs: how connected, how cliquish, how quickly reached."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GraphMeasures:
    """What `graph_measures` returns.

    Attributes
    ----------
    degree : Tensor, (..., n)
        Number of neighbours that a node listens to.
    strength : Tensor, (..., n)
        Sum of their weights.
    clustering : Tensor, (..., n)
        Mean, over pairs of neighbours, of the geometric mean of the triangle's weights over the graph's largest weight.
    efficiency : Tensor, (...)
        Mean of one over the length of the shortest path between two nodes, an edge being as long as one over its
        weight.
    """

    degree: Tensor
    strength: Tensor
    clustering: Tensor
    efficiency: Tensor


def graph_measures(adjacency: Tensor) -> GraphMeasures:
    """Describe undirected weighted graphs.

    Parameters
    ----------
    adjacency : Tensor, (..., n, n), float32 or float64
        Non-negative, symmetric, zero on the diagonal; 0 is no edge. At least two nodes.

    Returns
    -------
    GraphMeasures

    Raises
    ------
    ValueError
        If a weight is negative or the graph is not symmetric or has loops.

    References
    ----------
    Onnela et al. 2005, Phys. Rev. E 71 (clustering); Latora and Marchiori 2001, Phys. Rev. Lett. 87 (efficiency).
    """
    if (adjacency < 0).any() or not torch.equal(adjacency, adjacency.mT) or adjacency.diagonal(dim1=-2, dim2=-1).any():
        raise ValueError(
            "graph measures got a graph with negative weights, one-way edges or loops, expected an undirected one; "
            "symmetrise it, for example by torch.maximum(adjacency, adjacency.mT), and empty its diagonal"
        )
    degree = (adjacency > 0).sum(dim=-1).to(adjacency.dtype)
    largest = adjacency.amax(dim=(-2, -1), keepdim=True)
    roots = (adjacency / torch.where(largest > 0, largest, 1)) ** (1 / 3)
    triangles = (roots @ roots * roots).sum(dim=-1)
    pairs = degree * (degree - 1)
    clustering = torch.where(pairs > 0, triangles / pairs.clamp(min=1), 0)
    n = adjacency.shape[-1]
    closeness = torch.where(torch.eye(n, dtype=torch.bool, device=adjacency.device), 0, 1 / shortest_paths(adjacency))
    return GraphMeasures(degree, adjacency.sum(dim=-1), clustering, closeness.sum(dim=(-2, -1)) / (n * (n - 1)))


def shortest_paths(adjacency: Tensor) -> Tensor:
    """Return the lengths of all shortest paths, (..., n, n), infinite where there is none (Floyd and Warshall)."""
    itself = torch.eye(adjacency.shape[-1], dtype=torch.bool, device=adjacency.device)
    length = (1 / adjacency).masked_fill(itself, 0)
    for via in range(adjacency.shape[-1]):
        length = torch.minimum(length, length[..., :, via, None] + length[..., None, via, :])
    return length
