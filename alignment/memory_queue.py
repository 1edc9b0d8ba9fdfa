"""Targets of earlier steps as extra negatives, for batches that are small.

Only the picture's side is remembered: its tower is frozen, so an old target is as good as a new one, which an old
brain embedding is not.
"""

import torch
from torch import Tensor, nn


class MemoryQueue(nn.Module):
    """The last ``size`` targets and their pictures, oldest replaced first.

    Its buffers are part of the module's state, so a resumed run goes on with the same negatives. Push the gathered
    rows, in the same order on every process, once per step and after the loss was computed.

    Parameters
    ----------
    size : int
        How many rows to keep.
    embed_dim : int
    """

    embeds: Tensor
    stimulus: Tensor
    n_seen: Tensor

    def __init__(self, size: int, embed_dim: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a memory queue of size {size} holds nothing; expected at least 1, or no queue")
        self.register_buffer("embeds", torch.zeros(size, embed_dim))
        self.register_buffer("stimulus", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, image_embeds: Tensor, stimulus: Tensor) -> None:
        """Remember targets (n, d) and their pictures (n,); a batch with a non-finite value is left out whole."""
        if image_embeds.shape != (len(stimulus), self.embeds.shape[1]):
            raise ValueError(
                f"image_embeds {tuple(image_embeds.shape)} and stimulus {tuple(stimulus.shape)} must be "
                f"(n, {self.embeds.shape[1]}) and (n,); push the targets that the loss compares"
            )
        if not bool(torch.isfinite(image_embeds).all()):
            return
        size = len(self.embeds)
        kept = min(len(stimulus), size)
        places = (int(self.n_seen) + torch.arange(len(stimulus) - kept, len(stimulus), device=stimulus.device)) % size
        self.embeds[places] = image_embeds[-kept:].float()
        self.stimulus[places] = stimulus[-kept:]
        self.n_seen += len(stimulus)

    def contents(self) -> tuple[Tensor, Tensor]:
        """Return copies of the targets (m, d) and pictures (m,) remembered so far."""
        filled = min(int(self.n_seen), len(self.embeds))
        return self.embeds[:filled].clone(), self.stimulus[:filled].clone()
