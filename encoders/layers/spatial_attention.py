"""Attention over sensor positions: any montage becomes a fixed number of virtual channels.

The weights depend on where the sensors are, never on what they measure, so the layer is linear in the signal and
the same parameters serve 63 EEG electrodes and 274 MEG coils.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from encoders.layers.fourier_positions import PERIOD, FourierPositions


class SpatialAttention(nn.Module):
    """Mix sensors into virtual channels by a softmax over their positions.

    Parameters
    ----------
    n_virtual : int
        Virtual channels, one learned query each.
    fourier_width : int
        Width of the position code, twice a square.
    dropout_radius : float
        In training one random centre per batch is drawn and sensors within this distance (in layout units) are
        silenced; 0 switches it off. At least one sensor is always kept.
    init : "random" | "anchored"
        ``random`` is the published start: normal queries over the square root of the width, nearly uniform weights.
        ``anchored`` starts query ``k`` as a soft window around the ``k``-th of evenly spread places, so that the
        virtual channels begin as a well-conditioned copy of the montage.

    References
    ----------
    Defossez et al. 2023, Nat. Mach. Intell. (the layer); the anchored start is ours.
    """

    def __init__(
        self,
        n_virtual: int,
        fourier_width: int,
        dropout_radius: float = 0.0,
        init: Literal["random", "anchored"] = "random",
    ) -> None:
        super().__init__()
        self.dropout_radius = dropout_radius
        self.positions_code = FourierPositions(fourier_width)
        if init == "anchored":
            queries = _anchored_queries(n_virtual, self.positions_code)
        else:
            queries = torch.randn(n_virtual, fourier_width) / math.sqrt(fourier_width)
        self.queries = nn.Parameter(queries)

    def weights(self, positions: Tensor) -> Tensor:
        """Compute the attention of every virtual channel over the sensors.

        Parameters
        ----------
        positions : Tensor, (c, 2) or (b, c, 2), float32
            Layout coordinates in [0, 1]; a negative coordinate marks an unknown place, which gets weight 0.

        Returns
        -------
        Tensor, (v, c) or (b, v, c), float32
            Rows sum to 1.

        Raises
        ------
        ValueError
            If no sensor has a known position.
        """
        known = (positions >= 0).all(dim=-1)
        if not bool(known.any(dim=-1).all()):
            raise ValueError(
                f"spatial attention needs sensor positions, got {positions.shape[-2]} sensors without one; "
                "take positions from a montage or a standard layout"
            )
        allowed = known & ~self._dropped(positions, known)
        scores = torch.einsum("vf,...cf->...vc", self.queries, self.positions_code(positions))
        return scores.masked_fill(~allowed.unsqueeze(-2), -math.inf).softmax(dim=-1)

    def _dropped(self, positions: Tensor, known: Tensor) -> Tensor:
        if not self.training or self.dropout_radius <= 0:
            return torch.zeros_like(known)
        centre = torch.rand(2).to(positions)
        distance = (positions - centre).norm(dim=-1).masked_fill(~known, -math.inf)
        farthest = distance.amax(dim=-1, keepdim=True)
        dropped: Tensor = (distance <= self.dropout_radius) & (distance < farthest)
        return dropped

    def forward(self, data: Tensor, positions: Tensor) -> Tensor:
        """Mix sensors.

        Parameters
        ----------
        data : Tensor, (b, c, t), float32
        positions : Tensor, (c, 2) or (b, c, 2), float32

        Returns
        -------
        Tensor, (b, v, t), float32
        """
        return self.weights(positions).to(data) @ data


def _anchored_queries(n_virtual: int, code: FourierPositions, length: float = 0.07, peak: float = 6.0) -> Tensor:
    """Place queries on a sunflower spiral in the layout's disc, each a tapered copy of its own place's code."""
    index = torch.arange(n_virtual, dtype=torch.float32)
    radius = 0.5 * ((index + 0.5) / n_virtual).sqrt()
    angle = index * math.pi * (3 - math.sqrt(5))
    anchors = 0.5 + torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    taper = torch.exp(-0.5 * (2 * math.pi * length / PERIOD) ** 2 * code.frequencies.square().sum(-1))
    queries: Tensor = peak * code(anchors) * torch.cat([taper, taper]) / taper.sum()
    return queries
