"""The trained map on the picture's side: out of one embedding, or a bank of layers or blur levels, into a shared space.

Mix and map are linear, so after training they are one matrix, `TargetMap.basis`, and retrieval needs nothing else.
"""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from alignment.layer_mixing import LayerMixing, LayerMixingConfig


class TargetMapConfig(BaseModel):
    """Settings of `TargetMap`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embed_dim: int = Field(default=0, ge=0, description="width of the shared space; 0: that of one target")
    mixing: LayerMixingConfig | None = Field(default=None, description="targets are banks of these members")

    @property
    def n_members(self) -> int:
        return 1 if self.mixing is None else len(self.mixing.layers)

    def width(self, target_dim: int) -> int:
        """Give the width of the shared space for targets of a width."""
        if target_dim % self.n_members:
            raise ValueError(
                f"targets of width {target_dim} do not divide into the {self.n_members} layers of target_map.mixing; "
                "name every layer or blur level of the space"
            )
        own = target_dim // self.n_members
        if self.mixing is not None and self.mixing.projection_dim:
            own = self.mixing.projection_dim
        return self.embed_dim or own


class TargetMap(nn.Module):
    """Mix, if there is a bank, then a linear map: the identity at first, or a random rotation into fewer dimensions.

    Parameters
    ----------
    config : TargetMapConfig
    target_dim : int
        Width of a row of targets.
    n_subjects : int
        People with layer weights of their own; 0 for none.
    """

    def __init__(self, config: TargetMapConfig, target_dim: int, n_subjects: int = 0) -> None:
        super().__init__()
        self.embed_dim = config.width(target_dim)
        self.member_dim = target_dim // config.n_members
        self.mixing = None if config.mixing is None else LayerMixing(config.mixing, self.member_dim, n_subjects)
        inner = self.member_dim if self.mixing is None else self.mixing.embed_dim
        self.weight = nn.Parameter(torch.empty(self.embed_dim, inner))
        self.keeps_targets = self.mixing is None and self.embed_dim == target_dim
        if self.embed_dim == inner:
            nn.init.eye_(self.weight)
        else:  # the same for every answer, and no draw from the generator that the networks start from
            nn.init.orthogonal_(self.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, target: Tensor, subject: Tensor | None = None) -> Tensor:
        """Map standardised targets.

        Parameters
        ----------
        target : Tensor, (n, target_dim), float32
        subject : Tensor, (n,), int64, optional
            Whose brain each target is for; matters to a mix in training only.

        Returns
        -------
        Tensor, (n, embed_dim), float32
        """
        if self.mixing is not None:
            members = target.reshape(len(target), -1, self.member_dim)
            target = self.mixing(members, subject)
        return nn.functional.linear(target, self.weight)

    @torch.no_grad()
    def basis(self) -> Tensor:
        """Give mix and map, as everybody uses them after training, in one matrix (target_dim, embed_dim)."""
        if self.mixing is None:
            return self.weight.detach().T
        return self.mixing.matrix(self.member_dim) @ self.weight.T
