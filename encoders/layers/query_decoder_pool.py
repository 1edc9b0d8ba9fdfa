"""Pool any number of tokens with one learned query that a small decoder refines; a soft-argmax for its attention.

With a single query, keys and values of the tokens need never be computed: the query is carried to the tokens' side of
the key projection, and the value projection acts on the weighted mean. The work per token is ``n_heads * width`` in
place of ``2 * width ** 2``.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class QueryDecoderPool(nn.Module):
    """Read one vector out of one or several streams of tokens.

    Parameters
    ----------
    width : int
        Of tokens and output.
    n_heads : int
        Divides ``width``.
    n_layers : int
        Decoder layers: cross-attention to all tokens and a feed-forward part, each behind a layer norm.
    feedforward : int
        Hidden width.
    dropout : float
    n_streams : int
        Streams of tokens that are told apart by a learned code, for example EEG, MEG and template.

    Raises
    ------
    ValueError
        If the heads do not divide the width.

    References
    ----------
    Yan et al. 2021, "Learning Spatio-Temporal Transformer for Visual Tracking" (STARK), arXiv:2103.17154: one object
    query over concatenated tokens of template and search region.
    """

    def __init__(
        self, width: int, n_heads: int = 8, n_layers: int = 2, feedforward: int = 256, dropout: float = 0.1,
        n_streams: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % n_heads:
            raise ValueError(f"width {width} is not a multiple of n_heads {n_heads}; choose sizes that divide")
        self.query = nn.Parameter(torch.randn(1, width) / math.sqrt(width))
        self.stream_code = nn.Parameter(0.02 * torch.randn(n_streams, width)) if n_streams > 1 else None
        self.n_streams = n_streams
        self.layers = nn.ModuleList(_DecoderLayer(width, n_heads, feedforward, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, *streams: Tensor, ignored: Tensor | None = None, prior: Tensor | None = None) -> Tensor:
        """Pool tokens.

        Parameters
        ----------
        *streams : Tensor, (b, n_i, width), float32
            As many as ``n_streams``; their order matters, the order of the tokens within one does not.
        ignored : Tensor, (b, sum of n_i), bool, optional
            Tokens without influence, over the concatenated streams.
        prior : Tensor, (n_heads, sum of n_i), float32, optional
            Added to the scores of every layer: what a head prefers whatever the tokens say, for example a latency.

        Returns
        -------
        Tensor, (b, width), float32

        Raises
        ------
        ValueError
            If the number of streams differs, or a sample has no token left.
        """
        query, _ = self._decode(streams, ignored, prior)
        pooled: Tensor = self.norm(query)
        return pooled

    def attention(self, *streams: Tensor, ignored: Tensor | None = None, prior: Tensor | None = None) -> Tensor:
        """Return how the last layer weighs the tokens, mean over heads, (b, sum of n_i); rows sum to 1 in eval mode."""
        _, weights = self._decode(streams, ignored, prior)
        return weights.mean(dim=1)

    def _decode(
        self, streams: tuple[Tensor, ...], ignored: Tensor | None, prior: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if len(streams) != self.n_streams:
            raise ValueError(f"got {len(streams)} streams of tokens, expected {self.n_streams}; pass one tensor each")
        if self.stream_code is not None:
            streams = tuple(one + code for one, code in zip(streams, self.stream_code, strict=True))
        tokens = torch.cat(streams, dim=1) if len(streams) > 1 else streams[0]
        if ignored is not None and bool(ignored.all(dim=1).any()):
            raise ValueError("a sample has no token left, expected at least one that is not ignored; drop the sample")
        query = self.query  # (1, w): the first layer asks the same of every sample
        weights = tokens.new_zeros(0)
        for layer in self.layers:
            query, weights = layer(query, tokens, ignored, prior)
        return query, weights


class _DecoderLayer(nn.Module):
    """Pre-norm cross-attention of one query per sample, and a feed-forward part."""

    def __init__(self, width: int, n_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query_norm = nn.LayerNorm(width)
        self.ask = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # a bias would add the same to all scores
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, feedforward), nn.GELU(), nn.Dropout(dropout), nn.Linear(feedforward, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, query: Tensor, tokens: Tensor, ignored: Tensor | None, prior: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        n, h = len(query), self.n_heads
        asked = self.ask(self.query_norm(query)).view(n, h, -1)
        # (b, h, d) x (h, d, w) -> (b, h, w): the query as the tokens' side of the key projection sees it
        asked = torch.einsum("bhd,hdw->bhw", asked, self.key.weight.view(h, -1, query.shape[1]))
        scores = asked @ tokens.transpose(1, 2) / math.sqrt(query.shape[1] // h)
        if prior is not None:
            scores = scores + prior
        if ignored is not None:
            scores = scores.masked_fill(ignored.unsqueeze(1), -math.inf)
        weights = self.dropout(scores.softmax(dim=-1))
        # weights sum to 1 (in eval mode), so the value's bias can be added behind the mean
        heads = torch.einsum("bhw,hdw->bhd", weights @ tokens, self.value.weight.view(h, -1, query.shape[1]))
        query = query + self.dropout(self.out(heads.flatten(1) + self.value.bias))
        return query + self.dropout(self.feed(self.feed_norm(query))), weights


def soft_argmax(weights: Tensor, coordinates: Tensor) -> Tensor:
    """Return the mean coordinate under a map of weights, a differentiable argmax.

    Parameters
    ----------
    weights : Tensor, (..., n), float32
        Not negative, not all 0; normalised here.
    coordinates : Tensor, (n,) or (n, k), float32
        Of each place on the map, for example latencies in s.

    Returns
    -------
    Tensor, (...) or (..., k), float32
    """
    return functional.normalize(weights, p=1, dim=-1) @ coordinates
