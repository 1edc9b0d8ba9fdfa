"""One linear channel mixing per person: heads, gains and source positions differ, the rest of a network is shared."""

import math
from typing import Literal

import torch
from torch import Tensor, nn


class SubjectLayers(nn.Module):
    """Apply the channel mixing matrix of each sample's person.

    A person who was not in the training data, index ``n_subjects``, gets the mean of all matrices.

    Parameters
    ----------
    n_channels : int
        Channels in and out.
    n_subjects : int
        People in the training data.
    init : "normal" | "identity"
        ``normal`` is the published start, standard deviation ``1 / sqrt(n_channels)``; ``identity`` starts as a no-op.

    References
    ----------
    Defossez et al. 2023, Nat. Mach. Intell.
    """

    def __init__(self, n_channels: int, n_subjects: int, init: Literal["normal", "identity"] = "normal") -> None:
        super().__init__()
        if init == "identity":
            weight = torch.eye(n_channels).repeat(n_subjects, 1, 1)
        else:
            weight = torch.randn(n_subjects, n_channels, n_channels) / math.sqrt(n_channels)
        self.weight = nn.Parameter(weight)

    def matrices(self, subject: Tensor) -> Tensor:
        """Look up the matrix of each person, (b, c, c); arguments as in `forward`."""
        return torch.cat([self.weight, self.weight.mean(dim=0, keepdim=True)])[subject]

    def forward(self, data: Tensor, subject: Tensor) -> Tensor:
        """Mix channels.

        Parameters
        ----------
        data : Tensor, (b, c, t), float32
        subject : Tensor, (b,), int64
            0 to ``n_subjects - 1``, or ``n_subjects`` for an unknown person.

        Returns
        -------
        Tensor, (b, c, t), float32
        """
        return self.matrices(subject).to(data.dtype) @ data
