"""Losses that pull brain embeddings towards the CLIP embeddings of what was seen; all compute in float32."""

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from alignment.runtime import full_precision

MAX_LOGIT_SCALE = math.log(100)


class AlignmentLossConfig(BaseModel):
    """Mix of `combined_loss`; the other losses stand in `alignment.loss_choice`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["combined"] = "combined"
    contrastive_weight: float = Field(default=0.8, ge=0, le=1, description="the rest goes to the mean squared error")
    initial_temperature: float = Field(default=0.07, gt=0.01, lt=1)
    image_map: bool = Field(default=True, description="train a linear map on the picture's side as well")
    matching_weight: float = Field(default=0.0, ge=0, description="of `matching_loss`; fusion cross_attention only")


class LogitScale(nn.Module):
    """Learned inverse temperature, kept between 1 and 100.

    The stored logarithm itself is clamped before use, as CLIP does after each step: clamping only the output would
    leave the parameter without gradient, stuck outside.
    """

    def __init__(self, initial_temperature: float = 0.07) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(initial_temperature)))

    def forward(self) -> Tensor:
        with torch.no_grad():
            self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)
        return self.logit_scale.exp()


def info_nce(
    brain_embeds: Tensor, image_embeds: Tensor, logit_scale: Tensor, stimulus: Tensor | None = None
) -> Tensor:
    """Compute the symmetric InfoNCE loss of paired embeddings.

    Row ``i`` of both inputs belongs to the same stimulus and every other row is a negative, unless ``stimulus`` says
    that it shows the same picture. With several processes, pass gathered rows (`Runtime.gather_with_grad`).

    Parameters
    ----------
    brain_embeds : Tensor, (n, d), float32
        Encoder output; normalised here, so any length is accepted.
    image_embeds : Tensor, (n, d), float32
        CLIP embeddings of the stimuli; normalised here.
    logit_scale : Tensor, ()
        Inverse temperature, already exponentiated (CLIP starts at 1 / 0.07).
    stimulus : Tensor, (n,), int64, optional
        Id of the picture of each row; equal ids are no negatives of each other.

    Returns
    -------
    Tensor, ()
        Mean cross-entropy of both directions in nats; ``log(n)`` is chance.

    Raises
    ------
    ValueError
        If the shapes differ.

    References
    ----------
    Radford et al. 2021, arXiv:2103.00020, figure 3.
    """
    check_pair(brain_embeds, image_embeds)
    with full_precision(brain_embeds.device):
        brain = functional.normalize(brain_embeds.float(), dim=-1)
        image = functional.normalize(image_embeds.float(), dim=-1)
        logits = logit_scale.float() * brain @ image.T
        if stimulus is not None:
            same = stimulus[:, None] == stimulus[None, :]
            same.fill_diagonal_(False)
            logits = logits.masked_fill(same, -torch.inf)
        pair = torch.arange(len(logits), device=logits.device)
        return (functional.cross_entropy(logits, pair) + functional.cross_entropy(logits.T, pair)) / 2


def mse(brain_embeds: Tensor, image_embeds: Tensor) -> Tensor:
    """Compute the mean squared error of paired embeddings, in float32.

    Alone it pulls noisy predictions towards the mean of the targets; their spread has to be restored before they
    drive a generator.

    Parameters
    ----------
    brain_embeds, image_embeds : Tensor, (n, d)
        Both in the same (for example standardised) coordinates; nothing is normalised here.

    Returns
    -------
    Tensor, ()

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    check_pair(brain_embeds, image_embeds)
    return functional.mse_loss(brain_embeds.float(), image_embeds.float())


def cosine_loss(brain_embeds: Tensor, image_embeds: Tensor) -> Tensor:
    """Compute one minus the mean cosine of paired embeddings, in float32.

    Blind to lengths, and without negatives: a constant answer that points at the mean of the targets already scores
    well, so centre the targets first.

    Parameters
    ----------
    brain_embeds, image_embeds : Tensor, (n, d)

    Returns
    -------
    Tensor, ()
        0 for parallel pairs, 1 for unrelated ones, 2 for opposite ones.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    check_pair(brain_embeds, image_embeds)
    return 1 - functional.cosine_similarity(brain_embeds.float(), image_embeds.float(), dim=-1).mean()


def combined_loss(
    brain_embeds: Tensor,
    image_embeds: Tensor,
    logit_scale: Tensor,
    contrastive_weight: float,
    stimulus: Tensor | None = None,
    *,
    compared: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mix both losses: ``w * info_nce + (1 - w) * mse``.

    Parameters
    ----------
    brain_embeds, image_embeds : Tensor, (n, d), float32
    logit_scale : Tensor, ()
    contrastive_weight : float
        The ``w`` above.
    stimulus : Tensor, (n,), int64, optional
        See `info_nce`.
    compared : Tensor, (n, d), float32, optional
        What the contrastive part sees in place of ``image_embeds``, for example the output of a learned map.

    Returns
    -------
    loss : Tensor, ()
    parts : dict of str to Tensor
        ``contrastive`` and ``mse``, detached, for the log.
    """
    contrastive = info_nce(brain_embeds, image_embeds if compared is None else compared, logit_scale, stimulus)
    if contrastive_weight == 1 and image_embeds.shape != brain_embeds.shape:  # seen through `compared` alone
        return contrastive, {"contrastive": contrastive.detach()}
    squared = mse(brain_embeds, image_embeds)
    loss = contrastive_weight * contrastive + (1 - contrastive_weight) * squared
    return loss, {"contrastive": contrastive.detach(), "mse": squared.detach()}


def check_pair(brain_embeds: Tensor, image_embeds: Tensor) -> None:
    """Refuse embeddings that are not paired row by row."""
    if brain_embeds.ndim != 2 or brain_embeds.shape != image_embeds.shape:
        raise ValueError(
            f"brain_embeds {tuple(brain_embeds.shape)} and image_embeds {tuple(image_embeds.shape)} must have the same "
            "shape (n, d); pair each epoch with the embedding of its stimulus"
        )
