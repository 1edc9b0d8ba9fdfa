"""Fourier code of 2-D sensor positions, the coordinates in which spatial attention asks for places."""

import math

import torch
from torch import Tensor, nn

MARGIN = 0.2
PERIOD = 1.0 + 2 * MARGIN


class FourierPositions(nn.Module):
    """Turn positions in the unit square into cosines and sines of a grid of plane waves.

    Wave ``(i, j)``, ``0 <= i, j < n``, has the phase ``2 pi (i (x + .2) + j (y + .2)) / 1.4``: the margin keeps
    opposite edges of the layout apart although the waves are periodic.

    Parameters
    ----------
    width : int
        Length of the code, ``2 n ** 2``; 2048 gives the published 32 frequencies per axis.

    Raises
    ------
    ValueError
        If ``width`` is not twice a square.

    References
    ----------
    Defossez et al. 2023, "Decoding speech perception from non-invasive brain recordings", Nat. Mach. Intell.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        n_frequencies = math.isqrt(max(width, 0) // 2)
        if width < 2 or 2 * n_frequencies**2 != width:
            near = max(n_frequencies, 1)
            raise ValueError(
                f"Fourier code of width {width} is impossible, expected twice a square; "
                f"use {2 * near**2} or {2 * (near + 1) ** 2}"
            )
        self.n_frequencies = n_frequencies
        grid = torch.arange(n_frequencies, dtype=torch.float32)
        pairs = torch.cartesian_prod(grid, grid).reshape(-1, 2)
        self.register_buffer("frequencies", pairs, persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """Encode positions.

        Parameters
        ----------
        positions : Tensor, (..., 2), float32
            Layout coordinates in [0, 1].

        Returns
        -------
        Tensor, (..., width), float32
            All cosines, then all sines.
        """
        phases = (2 * math.pi / PERIOD) * ((positions + MARGIN) @ self.frequencies.T)
        return torch.cat([phases.cos(), phases.sin()], dim=-1)
