"""From a config to a loss: the union of known losses on ``name``.

A loss has learned numbers (a temperature, a bias) and maybe a memory, so it is a module; but with several processes
only what a wrapped module's ``forward`` returns gets averaged gradients, while the loss needs gathered rows. Hence two
steps: ``learned = loss()`` inside the trained module's forward, ``loss.compute(pairs, learned)`` outside.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from alignment.contrastive_losses import (
    brain_module_loss,
    distilled_labels,
    image_similarity_labels,
    multi_positive_info_nce,
    siglip_loss,
    soft_label_loss,
)
from alignment.losses import AlignmentLossConfig, LogitScale, combined_loss, cosine_loss, info_nce, mse
from alignment.memory_queue import MemoryQueue

Learned = Mapping[str, Tensor]
Parts = dict[str, Tensor]
ScaleKind = Literal["exp", "softplus", "fixed"]


@dataclass(frozen=True)
class EmbedPairs:
    """What every loss compares, gathered over processes.

    Attributes
    ----------
    brain, image : Tensor, (n, d), float32
        Embeddings and (standardised) targets, row by row of the same stimulus.
    stimulus : Tensor, (n,), int64, optional
        Picture of each row.
    mapped : Tensor, (n, d), float32, optional
        Targets after a learned map; contrastive losses see these. The others do not: a map that may move the target
        would solve them by sending everything to one point.
    teacher : Tensor, (n, d), float32, optional
        Brain embeddings of a teacher, for `DistilledLossConfig`.
    """

    brain: Tensor
    image: Tensor
    stimulus: Tensor | None = None
    mapped: Tensor | None = None
    teacher: Tensor | None = None

    @property
    def compared(self) -> Tensor:
        return self.image if self.mapped is None else self.mapped


class _LossConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InfoNCEConfig(_LossConfig):
    """InfoNCE: ``info_nce`` leaves repeated pictures out, ``multi_positive`` takes them as further positives.

    UBP and NeuroBridge: ``scale="softplus"`` (or "fixed"), ``normalize_brain=False``. NICE: ``scale="fixed"``.
    """

    name: Literal["info_nce", "multi_positive"] = "info_nce"
    temperature: float = Field(default=0.07, gt=0.01, le=1, description="its inverse is the first logit scale of exp")
    scale: ScaleKind = Field(default="exp", description="softplus starts at log(1 + 1 / temperature)")
    normalize_brain: bool = True
    image_map: bool = Field(default=True, description="train a linear map on the picture's side as well")
    queue_size: int = Field(default=0, ge=0, description="targets of earlier steps that serve as negatives")

    def compute(self, pairs: EmbedPairs, learned: Learned, queue: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Parts]:
        scale = learned["logit_scale"]
        if self.name == "info_nce" and self.normalize_brain and queue is None:
            loss = info_nce(pairs.brain, pairs.compared, scale, pairs.stimulus)
        else:
            loss = multi_positive_info_nce(
                pairs.brain, pairs.compared, scale, pairs.stimulus, positives=self.name == "multi_positive",
                normalize_brain=self.normalize_brain, queue=queue,
            )  # fmt: skip
        return loss, {"contrastive": loss.detach()}


class BrainModuleLossConfig(_LossConfig):
    """`brain_module_loss`."""

    name: Literal["brain_module"] = "brain_module"
    image_map: bool = False
    queue_size: int = Field(default=0, ge=0)

    def compute(self, pairs: EmbedPairs, learned: Learned, queue: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Parts]:
        loss = brain_module_loss(pairs.brain, pairs.compared, pairs.stimulus, queue=queue)
        return loss, {"contrastive": loss.detach()}


class SigLIPLossConfig(_LossConfig):
    """`siglip_loss`."""

    name: Literal["siglip"] = "siglip"
    temperature: float = Field(default=0.1, gt=0.01, le=1)
    logit_bias: float = -10.0
    image_map: bool = True

    def compute(self, pairs: EmbedPairs, learned: Learned, queue: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Parts]:
        scale, bias = learned["logit_scale"], learned["logit_bias"]
        loss = siglip_loss(pairs.brain, pairs.compared, scale, bias, pairs.stimulus)
        return loss, {"contrastive": loss.detach()}


class SoftLabelLossConfig(_LossConfig):
    """Contrastive loss that also believes in pictures resembling the own one; see `image_similarity_labels`."""

    name: Literal["soft_label"] = "soft_label"
    temperature: float = Field(default=0.07, gt=0.01, le=1)
    scale: ScaleKind = "exp"
    top_k: int = Field(default=10, ge=0, description="0: all")
    label_temperature: float = Field(default=0.1, gt=0)
    soft_weight: float = Field(default=0.5, gt=0, le=1)
    image_map: bool = True

    def compute(self, pairs: EmbedPairs, learned: Learned, queue: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Parts]:
        labels = image_similarity_labels(
            pairs.image, pairs.stimulus, top_k=self.top_k, temperature=self.label_temperature,
            soft_weight=self.soft_weight,
        )  # fmt: skip
        loss = soft_label_loss(pairs.brain, pairs.compared, learned["logit_scale"], labels, labels)
        return loss, {"contrastive": loss.detach()}


class DistilledLossConfig(_LossConfig):
    """Contrastive loss with a teacher's beliefs as part of the labels; see `distilled_labels`."""

    name: Literal["distilled"] = "distilled"
    temperature: float = Field(default=0.07, gt=0.01, le=1)
    scale: ScaleKind = "exp"
    soft_weight: float = Field(default=0.4, gt=0, lt=1)
    image_map: bool = True

    def compute(self, pairs: EmbedPairs, learned: Learned, queue: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Parts]:
        scale, teacher = learned["logit_scale"], pairs.brain if pairs.teacher is None else pairs.teacher
        labels = distilled_labels(teacher, pairs.compared, scale, pairs.stimulus, soft_weight=self.soft_weight)
        loss = soft_label_loss(pairs.brain, pairs.compared, scale, *labels)
        return loss, {"contrastive": loss.detach()}


