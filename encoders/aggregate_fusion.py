"""Late fusion of separate encoders by one of the aggregations: concatenation, sum, and what else there is.

Every embedding is layer-normalised first (no parameters), or the louder modality would win. With one modality present
the answer is that encoder's own embedding, untouched, unless ``missing="token"``.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from encoders.aggregation import Kind, aggregator
from encoders.build import AnyEncoderConfig, SignalShape
from encoders.separate_encoders import SeparateEncoders, build_encoders

DEFAULT_RANK = 256


Missing = Literal["own", "token"]


class AggregateFusionConfig(BaseModel):
    """Options of `AggregateFusion`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["aggregate"] = "aggregate"
    kind: Kind = "gated"
    rank: int = Field(0, ge=0, description="factors of lowrank_bilinear (0: 256); no other kind has any")
    missing: Missing = Field("own", description="own: a modality alone answers by itself; token: a learned stand-in")
    modality_dropout: float = Field(0.0, ge=0, lt=1, description="chance per sample and modality, training only")

    def build(
        self, encoders: Mapping[str, AnyEncoderConfig], shapes: Mapping[str, SignalShape], embed_dim: int
    ) -> "AggregateFusion":
        """Build untrained encoders and their fusion."""
        return AggregateFusion(build_encoders(encoders, shapes, embed_dim), embed_dim, self)


class AggregateFusion(SeparateEncoders):
    """Make one embedding of the encoders' embeddings by a fixed or learned aggregation.

    Parameters
    ----------
    encoders : Mapping of str to nn.Module
        At least two, all with output width ``embed_dim``.
    embed_dim : int
    config : AggregateFusionConfig

    Raises
    ------
    ValueError
        If there are fewer than two encoders, or a rank is given to a kind that has none.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], embed_dim: int, config: AggregateFusionConfig) -> None:
        super().__init__(encoders, embed_dim, config.modality_dropout)
        if len(encoders) < 2:
            raise ValueError(
                f"fusion of kind {config.kind!r} got the encoders {list(encoders)}, expected at least two; use the "
                "fusion 'single' for one modality"
            )
        if config.rank and config.kind != "lowrank_bilinear":
            raise ValueError(
                f"rank {config.rank} has no effect with kind {config.kind!r}, expected 0; use kind 'lowrank_bilinear' "
                "or remove the rank"
            )
        self.aggregate = aggregator(config.kind, len(encoders), embed_dim, config.rank or DEFAULT_RANK)
        self.tokens = nn.Parameter(torch.zeros(len(encoders), 1, embed_dim)) if config.missing == "token" else None

    def alone(self, name: str, embeds: Tensor) -> Tensor:
        """Give the answer of one modality: its embedding, or the aggregation with stand-ins for the others."""
        if self.tokens is None:
            return embeds
        everyone = torch.ones(len(embeds), dtype=torch.bool, device=embeds.device)
        available = {one: everyone if one == name else ~everyone for one in self.modalities}
        return self.combine(dict.fromkeys(self.modalities, embeds), available)

    def combine(self, embeds: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Tensor:
        """Fuse per-modality embeddings of the same samples; see `SeparateEncoders.combine`."""
        present = torch.stack([available[name] for name in self.modalities])
        single = torch.stack([embeds[name] for name in self.modalities]).masked_fill(~present.unsqueeze(-1), 0)
        inputs = functional.layer_norm(single, single.shape[-1:])
        if self.tokens is not None:
            inputs = torch.where(present.unsqueeze(-1), inputs, self.tokens.to(inputs))
            everything: Tensor = self.aggregate(inputs, torch.ones_like(present))
            return everything
        joint = self.aggregate(inputs, present)
        is_joint = (present.sum(dim=0) > 1).unsqueeze(-1)
        return torch.where(is_joint, joint, single.sum(dim=0))


class ConcatFusionConfig(BaseModel):
    """Late fusion by one dense layer over the embeddings side by side: `AggregateFusion` of kind ``concat``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["concat"] = "concat"
    modality_dropout: float = Field(0.0, ge=0, lt=1, description="chance per sample and modality, training only")

    def build(
        self, encoders: Mapping[str, AnyEncoderConfig], shapes: Mapping[str, SignalShape], embed_dim: int
    ) -> "AggregateFusion":
        """Build untrained encoders and their fusion."""
        config = AggregateFusionConfig(kind="concat", modality_dropout=self.modality_dropout)
        return config.build(encoders, shapes, embed_dim)


class AddFusionConfig(BaseModel):
    """Late fusion by the sum of the embeddings, without parameters: `AggregateFusion` of kind ``add``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["add"] = "add"
    modality_dropout: float = Field(0.0, ge=0, lt=1, description="chance per sample and modality, training only")

    def build(
        self, encoders: Mapping[str, AnyEncoderConfig], shapes: Mapping[str, SignalShape], embed_dim: int
    ) -> "AggregateFusion":
        """Build untrained encoders and their fusion."""
        config = AggregateFusionConfig(kind="add", modality_dropout=self.modality_dropout)
        return config.build(encoders, shapes, embed_dim)
