"""Graph attention (GATv2) on dense graphs: every sensor asks its neighbours, and each may prefer another one.

Sensor graphs have at most a few hundred nodes, so the adjacency is a dense matrix and a batch is one more axis: no edge
lists, no scatter, and no way for one epoch's messages to reach another. The score of an edge,
``a^T LeakyReLU(l_j + r_i)``, is split into a linear part and ``sum_f a_f |l_jf + r_if|``, a signed city-block distance,
so that nothing of size nodes x nodes x features is ever held.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SLOPE = 0.2  # of the leaky ReLU, as published


class GATv2(nn.Module):
    """Attend over the neighbours of each node with a ranking that depends on the node.

    Node ``i`` becomes ``sum_j w_ij l_j + bias`` with ``l = W_l x``, ``r = W_r x`` and ``w_ij`` proportional over ``j``
    to ``A_ij exp(a^T LeakyReLU(l_j + r_i + W_e e_ij))``.

    Parameters
    ----------
    n_in : int
        Features per node.
    n_out : int
        Features per node and head.
    heads : int
        Independent attentions.
    concat : bool
        Concatenate the heads (width ``heads * n_out``) or average them (width ``n_out``).
    edge_dim : int
        Features per edge; 0 for none.
    self_weights : "shared" | "separate"
        ``shared`` is the published layer: a node is its own neighbour if the adjacency says so. ``separate`` gives the
        node itself a matrix of its own, ``W_s x_i``, outside the softmax, and ignores the diagonal of the adjacency:
        a node's own features then need not pass through an attention that starts nearly constant.

    References
    ----------
    Brody, Alon and Yahav 2022, "How attentive are graph attention networks?", ICLR, arXiv:2105.14491. That GATv2
    trains badly on small graphs is the finding of Neumeier et al. 2023, arXiv:2305.16196; the wording of their remedy
    was not at hand, ``separate`` is our reading of it.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        heads: int,
        concat: bool,
        edge_dim: int = 0,
        self_weights: Literal["shared", "separate"] = "shared",
    ) -> None:
        super().__init__()
        self.heads, self.n_out, self.concat = heads, n_out, concat
        width = heads * n_out
        self.out_width = width if concat else n_out
        self.source_and_target = nn.Linear(n_in, 2 * width)  # W_l above W_r: one product instead of two
        self.attention = nn.Parameter(torch.empty(heads, n_out))
        self.edges = nn.Linear(edge_dim, width, bias=False) if edge_dim else None
        self.itself = nn.Linear(n_in, self.out_width, bias=False) if self_weights == "separate" else None
        self.bias = nn.Parameter(torch.zeros(self.out_width))
        nn.init.xavier_uniform_(self.source_and_target.weight[:width])
        nn.init.xavier_uniform_(self.source_and_target.weight[width:])
        nn.init.zeros_(self.source_and_target.bias)
        nn.init.xavier_uniform_(self.attention)

    def forward(self, nodes: Tensor, adjacency: Tensor | None = None, edges: Tensor | None = None) -> Tensor:
        """Pass messages once.

        Parameters
        ----------
        nodes : Tensor, (b, n, n_in), float32
        adjacency : Tensor, (n, n) or (b, n, n), bool or float32, optional
            Entry ``[i, j]``: node ``i`` listens to node ``j``. Non-negative weights multiply the attention before it is
            normalised; a boolean matrix stands for weights 0 and 1; without one the graph is full. A node that listens
            to nobody receives nothing.
        edges : Tensor, (n, n, edge_dim) or (b, n, n, edge_dim), float32, optional
            Features of each edge; needed exactly if ``edge_dim`` is positive.

        Returns
        -------
        Tensor, (b, n, heads * n_out) or (b, n, n_out), float32

        Raises
        ------
        ValueError
            If edge features are missing or not expected.
        """
        n_epochs, n_nodes, _ = nodes.shape
        source, weights = self.attend(nodes, adjacency, edges)
        heard = weights @ source  # (b, h, n, f)
        if self.concat:
            out = heard.transpose(1, 2).reshape(n_epochs, n_nodes, -1)
        else:
            out = heard.mean(dim=1)
        out = out + self.bias
        return out if self.itself is None else out + self.itself(nodes)

    def attend(
        self, nodes: Tensor, adjacency: Tensor | None = None, edges: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the projected neighbours ``l``, (b, h, n, f), and the attention, (b, h, n, n), rows summing to 1."""
        if (edges is None) != (self.edges is None):
            raise ValueError(
                f"GATv2 with edge_dim={0 if self.edges is None else self.edges.in_features} got "
                f"{'no' if edges is None else 'unexpected'} edge features; pass them exactly if edge_dim > 0"
            )
        split = self.source_and_target(nodes).unflatten(-1, (2, self.heads, self.n_out))
        source, target = split.permute(2, 0, 3, 1, 4)  # each (b, h, n, f)
        # LeakyReLU(z) = (1 + s) / 2 z + (1 - s) / 2 |z|; a^T r_i is the same for all neighbours and drops out
        linear = torch.einsum("bhjf,hf->bhj", source, self.attention).unsqueeze(-2)
        if self.edges is None or edges is None:
            bent = _signed_distance(source, target, self.attention)
        else:
            weight = self.edges.weight.view(self.heads, self.n_out, -1)
            along = edges @ torch.einsum("hfe,hf->eh", weight, self.attention)
            linear = linear + along.movedim(-1, -3)  # (..., n, n, h) -> (..., h, n, n)
            bent = _bent_with_edges(source, target, edges, weight, self.attention)
        scores = (0.5 + 0.5 * SLOPE) * linear + (0.5 - 0.5 * SLOPE) * bent
        return source, _masked_softmax(scores, adjacency, exclude_diagonal=self.itself is not None)


def _signed_distance(source: Tensor, target: Tensor, attention: Tensor) -> Tensor:
    """Return ``sum_f a_f |l_jf + r_if|``, (b, h, n, n), as two city-block distances, one per sign of ``a``."""
    up, down = attention.relu().unsqueeze(-2), (-attention).relu().unsqueeze(-2)
    return torch.cdist(target * up, -source * up, p=1.0) - torch.cdist(target * down, -source * down, p=1.0)


def _bent_with_edges(source: Tensor, target: Tensor, edges: Tensor, weight: Tensor, attention: Tensor) -> Tensor:
    """Return ``sum_f a_f |l_jf + r_if + e_ijf|``, (b, h, n, n), one feature at a time and recomputed for gradients."""

    def one_feature(source: Tensor, target: Tensor, weight: Tensor, attention: Tensor) -> Tensor:
        edge = (edges @ weight.T).movedim(-1, -3)  # (..., n, n, h) -> (..., h, n, n)
        return attention[:, None, None] * (target.unsqueeze(-1) + source.unsqueeze(-2) + edge).abs()

    total = source.new_zeros(())
    for f in range(source.shape[-1]):
        term: Tensor = checkpoint(
            one_feature,
            source[..., f],
            target[..., f],
            weight[:, f],
            attention[:, f],
            use_reentrant=False,
            preserve_rng_state=False,
        )
        total = total + term
    return total


def _masked_softmax(scores: Tensor, adjacency: Tensor | None, exclude_diagonal: bool) -> Tensor:
    """Normalise ``A_ij exp(scores_ij)`` over ``j``; rows without any weight become zero."""
    if adjacency is None and not exclude_diagonal:
        return scores.softmax(dim=-1)
    n = scores.shape[-1]
    if adjacency is None:
        adjacency = torch.ones(n, n, dtype=torch.bool, device=scores.device)
    if exclude_diagonal:
        adjacency = adjacency * ~torch.eye(n, dtype=torch.bool, device=scores.device)
    if adjacency.ndim == 3:
        adjacency = adjacency.unsqueeze(1)  # (b, n, n) -> (b, 1, n, n)
    allowed = adjacency > 0
    if adjacency.dtype != torch.bool:
        scores = scores + torch.where(allowed, adjacency, 1).to(scores.dtype).log()
    # the lowest finite number instead of -inf: a row without neighbours gives no nan, and is zeroed afterwards
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1) * allowed