class CosineLossConfig(_LossConfig):
    """`cosine_loss`."""

    name: Literal["cosine"] = "cosine"

    def compute(self, pairs: EmbedPairs, learned: Learned, queue: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Parts]:
        loss = cosine_loss(pairs.brain, pairs.image)
        return loss, {"cosine": loss.detach()}


class MSELossConfig(_LossConfig):
    """`mse`."""

    name: Literal["mse"] = "mse"

    def compute(self, pairs: EmbedPairs, learned: Learned, queue: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Parts]:
        loss = mse(pairs.brain, pairs.image)
        return loss, {"mse": loss.detach()}


AnySingleConfig = (
    BrainModuleLossConfig
    | CosineLossConfig
    | DistilledLossConfig
    | InfoNCEConfig
    | MSELossConfig
    | SigLIPLossConfig
    | SoftLabelLossConfig
)  # fmt: skip


class LossTerm(_LossConfig):
    """One summand of `SumLossConfig`."""

    weight: float = Field(gt=0)
    loss: Annotated[AnySingleConfig, Field(discriminator="name")]


class SumLossConfig(_LossConfig):
    """Weighted sum of several losses, each with its own learned numbers."""

    name: Literal["sum"] = "sum"
    terms: tuple[LossTerm, ...] = Field(min_length=2)


AnyLossConfig = AnySingleConfig | AlignmentLossConfig | SumLossConfig


def _named(value: Any) -> Any:
    """Fill in the name that configs of the time of one loss did not have."""
    return {"name": "combined", **value} if isinstance(value, Mapping) else value


LossConfig = Annotated[Annotated[AnyLossConfig, Field(discriminator="name")], BeforeValidator(_named)]


class _Scale(nn.Module):
    """Inverse temperature that is learned through softplus, or fixed."""

    def __init__(self, kind: ScaleKind, temperature: float) -> None:
        super().__init__()
        self.kind = kind
        start = torch.tensor(math.log(1 / temperature) if kind == "softplus" else 1 / temperature)
        self.logit_scale = nn.Parameter(start, requires_grad=kind == "softplus")

    def forward(self) -> Tensor:
        return functional.softplus(self.logit_scale) if self.kind == "softplus" else self.logit_scale.detach()


