"""Transformer layers in which two sequences of tokens attend to each other, in three published styles.

``albef``: the first sequence attends to itself and to the second, which stays as it is. ``bidirectional``: one matrix
of scores serves both directions, softmax along either axis. ``two_way``: the first attends to itself and to the
second, then the second to the first. All add to the stream itself (standard pre-norm residuals, each with a learned
LayerScale), and every set of keys has a learned null token besides, so that a sequence without any token is no 0 / 0.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Style = Literal["albef", "bidirectional", "two_way"]
MAX_SCORE = 50_000.0
MLP_RATIO = 4


class TokenAttention(nn.Module):
    """Multi-head attention of one sequence over another (or itself), with a null token among the keys.

    Parameters
    ----------
    width : int
    heads : int
        Divides ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm, self.key_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.null = nn.Parameter(0.02 * torch.randn(width))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def weights(self, queries: Tensor, keys: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return attention weights (b, h, n_queries, 1 + n_keys), null token first, and values of the same keys."""
        keys, present = _with_null(self.key_norm(keys), present, self.null)
        query = _split(self.query(self.query_norm(queries)), self.heads)
        key, value = (_split(part, self.heads) for part in self.key_value(keys).chunk(2, dim=-1))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        return _masked_softmax(scores, present[:, None, None]), value

    def forward(self, queries: Tensor, keys: Tensor, present: Tensor) -> Tensor:
        """Return what to add to ``queries`` (b, n, d), from ``keys`` (b, k, d) marked in ``present`` (b, k), bool."""
        weights, value = self.weights(queries, keys, present)
        out: Tensor = self.out(_merge(weights @ value))
        return out


class SharedScores(nn.Module):
    """Cross-attention in both directions from one matrix of scores, clamped to +-50,000.

    References
    ----------
    Liu et al. 2023, "Grounding DINO", arXiv:2303.05499 (feature enhancer).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.nulls = nn.Parameter(0.02 * torch.randn(2, width))
        self.queries = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.values = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def weights(
        self, first: Tensor, second: Tensor, first_present: Tensor, second_present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return weights of first over second (b, h, n, 1 + m) and of second over first (b, h, m, 1 + n)."""
        (a, b), present = self._keys(first, second, first_present, second_present)
        return self._weights(a, b, *present)

    def forward(
        self, first: Tensor, second: Tensor, first_present: Tensor, second_present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what to add to each sequence, (b, n, d) and (b, m, d)."""
        (a, b), present = self._keys(first, second, first_present, second_present)
        over_second, over_first = self._weights(a, b, *present)
        from_first, from_second = (_split(self.values[i](one), self.heads) for i, one in enumerate((a, b)))
        return self.outs[0](_merge(over_second @ from_second)), self.outs[1](_merge(over_first @ from_first))

    def _keys(
        self, first: Tensor, second: Tensor, first_present: Tensor, second_present: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        a, a_present = _with_null(self.norms[0](first), first_present, self.nulls[0])
        b, b_present = _with_null(self.norms[1](second), second_present, self.nulls[1])
        return (a, b), (a_present, b_present)

    def _weights(self, a: Tensor, b: Tensor, a_present: Tensor, b_present: Tensor) -> tuple[Tensor, Tensor]:
        left, right = (_split(self.queries[i](one), self.heads) for i, one in enumerate((a, b)))
        scores = left @ right.transpose(-1, -2) / math.sqrt(left.shape[-1])
        over_second = _masked_softmax(scores[:, :, 1:], b_present[:, None, None])
        over_first = _masked_softmax(scores[:, :, :, 1:].transpose(-1, -2), a_present[:, None, None])
        return over_second, over_first


class LayerScale(nn.Module):
    """A learned factor per feature on a residual branch; at 0 the branch does nothing."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), start))

    def forward(self, update: Tensor) -> Tensor:
        return self.scale * update


class MLP(nn.Module):
    """Two dense layers with GELU in between, after a layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, MLP_RATIO * width), nn.Linear(MLP_RATIO * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.down(functional.gelu(self.up(self.norm(tokens))))
        return out


class AlbefLayer(nn.Module):
    """Self-attention, cross-attention and MLP on the first sequence; the second is only looked at.

    References
    ----------
    Li et al. 2021, "Align before fuse", NeurIPS, arXiv:2107.07651 (multimodal encoder).
    """

    def __init__(self, width: int, heads: int, scale: float) -> None:
        super().__init__()
        self.itself, self.cross, self.mlp = TokenAttention(width, heads), TokenAttention(width, heads), MLP(width)
        self.scales = nn.ModuleList(LayerScale(width, scale) for _ in range(3))

    def forward(
        self, first: Tensor, second: Tensor, first_present: Tensor, second_present: Tensor
    ) -> tuple[Tensor, Tensor]:
        first = first + self.scales[0](self.itself(first, first, first_present))
        first = first + self.scales[1](self.cross(first, second, second_present))
        return first + self.scales[2](self.mlp(first)), second


class BidirectionalLayer(nn.Module):
    """Cross-attention in both directions from shared scores, then an MLP on each sequence."""

    def __init__(self, width: int, heads: int, scale: float) -> None:
        super().__init__()
        self.cross = SharedScores(width, heads)
        self.mlps = nn.ModuleList(MLP(width) for _ in range(2))
        self.scales = nn.ModuleList(LayerScale(width, scale) for _ in range(4))

    def forward(
        self, first: Tensor, second: Tensor, first_present: Tensor, second_present: Tensor
    ) -> tuple[Tensor, Tensor]:
        to_first, to_second = self.cross(first, second, first_present, second_present)
        first, second = first + self.scales[0](to_first), second + self.scales[1](to_second)
        return first + self.scales[2](self.mlps[0](first)), second + self.scales[3](self.mlps[1](second))


class TwoWayLayer(nn.Module):
    """Self-attention of the first sequence, first over second, MLP, then second over first.

    References
    ----------
    Kirillov et al. 2023, "Segment anything", ICCV, arXiv:2304.02643 (mask decoder).
    """

    def __init__(self, width: int, heads: int, scale: float) -> None:
        super().__init__()
        self.itself, self.there, self.back = (TokenAttention(width, heads) for _ in range(3))
        self.mlp = MLP(width)
        self.scales = nn.ModuleList(LayerScale(width, scale) for _ in range(4))

    def forward(
        self, first: Tensor, second: Tensor, first_present: Tensor, second_present: Tensor
    ) -> tuple[Tensor, Tensor]:
        first = first + self.scales[0](self.itself(first, first, first_present))
        first = first + self.scales[1](self.there(first, second, second_present))
        first = first + self.scales[2](self.mlp(first))
        return first, second + self.scales[3](self.back(second, first, first_present))


LAYERS: dict[str, type[AlbefLayer] | type[BidirectionalLayer] | type[TwoWayLayer]] = {
    "albef": AlbefLayer,
    "bidirectional": BidirectionalLayer,
    "two_way": TwoWayLayer,
}


class TokenFusion(nn.Module):
    """A stack of layers of one style.

    Parameters
    ----------
    style : "albef", "bidirectional" or "two_way"
    n_layers, width, heads : int
    layer_scale : float
        Start of every residual branch's factor.

    Raises
    ------
    ValueError
        If ``heads`` does not divide ``width``.
    """

    def __init__(self, style: Style, n_layers: int, width: int, heads: int, layer_scale: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide among {heads} heads; choose a multiple of the heads")
        self.layers = nn.ModuleList(LAYERS[style](width, heads, layer_scale) for _ in range(n_layers))

    def forward(
        self, first: Tensor, second: Tensor, first_present: Tensor, second_present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Let two sequences read each other.

        Parameters
        ----------
        first, second : Tensor, (b, n, d) and (b, m, d)
        first_present, second_present : Tensor, (b, n) and (b, m), bool
            Tokens that count. All of a sequence may be missing, and n or m may be 0.

        Returns
        -------
        tuple of Tensor
            As ``first`` and ``second``. Absent tokens have no influence on others.
        """
        for layer in self.layers:
            first, second = layer(first, second, first_present, second_present)
        return first, second


def _with_null(tokens: Tensor, present: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    """Put the null token, always present, in front."""
    n = len(tokens)
    everyone = present.new_ones(n, 1)
    return torch.cat([null.to(tokens).expand(n, 1, -1), tokens], dim=1), torch.cat([everyone, present], dim=1)


def _masked_softmax(scores: Tensor, present: Tensor) -> Tensor:
    return scores.clamp(-MAX_SCORE, MAX_SCORE).masked_fill(~present, -math.inf).softmax(dim=-1)


def _split(tokens: Tensor, heads: int) -> Tensor:
    n, length, width = tokens.shape
    return tokens.reshape(n, length, heads, width // heads).transpose(1, 2)  # (b, n, h * e) -> (b, h, n, e)


def _merge(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).flatten(2)  # (b, h, n, e) -> (b, n, h * e)
