"""Fusion by transformer layers between the token sequences of two encoders.

The joint answer is a dense layer over both embeddings (as in the fusion ``concat``) plus what learned queries read
from the fused tokens, which starts at zero: the layers add to the late fusion, they need not replace it. With one
modality present the answer is that encoder's own embedding, untouched.
"""

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from encoders.aggregation import Concat
from encoders.build import AnyEncoderConfig, SignalShape
from encoders.separate_encoders import SeparateEncoders, build_encoders, person_of, rows_of
from encoders.token_fusion import Style, TokenAttention, TokenFusion


@runtime_checkable
class TokenEncoder(Protocol):
    """An encoder whose features are a sequence: what stands before its pooling and dense layers."""

    token_width: int

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor: ...


class CrossAttentionFusionConfig(BaseModel):
    """Options of `CrossAttentionFusion`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["cross_attention"] = "cross_attention"
    style: Style = Field("bidirectional", description="see encoders.token_fusion")
    layers: int = Field(2, gt=0)
    width: int = Field(256, gt=0, description="of the tokens inside the layers")
    heads: int = Field(8, gt=0)
    layer_scale: float = Field(1e-4, ge=0, description="start of the residual branches")
    n_queries: int = Field(8, gt=0, description="learned queries that read the fused tokens")
    modality_dropout: float = Field(0.0, ge=0, lt=1, description="chance per sample and modality, training only")

    def build(
        self, encoders: Mapping[str, AnyEncoderConfig], shapes: Mapping[str, SignalShape], embed_dim: int
    ) -> "CrossAttentionFusion":
        """Build untrained encoders and their fusion."""
        return CrossAttentionFusion(build_encoders(encoders, shapes, embed_dim), embed_dim, self)


class CrossAttentionFusion(SeparateEncoders):
    """Let the tokens of two encoders attend to each other.

    Parameters
    ----------
    encoders : Mapping of str to nn.Module
        Two networks with ``tokens`` and ``token_width``, all with output width ``embed_dim``. The first one's tokens
        are the stream that looks in the styles ``albef`` and ``two_way``.
    embed_dim : int
    config : CrossAttentionFusionConfig

    Raises
    ------
    ValueError
        If there are not two encoders, or one has no tokens.

    References
    ----------
    The layers: see `encoders.token_fusion`. That they add to a late fusion, and how they are pooled, is ours.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], embed_dim: int, config: CrossAttentionFusionConfig) -> None:
        super().__init__(encoders, embed_dim, config.modality_dropout)
        if len(encoders) != 2:
            raise ValueError(
                f"the fusion 'cross_attention' got the modalities {list(encoders)}, expected exactly two; use 'late' "
                "for another number"
            )
        width = config.width
        self.token_maps = nn.ModuleDict()
        for name, encoder in encoders.items():
            if not isinstance(encoder, TokenEncoder):
                raise ValueError(
                    f"the fusion 'cross_attention' got {type(encoder).__name__} for {name!r}, expected an encoder with "
                    "tokens(); use another encoder or the fusion 'late'"
                )
            self.token_maps[name] = nn.Linear(encoder.token_width, width)
        self.layers = TokenFusion(config.style, config.layers, width, config.heads, config.layer_scale)
        self.reads_second = config.style != "albef"
        self.queries = nn.Parameter(torch.randn(1, config.n_queries, width))
        self.pool = TokenAttention(width, config.heads)
        self.base = Concat(2, embed_dim)
        self.head = nn.Linear(config.n_queries * width, embed_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def tokens_each(
        self, data: Mapping[str, Tensor], positions: Mapping[str, Tensor], subject: Tensor
    ) -> dict[str, Tensor]:
        """Return the encoders' tokens of samples that have both modalities, each (b, n_tokens, token_width)."""
        tokens = {}
        for place, name in enumerate(self.modalities):
            encoder = self.encoders[name]
            assert isinstance(encoder, TokenEncoder)
            tokens[name] = encoder.tokens(data[name], positions[name], person_of(subject, place))
        return tokens

    def join(self, embeds: Mapping[str, Tensor], tokens: Mapping[str, Tensor]) -> Tensor:
        """Fuse samples that have both modalities.

        Parameters
        ----------
        embeds : Mapping of str to Tensor, (b, embed_dim), float32
        tokens : Mapping of str to Tensor, (b, n_tokens, token_width), float32

        Returns
        -------
        Tensor, (b, embed_dim), float32
        """
        inputs = torch.stack([functional.layer_norm(embeds[name], (self.embed_dim,)) for name in self.modalities])
        streams = [_with_order(self.token_maps[name](tokens[name])) for name in self.modalities]
        present = [torch.ones(one.shape[:2], dtype=torch.bool, device=one.device) for one in streams]
        first, second = self.layers(*streams, *present)
        read = torch.cat([first, second], dim=1) if self.reads_second else first
        everything = torch.ones(read.shape[:2], dtype=torch.bool, device=read.device)
        pooled = self.pool(self.queries.to(read).expand(len(read), -1, -1), read, everything)
        both = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        joint: Tensor = self.base(inputs, both) + self.head(pooled.flatten(1))
        return joint

    def fuse(
        self,
        embeds: Mapping[str, Tensor],
        available: Mapping[str, Tensor],
        data: Mapping[str, Tensor],
        positions: Mapping[str, Tensor],
        subject: Tensor,
        *,
        detached: bool,
    ) -> Tensor:
        """Fuse the samples that have both modalities, by their tokens; see `SeparateEncoders.fuse`."""
        single = torch.stack([embeds[name].masked_fill(~available[name][:, None], 0) for name in self.modalities])
        out = single.sum(dim=0)
        rows = torch.stack([available[name] for name in self.modalities]).all(dim=0)
        if not bool(rows.any()):
            return out
        some = {name: rows_of(rows, data[name], positions[name], subject) for name in self.modalities}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detached):
            tokens = self.tokens_each(
                {name: one[0] for name, one in some.items()}, {name: one[1] for name, one in some.items()},
                subject[rows],
            )  # fmt: skip
        joint = self.join({name: embeds[name][rows] for name in self.modalities}, tokens)
        return out.to(joint.dtype).index_put((rows.nonzero()[:, 0],), joint)


def _with_order(tokens: Tensor) -> Tensor:
    """Add sines and cosines of the token's index (b, n, d), wavelengths from 2 pi to 10,000 times that."""
    n, width = tokens.shape[1:]
    half = torch.arange((width + 1) // 2, device=tokens.device) / ((width + 1) // 2)
    phase = torch.arange(n, device=tokens.device)[:, None] / 10_000.0**half
    return tokens + torch.cat([phase.sin(), phase.cos()], dim=1)[:, :width].to(tokens)
