"""Late fusion without parameters: every encoder fills its own share of the embedding's coordinates.

A modality alone knows nothing of the other coordinates. They are zero, so its answer is compared with a picture on its
own share only; half of the target's coordinates must then be enough to tell pictures apart.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from encoders.build import AnyEncoderConfig, SignalShape
from encoders.separate_encoders import SeparateEncoders, build_encoders


class HalfConcatFusionConfig(BaseModel):
    """Options of `HalfConcatFusion`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["half_concat"] = "half_concat"
    modality_dropout: float = Field(0.0, ge=0, lt=1, description="chance per sample and modality, training only")

    def build(
        self, encoders: Mapping[str, AnyEncoderConfig], shapes: Mapping[str, SignalShape], embed_dim: int
    ) -> "HalfConcatFusion":
        """Build untrained encoders of width ``embed_dim / n`` and their fusion."""
        branches = build_encoders(encoders, shapes, share_of_width(embed_dim, len(encoders)))
        return HalfConcatFusion(branches, embed_dim, self)


def share_of_width(embed_dim: int, n_modalities: int) -> int:
    """Return the width of each of ``n_modalities`` branches (half of it for two).

    Raises
    ------
    ValueError
        If there are fewer than two modalities, or ``embed_dim`` does not divide among them.
    """
    if n_modalities < 2 or embed_dim % n_modalities:
        raise ValueError(
            f"the fusion 'half_concat' got {n_modalities} modalities for a width of {embed_dim}, expected at least two "
            "and a width that divides among them (an even one for two); change the target space or use 'concat'"
        )
    return embed_dim // n_modalities


class HalfConcatFusion(SeparateEncoders):
    """Put narrow embeddings side by side; those of missing modalities are zero.

    Parameters
    ----------
    encoders : Mapping of str to nn.Module
        At least two, all with output width ``embed_dim / n``.
    embed_dim : int
        Even for two modalities.
    config : HalfConcatFusionConfig
    """

    def __init__(self, encoders: Mapping[str, nn.Module], embed_dim: int, config: HalfConcatFusionConfig) -> None:
        width = share_of_width(embed_dim, len(encoders))
        super().__init__(encoders, embed_dim, config.modality_dropout, branch_width=width)

    def alone(self, name: str, embeds: Tensor) -> Tensor:
        """Place the embedding of one modality (b, embed_dim / n) among zeros, (b, embed_dim)."""
        nothing = torch.zeros_like(embeds)
        return torch.cat([embeds if one == name else nothing for one in self.modalities], dim=-1)

    def combine(self, embeds: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Tensor:
        """Fuse per-modality embeddings of the same samples; see `SeparateEncoders.combine`."""
        return torch.cat([embeds[name].masked_fill(~available[name][:, None], 0) for name in self.modalities], dim=-1)
