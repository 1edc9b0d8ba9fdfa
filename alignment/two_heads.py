"""A retrieval head and a generation head on one encoder: what finds pictures best is not what draws them best.

The retrieval head is trained contrastively, the generation head by mean squared error, possibly against another target
(for example DINOv2 features and the decoder's CLIP).
"""

import torch
from torch import Tensor, nn

from alignment.losses import info_nce, mse


class TwoHeads(nn.Module):
    """Put two small networks on the output of an encoder.

    Parameters
    ----------
    encoder : nn.Module
        Built with ``embed_dim=width``; its output is the shared representation.
    width : int
        Of the shared representation; 2048 in the paper.
    retrieval_dim, generation_dim : int
        Widths of the two targets.
    hidden : int
        Width of each head's GELU layer; 0 for linear heads.

    References
    ----------
    Benchetrit et al. 2024, arXiv:2310.19812 (one head per loss).
    """

    def __init__(
        self, encoder: nn.Module, width: int, retrieval_dim: int, generation_dim: int, hidden: int = 0
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.retrieval = _head(width, hidden, retrieval_dim)
        self.generation = _head(width, hidden, generation_dim)

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed for retrieval, ``(b, retrieval_dim)``; arguments as for any encoder."""
        out: Tensor = self.retrieval(self.encoder(data, positions, subject))
        return out

    def both(self, data: Tensor, positions: Tensor, subject: Tensor) -> tuple[Tensor, Tensor]:
        """Embed for retrieval and for generation: ``(b, retrieval_dim)`` and ``(b, generation_dim)``."""
        shared = self.encoder(data, positions, subject)
        return self.retrieval(shared), self.generation(shared)


def _head(n_in: int, hidden: int, n_out: int) -> nn.Module:
    if not hidden:
        return nn.Linear(n_in, n_out)
    return nn.Sequential(nn.LayerNorm(n_in), nn.GELU(), nn.Linear(n_in, hidden), nn.GELU(), nn.Linear(hidden, n_out))


def two_heads_loss(
    brain_embeds: tuple[Tensor, Tensor],
    image_embeds: tuple[Tensor, Tensor],
    logit_scale: Tensor,
    contrastive_weight: float,
    stimulus: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mix the losses of both heads: ``w * info_nce + (1 - w) * mse``.

    A loss of weight 0 is left out, so that its head gets no gradient at all and no optimizer moves it (one that knows
    weight decay would move it on a gradient of zero).

    Parameters
    ----------
    brain_embeds : Tensor, (n, d) and Tensor, (n, e), float32
        What `TwoHeads.both` returned.
    image_embeds : Tensor, (n, d) and Tensor, (n, e), float32
        Targets for retrieval, and (standardised) for generation.
    logit_scale : Tensor, ()
        Inverse temperature, already exponentiated.
    contrastive_weight : float
        The ``w`` above, 0 to 1.
    stimulus : Tensor, (n,), int64, optional
        See `info_nce`.

    Returns
    -------
    loss : Tensor, ()
    parts : dict of str to Tensor
        ``contrastive`` and ``mse``, detached, for the log; without the one left out.

    Raises
    ------
    ValueError
        If the weight is not between 0 and 1, or shapes differ.
    """
    if not 0 <= contrastive_weight <= 1:
        raise ValueError(f"contrastive_weight is {contrastive_weight}, expected 0 to 1; choose a share")
    parts, weights = {}, {"contrastive": contrastive_weight, "mse": 1 - contrastive_weight}
    if weights["contrastive"]:
        parts["contrastive"] = info_nce(brain_embeds[0], image_embeds[0], logit_scale, stimulus)
    if weights["mse"]:
        parts["mse"] = mse(brain_embeds[1], image_embeds[1])
    loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return loss, {name: part.detach() for name, part in parts.items()}
