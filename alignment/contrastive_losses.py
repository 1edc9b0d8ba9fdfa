"""Contrastive losses beside `alignment.losses.info_nce`; all of them compute in float32.

They take the whole batch: with several processes pass gathered rows (`Runtime.gather_with_grad`). Every one accepts
several rows of the same picture, which are never negatives of each other.
"""

import torch
from torch import Tensor
from torch.nn import functional

from alignment.losses import check_pair
from alignment.runtime import full_precision

Queue = tuple[Tensor, Tensor]
"""Targets (m, d) of earlier batches and their pictures (m,)."""


def multi_positive_info_nce(
    brain_embeds: Tensor,
    image_embeds: Tensor,
    logit_scale: Tensor,
    stimulus: Tensor | None = None,
    *,
    positives: bool = True,
    normalize_brain: bool = True,
    queue: Queue | None = None,
) -> Tensor:
    """Compute the symmetric InfoNCE loss in which all rows of the same picture belong together.

    The cross-entropy runs against a uniform distribution over a row's positives, so with m rows of one picture it
    cannot fall below ``log(m)``; without repeated pictures it is `info_nce`.

    Parameters
    ----------
    brain_embeds, image_embeds : Tensor, (n, d), float32
        Row ``i`` of both belongs to the same stimulus; targets are normalised here.
    logit_scale : Tensor, ()
        Inverse temperature, already exponentiated.
    stimulus : Tensor, (n,), int64, optional
        Id of the picture (or of the label, for targets that are labels) of each row; by default all differ.
    positives : bool
        False takes other rows of the same picture out of the sum instead, as `info_nce` does.
    normalize_brain : bool
        False leaves the length of brain embeddings as it is, which can then express confidence.
    queue : (Tensor (m, d), Tensor (m,)), optional
        Further negatives of the direction brain to picture; rows of the same picture are left out. Needs ``stimulus``.

    Returns
    -------
    Tensor, ()
        Mean of both directions in nats; ``log(n)`` is chance.

    Raises
    ------
    ValueError
        If the shapes differ, or a queue comes without ``stimulus``.

    References
    ----------
    Khosla et al. 2020, arXiv:2004.11362, equation 2 (the sum outside the logarithm).
    """
    check_pair(brain_embeds, image_embeds)
    ids = _ids(stimulus, brain_embeds, queue)
    with full_precision(brain_embeds.device):
        brain = functional.normalize(brain_embeds.float(), dim=-1) if normalize_brain else brain_embeds.float()
        scaled = logit_scale.float() * brain
        logits = scaled @ functional.normalize(image_embeds.float(), dim=-1).T
        same = ids[:, None] == ids[None, :]
        if positives:
            labels = same / same.sum(dim=1, keepdim=True)
        else:
            labels = torch.eye(len(ids), device=logits.device)
            logits = logits.masked_fill(same & (labels == 0), -torch.inf)
        there = soft_cross_entropy(_with_queue(logits, scaled, ids, queue), labels)
        return (there + soft_cross_entropy(logits.T, labels)) / 2


