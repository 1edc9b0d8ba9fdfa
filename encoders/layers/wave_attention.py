"""Attention of Wave-ViT: keys and values come from a Haar transform at half the resolution, so nothing is thrown away.

The inverse transform of the filtered coefficients joins the attention's output before the projection: it brings back
the local detail that attention over coarse tokens smooths away.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.wavelets import WaveletPacket2d


class WaveAttention(nn.Module):
    """Let every position of a map attend to the map's wavelet coefficients.

    Parameters
    ----------
    dim : int
        Channels in and out, a multiple of 4 and of ``heads``.
    heads : int
        Attention heads.
    sr_ratio : int
        Side of the patches that become one key each, on top of the transform's factor 2.

    Raises
    ------
    ValueError
        If the width cannot be divided, or a map is too small for ``sr_ratio``.

    References
    ----------
    Yao et al. 2022, "Wave-ViT: unifying wavelet and transformers for visual representation learning", ECCV.
    """

    def __init__(self, dim: int, heads: int, sr_ratio: int = 1) -> None:
        super().__init__()
        if dim % 4 or dim % heads:
            raise ValueError(f"WaveAttention expects a width divisible by 4 and by its {heads} heads, got {dim}")
        self.heads, self.sr_ratio = heads, sr_ratio
        self.query = nn.Conv2d(dim, dim, 1)
        self.reduce = nn.Sequential(nn.Conv2d(dim, dim // 4, 1, bias=False), nn.BatchNorm2d(dim // 4), nn.ReLU())
        self.packet = WaveletPacket2d("haar", levels=1)
        self.filter = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim), nn.ReLU())
        self.shorten = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio) if sr_ratio > 1 else None
        self.norm = nn.LayerNorm(dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.project = nn.Conv2d(dim + dim // 4, dim, 1)

    def keys_and_values(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys and values (b, heads, n, dim / heads) and the detail (b, dim / 4, h, w)."""
        coefficients = self.filter(self.packet(self.reduce(maps)))
        detail = self.packet.inverse(coefficients, (maps.shape[-2], maps.shape[-1]))
        if self.shorten is not None:
            if min(coefficients.shape[-2:]) < self.sr_ratio:
                raise ValueError(
                    f"sr_ratio={self.sr_ratio} needs maps of at least {2 * self.sr_ratio} rows and columns, got "
                    f"{tuple(maps.shape[-2:])}; use a smaller ratio"
                )
            coefficients = self.shorten(coefficients)
        # (b, d, h, w) -> (b, n, d) -> two of (b, heads, n, d / heads)
        tokens = self.key_value(self.norm(coefficients.flatten(2).transpose(1, 2)))
        keys, values = tokens.reshape(*tokens.shape[:2], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return keys, values, detail

    def forward(self, maps: Tensor) -> Tensor:
        """Transform maps.

        Parameters
        ----------
        maps : Tensor, (b, dim, h, w), float32

        Returns
        -------
        Tensor, (b, dim, h, w), float32
        """
        keys, values, detail = self.keys_and_values(maps)
        # (b, d, h, w) -> (b, heads, h * w, d / heads)
        query = self.query(maps).reshape(len(maps), self.heads, -1, maps[0, 0].numel()).transpose(2, 3)
        seen = F.scaled_dot_product_attention(query, keys, values).transpose(2, 3).reshape(maps.shape)
        out: Tensor = self.project(torch.cat((seen, detail), dim=1))
        return out