class AlignmentLoss(nn.Module):
    """One loss with its learned numbers and its memory.

    Parameters
    ----------
    config : LossConfig
    embed_dim : int
        Width of the targets; sizes the memory.
    """

    def __init__(self, config: AnySingleConfig | AlignmentLossConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        values = config.model_dump()
        temperature = values.get("initial_temperature", values.get("temperature"))
        kind: ScaleKind = values.get("scale", "exp")
        self.scale: nn.Module | None = None
        if temperature is not None:
            self.scale = LogitScale(temperature) if kind == "exp" else _Scale(kind, temperature)
        self.logit_bias = nn.Parameter(torch.tensor(float(values["logit_bias"]))) if "logit_bias" in values else None
        self.queue = MemoryQueue(values["queue_size"], embed_dim) if values.get("queue_size") else None

    @property
    def image_map(self) -> bool:
        """Whether a linear map of the targets may be trained with this loss."""
        return bool(getattr(self.config, "image_map", False))

    @property
    def reads_targets(self) -> bool:
        """Whether answers are compared with the targets themselves, besides or in place of mapped ones."""
        if isinstance(self.config, AlignmentLossConfig):
            return self.config.contrastive_weight < 1
        return isinstance(self.config, (CosineLossConfig, MSELossConfig))

    def forward(self) -> dict[str, Tensor]:
        """Return the learned numbers, to be called inside the forward of the trained module."""
        learned = {} if self.scale is None else {"logit_scale": self.scale()}
        return learned if self.logit_bias is None else {**learned, "logit_bias": self.logit_bias * 1}

    def compute(self, pairs: EmbedPairs, learned: Learned) -> tuple[Tensor, Parts]:
        """Compute the loss.

        Parameters
        ----------
        pairs : EmbedPairs
            Of all processes.
        learned : mapping of str to Tensor
            What `forward` returned.

        Returns
        -------
        loss : Tensor, ()
        parts : dict of str to Tensor
            Detached, for the log.
        """
        if isinstance(self.config, AlignmentLossConfig):
            return combined_loss(
                pairs.brain, pairs.image, learned["logit_scale"], self.config.contrastive_weight, pairs.stimulus,
                compared=pairs.mapped,
            )  # fmt: skip
        return self.config.compute(pairs, learned, None if self.queue is None else self.queue.contents())

    def remember(self, pairs: EmbedPairs) -> None:
        """Store this step's targets as negatives for the next ones; call once per step, after `compute`."""
        if self.queue is not None:
            if pairs.stimulus is None:
                raise ValueError("a queue of targets needs stimulus, got None; pass the pictures' ids")
            self.queue.push(pairs.compared.detach(), pairs.stimulus)


class LossSum(nn.Module):
    """Weighted sum of `AlignmentLoss` terms, used like one."""

    def __init__(self, config: SumLossConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.losses = nn.ModuleList(AlignmentLoss(term.loss, embed_dim) for term in config.terms)

    @property
    def image_map(self) -> bool:
        return any(loss.image_map for loss in self._terms())

    @property
    def reads_targets(self) -> bool:
        return any(loss.reads_targets for loss in self._terms())

    def forward(self) -> dict[str, Tensor]:
        return {f"{i}.{name}": value for i, loss in enumerate(self._terms()) for name, value in loss().items()}

    def compute(self, pairs: EmbedPairs, learned: Learned) -> tuple[Tensor, Parts]:
        total, parts = pairs.brain.new_zeros((), dtype=torch.float32), {}
        for i, (loss, term) in enumerate(zip(self._terms(), self.config.terms, strict=True)):
            own = {k.removeprefix(f"{i}."): value for k, value in learned.items() if k.startswith(f"{i}.")}
            value, _ = loss.compute(pairs, own)
            total = total + term.weight * value
            parts[f"{term.loss.name}_{i}"] = value.detach()
        return total, parts

    def remember(self, pairs: EmbedPairs) -> None:
        for loss in self._terms():
            loss.remember(pairs)

    def _terms(self) -> list[AlignmentLoss]:
        return [loss for loss in self.losses if isinstance(loss, AlignmentLoss)]


def build_loss(config: AnyLossConfig, embed_dim: int) -> AlignmentLoss | LossSum:
    """Build the loss that a config names.

    Parameters
    ----------
    config : LossConfig
        One member of the union, for example ``InfoNCEConfig(name="multi_positive")``.
    embed_dim : int
        Width of the targets.

    Returns
    -------
    AlignmentLoss or LossSum
    """
    return LossSum(config, embed_dim) if isinstance(config, SumLossConfig) else AlignmentLoss(config, embed_dim)
