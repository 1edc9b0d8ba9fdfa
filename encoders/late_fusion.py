"""Late fusion of one encoder per modality into one target space; any non-empty subset of modalities may be present.

With one modality present the output is that encoder's own embedding, untouched. With several, each embedding passes
its joint head (identity at first) and the results are averaged with learned confidences. Encoder outputs are not
normalised in between, so a long embedding (strong evidence) outweighs a short one.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from encoders.build import AnyEncoderConfig, SignalShape
from encoders.separate_encoders import SeparateEncoders, build_encoders


class LateFusionConfig(BaseModel):
    """Options of `LateFusion`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["late"] = "late"
    modality_dropout: float = Field(0.3, ge=0, lt=1, description="chance per sample and modality, training only")
    joint_heads: bool = Field(True, description="a linear map per modality, used only when several are present")
    confidence_gate: bool = Field(True, description="weights depend on the sample; otherwise one weight per modality")

    def build(
        self, encoders: Mapping[str, AnyEncoderConfig], shapes: Mapping[str, SignalShape], embed_dim: int
    ) -> "LateFusion":
        """Build untrained encoders and their fusion."""
        return LateFusion(build_encoders(encoders, shapes, embed_dim), embed_dim, self)


class LateFusion(SeparateEncoders):
    """Combine one encoder per modality, gated by what is available for each sample.

    Parameters
    ----------
    encoders : Mapping of str to nn.Module
        Modality name to a network of `encoders.build`, all with output width ``embed_dim``.
    embed_dim : int
        Width of the target space.
    config : LateFusionConfig

    Raises
    ------
    ValueError
        If ``encoders`` is empty.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], embed_dim: int, config: LateFusionConfig) -> None:
        super().__init__(encoders, embed_dim, config.modality_dropout)
        self.heads = nn.ModuleDict()
        self.gates = nn.ModuleDict()
        for name in self.modalities if len(encoders) > 1 else ():
            if config.joint_heads:
                self.heads[name] = _identity_linear(embed_dim)
            self.gates[name] = _Gate(embed_dim, config.confidence_gate)

    def combine(self, embeds: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Tensor:
        """Fuse per-modality embeddings of the same samples; see `SeparateEncoders.combine`."""
        if len(self.modalities) == 1:
            return embeds[self.modalities[0]]
        masks = torch.stack([available[name] for name in self.modalities])
        single = torch.stack(
            [embeds[name].masked_fill(~mask[:, None], 0) for name, mask in zip(self.modalities, masks, strict=True)]
        )
        logits = torch.stack([self.gates[name](one) for name, one in zip(self.modalities, single, strict=True)])
        weights = logits.masked_fill(~masks, -math.inf).softmax(dim=0)
        joint = single
        if len(self.heads) > 0:
            joint = torch.stack([self.heads[name](one) for name, one in zip(self.modalities, single, strict=True)])
        joint = (weights.unsqueeze(-1) * joint).sum(dim=0)
        is_joint = (masks.sum(dim=0) > 1).unsqueeze(-1)
        return torch.where(is_joint, joint, single.sum(dim=0))


class _Gate(nn.Module):
    """Score how much one modality's embedding of a sample is worth; equal for all at the start."""

    def __init__(self, embed_dim: int, per_sample: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))
        self.direction = nn.Linear(embed_dim, 1, bias=False) if per_sample else None
        if self.direction is not None:
            nn.init.zeros_(self.direction.weight)

    def forward(self, embeds: Tensor) -> Tensor:
        if self.direction is None:
            return self.bias.expand(len(embeds))
        scale = embeds.square().mean(dim=-1, keepdim=True).add(1e-6).rsqrt()
        score: Tensor = self.direction(embeds * scale).squeeze(-1)
        return self.bias + score


def _identity_linear(width: int) -> nn.Linear:
    linear = nn.Linear(width, width)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