def brain_module_loss(
    brain_embeds: Tensor, image_embeds: Tensor, stimulus: Tensor | None = None, *, queue: Queue | None = None
) -> Tensor:
    """Compute the one-directional loss of the brain module: each brain row chooses among the candidate pictures.

    Only candidates are normalised and there is no temperature: the length of a brain embedding takes its place.

    Parameters
    ----------
    brain_embeds, image_embeds : Tensor, (n, d), float32
        Flatten sequences of features (n, c, t) first: their scores are sums over time.
    stimulus : Tensor, (n,), int64, optional
        Id of the picture of each row; equal ids are no negatives of each other.
    queue : (Tensor (m, d), Tensor (m,)), optional
        Further candidates, see `multi_positive_info_nce`.

    Returns
    -------
    Tensor, ()
        Mean cross-entropy over candidates in nats; ``log(n)`` is chance.

    References
    ----------
    Defossez et al. 2023, Nature Machine Intelligence 5, arXiv:2208.12266.
    """
    check_pair(brain_embeds, image_embeds)
    ids = _ids(stimulus, brain_embeds, queue)
    with full_precision(brain_embeds.device):
        brain = brain_embeds.float()
        logits = brain @ functional.normalize(image_embeds.float(), dim=-1).T
        own = torch.eye(len(ids), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill((ids[:, None] == ids[None, :]) & ~own, -torch.inf)
        return functional.cross_entropy(
            _with_queue(logits, brain, ids, queue), torch.arange(len(ids), device=logits.device)
        )


def siglip_loss(
    brain_embeds: Tensor,
    image_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    stimulus: Tensor | None = None,
) -> Tensor:
    """Compute the pairwise sigmoid loss: every pair of rows is judged by itself, belonging together or not.

    Parameters
    ----------
    brain_embeds, image_embeds : Tensor, (n, d), float32
        Normalised here.
    logit_scale, logit_bias : Tensor, ()
        ``logit_scale * cosine + logit_bias`` is the log-odds of belonging together; the paper starts at 10 and -10.
    stimulus : Tensor, (n,), int64, optional
        Id of the picture of each row; equal ids belong together.

    Returns
    -------
    Tensor, ()
        Binary cross-entropy in nats, summed over pairs and divided by n.

    References
    ----------
    Zhai et al. 2023, arXiv:2303.15343, algorithm 1.
    """
    check_pair(brain_embeds, image_embeds)
    ids = _ids(stimulus, brain_embeds, None)
    with full_precision(brain_embeds.device):
        brain = functional.normalize(brain_embeds.float(), dim=-1)
        image = functional.normalize(image_embeds.float(), dim=-1)
        logits = logit_scale.float() * brain @ image.T + logit_bias.float()
        sign = torch.where(ids[:, None] == ids[None, :], 1.0, -1.0)
        return -functional.logsigmoid(sign * logits).sum() / len(ids)


def soft_label_loss(
    brain_embeds: Tensor, image_embeds: Tensor, logit_scale: Tensor, brain_labels: Tensor, image_labels: Tensor
) -> Tensor:
    """Compute the symmetric contrastive loss against given distributions in place of "the own picture".

    Parameters
    ----------
    brain_embeds, image_embeds : Tensor, (n, d), float32
        Normalised here.
    logit_scale : Tensor, ()
    brain_labels : Tensor, (n, n), float32
        Row: brain embedding; column: picture; each row sums to 1. From `image_similarity_labels` or
        `distilled_labels`.
    image_labels : Tensor, (n, n), float32
        Row: picture; column: brain embedding.

    Returns
    -------
    Tensor, ()
        Mean of both directions in nats; never below the mean entropy of the labels.
    """
    check_pair(brain_embeds, image_embeds)
    with full_precision(brain_embeds.device):
        brain = functional.normalize(brain_embeds.float(), dim=-1)
        image = functional.normalize(image_embeds.float(), dim=-1)
        logits = logit_scale.float() * brain @ image.T
        return (soft_cross_entropy(logits, brain_labels) + soft_cross_entropy(logits.T, image_labels)) / 2


@torch.no_grad()
def image_similarity_labels(
    image_embeds: Tensor, stimulus: Tensor | None, *, top_k: int, temperature: float, soft_weight: float
) -> Tensor:
    """Give each row a share of belief in the pictures that resemble its own.

    Parameters
    ----------
    image_embeds : Tensor, (n, d), float32
    stimulus : Tensor, (n,), int64, optional
        Rows of the same picture share the hard part of the label, and always count among the similar ones.
    top_k : int
        Only the ``top_k`` most similar rows get a share (more where several are equally similar); 0 for all.
    temperature : float
        Of the softmax over cosines.
    soft_weight : float
        Share of the soft part, 0 to 1; the rest goes to the own picture.

    Returns
    -------
    Tensor, (n, n), float32
        Rows sum to 1.
    """
    ids = _ids(stimulus, image_embeds, None)
    with full_precision(image_embeds.device):
        image = functional.normalize(image_embeds.float(), dim=-1)
        similarity = image @ image.T
        same = ids[:, None] == ids[None, :]
        if 0 < top_k < len(ids):
            least = similarity.topk(top_k, dim=1).values[:, -1:]
            similarity = similarity.masked_fill((similarity < least) & ~same, -torch.inf)
        soft = (similarity / temperature).softmax(dim=1)
        return soft_weight * soft + (1 - soft_weight) * same / same.sum(dim=1, keepdim=True)


@torch.no_grad()
def distilled_labels(
    brain_embeds: Tensor, image_embeds: Tensor, logit_scale: Tensor, stimulus: Tensor | None, *, soft_weight: float
) -> tuple[Tensor, Tensor]:
    """Mix what a teacher believes with the hard labels, as ALBEF does; without gradient.

    Parameters
    ----------
    brain_embeds : Tensor, (n, d), float32
        Of the teacher: an average of the trained network's weights, or the network itself.
    image_embeds : Tensor, (n, d), float32
    logit_scale : Tensor, ()
    stimulus : Tensor, (n,), int64, optional
    soft_weight : float
        Share of the teacher; 0.4 in the paper.

    Returns
    -------
    brain_labels, image_labels : Tensor, (n, n), float32
        As `soft_label_loss` takes them.

    References
    ----------
    Li et al. 2021, "Align before fuse", arXiv:2107.07651, equation 6.
    """
    ids = _ids(stimulus, image_embeds, None)
    with full_precision(brain_embeds.device):
        brain = functional.normalize(brain_embeds.float(), dim=-1)
        logits = logit_scale.float() * brain @ functional.normalize(image_embeds.float(), dim=-1).T
        same = ids[:, None] == ids[None, :]
        hard = (1 - soft_weight) * same / same.sum(dim=1, keepdim=True)
        return hard + soft_weight * logits.softmax(dim=1), hard + soft_weight * logits.T.softmax(dim=1)


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of rows against ``labels`` (n, k), for logits (n, m >= k); columns past k are negatives."""
    log_probability = logits.log_softmax(dim=1)[:, : labels.shape[1]]
    believed = torch.where(labels > 0, log_probability, 0.0)  # a masked column is minus infinity
    return -(labels * believed).sum(dim=1).mean()


def _ids(stimulus: Tensor | None, embeds: Tensor, queue: Queue | None) -> Tensor:
    if stimulus is None:
        if queue is not None:
            raise ValueError("a queue of targets needs stimulus, got None; pass the pictures' ids")
        return torch.arange(len(embeds), device=embeds.device)
    if stimulus.shape != (len(embeds),):
        raise ValueError(f"stimulus {tuple(stimulus.shape)} must be ({len(embeds)},): one picture id per row")
    return stimulus


def _with_queue(logits: Tensor, scaled: Tensor, ids: Tensor, queue: Queue | None) -> Tensor:
    if queue is None or len(queue[1]) == 0:
        return logits
    embeds, pictures = queue
    further = scaled @ functional.normalize(embeds.float(), dim=-1).T
    return torch.cat([logits, further.masked_fill(ids[:, None] == pictures[None, :], -torch.inf)], dim=1)
