"""A learned mix over the layers (or blur levels) of a space: one target from a bank of members.

Each person may prefer other layers, so there is a small correction per person. It is left out for a share of the rows
in training and for everybody at inference: a target must not depend on whose brain it is compared with.
"""

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn


class LayerMixingConfig(BaseModel):
    """Settings of `LayerMixing`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[float, ...] = Field(min_length=2, description="number of each member: its layer, or its blur kernel")
    centre: float = Field(description="the member number that the prior prefers")
    spread: float = Field(gt=0, description="prior logits are -|layer - centre| / spread")
    subject_dropout: float = Field(default=0.3, ge=0, le=1, description="share of rows mixed with the global weights")
    projection_dim: int = Field(default=0, ge=0, description="linear map of each member before mixing; 0: none")

    @model_validator(mode="after")
    def _effective(self) -> "LayerMixingConfig":
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers {self.layers} holds a number twice; number each member once")
        return self


class LayerMixing(nn.Module):
    """Mix members with softmax weights: prior, plus learned logits, plus a person's own.

    Parameters
    ----------
    config : LayerMixingConfig
    embed_dim : int
        Width of one member.
    n_subjects : int
        People with their own logits; 0 for none.

    References
    ----------
    The router over layers of SAMGA (prior -|l - 28| / 4, subject dropout 0.3, global weights at inference),
    arXiv:2604.17782.
    """

    prior: Tensor

    def __init__(self, config: LayerMixingConfig, embed_dim: int, n_subjects: int = 0) -> None:
        super().__init__()
        self.config, self.n_subjects = config, n_subjects
        numbers = torch.tensor(config.layers, dtype=torch.float32)
        self.register_buffer("prior", -(numbers - config.centre).abs() / config.spread)
        self.global_logits = nn.Parameter(torch.zeros_like(numbers))
        self.subject_logits = nn.Parameter(torch.zeros(n_subjects, len(numbers))) if n_subjects else None
        width = config.projection_dim
        self.projections = None
        if width:  # without offsets: targets are centred, and the whole mix stays one linear map
            self.projections = nn.ModuleList(nn.Linear(embed_dim, width, bias=False) for _ in config.layers)
        self.embed_dim = width or embed_dim

    def weights(self, subject: Tensor | None = None) -> Tensor:
        """Give the weights of the members.

        Parameters
        ----------
        subject : Tensor, (n,), int64, optional
            Without it, or in eval mode, everyone's are the global ones.

        Returns
        -------
        Tensor, (n_members,) or (n, n_members), float32
            Sums to 1 over members.
        """
        logits = self.prior + self.global_logits
        if subject is None:
            return logits.softmax(dim=-1)
        logits = logits.expand(len(subject), -1)
        if self.training and self.subject_logits is not None:
            known = (subject < self.n_subjects).to(logits.device)  # a larger index means an unknown person
            heard = (torch.rand(len(subject)) >= self.config.subject_dropout).to(logits.device) & known
            own = self.subject_logits[subject.clamp(max=self.n_subjects - 1)]
            logits = logits + own * heard[:, None]
        return logits.softmax(dim=-1)

    def forward(self, members: Tensor, subject: Tensor | None = None) -> Tensor:
        """Mix a bank.

        Parameters
        ----------
        members : Tensor, (n, n_members, d), float32
            From `alignment.image_spaces.split_members`.
        subject : Tensor, (n,), int64, optional
            Whose brain each target is for; used in training only.

        Returns
        -------
        Tensor, (n, d) or (n, projection_dim), float32

        Raises
        ------
        ValueError
            If the number of members is not the config's.
        """
        if members.ndim != 3 or members.shape[1] != len(self.prior):
            raise ValueError(
                f"members {tuple(members.shape)} must be (n, {len(self.prior)}, d), one per layer of "
                f"{self.config.layers}; take the rows apart with split_members"
            )
        if self.projections is not None:
            mapped = [layer(members[:, i]) for i, layer in enumerate(self.projections)]
            members = torch.stack(mapped, dim=1)
        weights = self.weights(subject).expand(len(members), -1)
        return torch.einsum("nl,nld->nd", weights.to(members.dtype), members)

    def matrix(self, embed_dim: int) -> Tensor:
        """Give everybody's mix as one map of rows of members side by side, (n_members * d, d or projection_dim)."""
        weights = self.weights()
        if self.projections is None:
            parts = [weight * torch.eye(embed_dim, device=weight.device) for weight in weights]
        else:
            parts = [weight * layer.weight.T for weight, layer in zip(weights, self.projections, strict=True)]
        return torch.cat(parts)
