"""Late fusion of one encoder per modality into one target space; any non-empty subset of modalities may be present.

With one modality present the output is that encoder's own embedding, untouched. With several, each embedding passes
its joint head (identity at first) and the results are averaged with learned confidences. Encoder outputs are not
normalised in between, so a long embedding (strong evidence) outweighs a short one.
"""

import math
from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class LateFusionConfig(BaseModel):
    """Options of `LateFusion`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality_dropout: float = Field(0.3, ge=0, lt=1, description="chance per sample and modality, training only")
    joint_heads: bool = Field(True, description="a linear map per modality, used only when several are present")
    confidence_gate: bool = Field(True, description="weights depend on the sample; otherwise one weight per modality")


class LateFusion(nn.Module):
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
        super().__init__()
        if not encoders:
            raise ValueError("late fusion got no encoders, expected at least one; pass {'eeg': encoder, ...}")
        self.modalities = tuple(encoders)
        self.embed_dim = embed_dim
        self.modality_dropout = config.modality_dropout
        self.encoders = nn.ModuleDict(dict(encoders))
        self.heads = nn.ModuleDict()
        self.gates = nn.ModuleDict()
        for name in self.modalities if len(encoders) > 1 else ():
            if config.joint_heads:
                self.heads[name] = _identity_linear(embed_dim)
            self.gates[name] = _Gate(embed_dim, config.confidence_gate)

    def embed_each(
        self,
        data: Mapping[str, Tensor],
        positions: Mapping[str, Tensor],
        subject: Tensor,
        available: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run every encoder on the samples that have its modality.

        Parameters
        ----------
        data, positions, subject, available
            As in `forward`.

        Returns
        -------
        embeds : dict of str to Tensor, (b, d), float32
            One entry per modality of the model; rows without that modality are zero.
        available : dict of str to Tensor, (b,), bool
            Which rows count. No modality dropout is applied here, so a loss may use each encoder's own embedding
            and ``combine(embeds, available)`` of the same pass.
        """
        masks = self._availability(data, available, subject)
        embeds = {}
        for name in self.modalities:
            rows = masks[name]
            if bool(rows.all()):
                embeds[name] = self.encoders[name](data[name], positions[name], subject)
                continue
            embeds[name] = subject.new_zeros((len(subject), self.embed_dim), dtype=torch.float32)
            if bool(rows.any()):
                place = positions[name]
                some = self.encoders[name](data[name][rows], place if place.dim() == 2 else place[rows], subject[rows])
                embeds[name] = embeds[name].to(some.dtype).index_put((rows.nonzero()[:, 0],), some)
        return embeds, masks

    def combine(self, embeds: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Tensor:
        """Fuse per-modality embeddings of the same samples.

        Parameters
        ----------
        embeds : Mapping of str to Tensor, (b, d), float32
            One entry per modality of the model; rows marked unavailable are ignored.
        available : Mapping of str to Tensor, (b,), bool
            At least one modality per row.

        Returns
        -------
        Tensor, (b, d), float32
        """
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

    def forward(
        self,
        data: Mapping[str, Tensor],
        positions: Mapping[str, Tensor],
        subject: Tensor,
        available: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Embed samples from whatever modalities they have.

        Parameters
        ----------
        data : Mapping of str to Tensor, (b, c, t), float32
            Any subset of the model's modalities; a modality left out is missing for all samples.
        positions : Mapping of str to Tensor, (c, 2) or (b, c, 2), float32
            For the same modalities.
        subject : Tensor, (b,), int64
            Index of the person; ``n_subjects`` for an unknown one.
        available : Mapping of str to Tensor, (b,), bool, optional
            Which samples have the modality; all of them for a modality without an entry. What ``data`` holds in the
            other rows (zeros, NaN, another recording) has no influence.

        Returns
        -------
        Tensor, (b, d), float32

        Raises
        ------
        ValueError
            If a sample has no modality, or a name is not one of the model's.
        """
        if self.training and self.modality_dropout > 0:
            available = self._drop(self._availability(data, available, subject))
            data = {name: one for name, one in data.items() if bool(available[name].any())}
        embeds, masks = self.embed_each(data, positions, subject, available)
        return self.combine(embeds, masks)

    def _availability(
        self, data: Mapping[str, Tensor], available: Mapping[str, Tensor] | None, subject: Tensor
    ) -> dict[str, Tensor]:
        given = dict(available or {})
        unknown = sorted((set(data) | set(given)) - set(self.modalities))
        if unknown:
            raise ValueError(f"fusion got the modalities {unknown}, expected some of {list(self.modalities)}")
        everyone = torch.ones_like(subject, dtype=torch.bool)
        masks = {
            name: given.get(name, everyone).to(everyone) if name in data else ~everyone for name in self.modalities
        }
        nothing = ~torch.stack(list(masks.values())).any(dim=0)
        if len(subject) == 0 or bool(nothing.any()):
            raise ValueError(
                f"fusion got {int(nothing.sum())} of {len(subject)} samples without any modality, expected at least "
                f"one of {list(self.modalities)} for each; drop those samples or pass a recording"
            )
        return masks

    def _drop(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Hide each modality of a sample with the dropout chance; samples that would lose all keep all."""
        stacked = torch.stack([masks[name] for name in self.modalities])
        keep = stacked & (torch.rand(stacked.shape) >= self.modality_dropout).to(stacked.device)
        keep = torch.where(keep.any(dim=0), keep, stacked)
        return dict(zip(self.modalities, keep, strict=True))


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
