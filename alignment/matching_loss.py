"""Matching loss of a cross-attention fusion: do these two recordings belong to the same picture?

Negatives are hard ones, drawn by how much their embeddings resemble the right partner's. The encoders are read without
gradient: they learn from the contrastive terms, the layers between them from this one as well.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from alignment.runtime import full_precision
from encoders.cross_attention import CrossAttentionFusion


def hard_negatives(similarity: Tensor, stimulus: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw one wrong partner for each row, the likelier the more it resembles the row.

    Parameters
    ----------
    similarity : Tensor, (n, n), float32
        Row: one recording; column: partner. Logits, that is cosines times the inverse temperature.
    stimulus : Tensor, (n,), int64
        Picture of each row and column; equal ones are never drawn for each other.
    generator : torch.Generator, optional
        On the CPU; the global one by default.

    Returns
    -------
    Tensor, (n,), int64
        Columns, drawn with the softmax of the similarities over other pictures.

    Raises
    ------
    ValueError
        If all rows show the same picture, or shapes do not fit.
    """
    n = len(stimulus)
    if similarity.shape != (n, n):
        raise ValueError(f"similarity {tuple(similarity.shape)} and stimulus ({n},) must be (n, n) and (n,)")
    same = stimulus[:, None] == stimulus[None, :]
    if bool(same.all(dim=1).any()):
        raise ValueError(f"hard negatives need another picture for each of {n} rows, got none; use larger batches")
    # the largest of logits plus Gumbel noise is a draw from their softmax
    uniform = torch.rand(n, n, generator=generator).clamp(min=torch.finfo(torch.float32).tiny)
    noise = -(-uniform.log()).clamp(min=torch.finfo(torch.float32).tiny).log()
    return (similarity.detach().float() + noise.to(similarity.device)).masked_fill(same, -math.inf).argmax(dim=1)


def matching_loss(
    match: Callable[[Tensor, Tensor], Tensor],
    similarity: Tensor,
    stimulus: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Compute the cross-entropy of telling right pairs from hard wrong ones.

    Parameters
    ----------
    match : callable
        ``match(rows of the first sequence (m,), rows of the second (m,))`` gives logits (m,) that they belong
        together.
    similarity : Tensor, (n, n), float32
        Row: first; column: second; see `hard_negatives`.
    stimulus : Tensor, (n,), int64
    generator : torch.Generator, optional

    Returns
    -------
    Tensor, ()
        Mean over n right pairs and 2 n wrong ones, one per row and one per column, in nats; a constant answer
        reaches 0.637 at best.

    References
    ----------
    Li et al. 2021, "Align before fuse", NeurIPS, arXiv:2107.07651 (image-text matching).
    """
    rows = torch.arange(len(stimulus), device=stimulus.device)
    wrong_second = hard_negatives(similarity, stimulus, generator)
    wrong_first = hard_negatives(similarity.T, stimulus, generator)
    logits = match(torch.cat([rows, rows, wrong_first]), torch.cat([rows, wrong_second, rows]))
    labels = torch.cat([torch.ones_like(rows), torch.zeros_like(rows), torch.zeros_like(rows)])
    return functional.binary_cross_entropy_with_logits(logits.float(), labels.float())


class Matching(nn.Module):
    """Judge from the joint embedding whether both recordings belong together.

    Parameters
    ----------
    embed_dim : int
        Width of the fusion's answers.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.score = nn.Linear(embed_dim, 1)

    def forward(
        self,
        fusion: CrossAttentionFusion,
        data: Mapping[str, Tensor],
        positions: Mapping[str, Tensor],
        subject: Tensor,
        stimulus: Tensor,
        logit_scale: Tensor,
    ) -> Tensor:
        """Compute `matching_loss` of a batch that has both modalities; ``logit_scale`` () sharpens the negatives."""
        with torch.no_grad():
            embeds, _ = fusion.embed_each(data, positions, subject)
            tokens = fusion.tokens_each(data, positions, subject)
            with full_precision(subject.device):
                first, second = (functional.normalize(embeds[name].float(), dim=-1) for name in fusion.modalities)
                similarity = logit_scale * first @ second.T

        def match(*rows: Tensor) -> Tensor:
            pairs = list(zip(fusion.modalities, rows, strict=True))
            joint = fusion.join(
                {name: embeds[name][chosen] for name, chosen in pairs},
                {name: tokens[name][chosen] for name, chosen in pairs},
            )
            logits: Tensor = self.score(self.norm(joint)).squeeze(-1)
            return logits

        return matching_loss(match, similarity, stimulus)
