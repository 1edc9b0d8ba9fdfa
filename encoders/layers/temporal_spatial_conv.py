"""Temporal convolution, mean pooling and spatial convolution of ShallowNet's descendants: NICE, ATM, UBP, NeuroBridge.

Published order: convolve over time, pool, normalise, ELU, convolve over all sensors, normalise, ELU, dropout, mix maps.
Nothing non-linear stands between the temporal convolution and the pooling, and both act on one sensor at a time, so
the pooling is done first and on the signal itself (one narrow matrix product), and the convolution only where the
pooling would have kept a value. Maps are held as ``(b, s, c, n)``, so that both convolutions are plain matrix products
without a copy between them. Results are those of the published order up to rounding; memory traffic is a fifth.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Flatten = Literal["position", "channel"]


class TemporalSpatialConv(nn.Module):
    """From epochs to one token per pooled time step.

    Parameters
    ----------
    n_channels, n_times : int
        Size of an epoch.
    n_filters : int
        Temporal filters, and spatial filters.
    kernel, pool, stride : int
        Temporal kernel, pooling window and pooling step in samples; ``n_times`` must be at least
        ``kernel + pool - 1``.
    dropout : float
        After the spatial convolution.
    mix : bool
        Whether a 1 x 1 convolution follows (NICE, ATM, NeuroBridge: yes; UBP: no).

    Attributes
    ----------
    n_steps : int
        Tokens per epoch.
    token_width : int
        ``n_filters``.

    References
    ----------
    Song et al. 2024, ICLR, arXiv:2308.13234; Schirrmeister et al. 2017, Hum. Brain Mapp.
    """

    pooling: Tensor

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        *,
        n_filters: int,
        kernel: int,
        pool: int,
        stride: int,
        dropout: float,
        mix: bool = True,
    ) -> None:
        super().__init__()
        assert n_times >= kernel + pool - 1, (n_times, kernel, pool)
        self.kernel, self.pool, self.stride = kernel, pool, stride
        self.n_steps = (n_times - kernel - pool + 1) // stride + 1
        self.token_width = n_filters
        self.temporal = nn.Conv1d(1, n_filters, kernel)
        self.temporal_norm = nn.BatchNorm2d(n_filters)
        self.spatial = nn.Conv2d(n_filters, n_filters, (n_channels, 1))
        self.spatial_norm = nn.BatchNorm2d(n_filters)
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Conv2d(n_filters, n_filters, 1) if mix else None
        self.register_buffer("pooling", _moving_sum(n_times, pool), persistent=False)

    def convolve(self, data: Tensor) -> Tensor:
        """Map epochs ``(b, c, t)`` to tokens ``(b, n_steps, n_filters)``; shorter data gives the first of them."""
        n_epochs, n_channels, n_times = data.shape
        pooling = self.pooling[:n_times, : n_times - self.pool + 1]
        # (b, c, t) -> (b, s, c, k): the signal's moving sums in overlapping windows, one per kept time step
        windows = (data @ pooling).unfold(2, self.kernel, self.stride).transpose(1, 2)
        maps = F.linear(windows, self.temporal.weight.squeeze(1) / self.pool, self.temporal.bias)
        # (b, s, c, n) -> (b, n, s, c), channels last in memory, as the normalisation wants it, and back
        maps = F.elu(self.temporal_norm(maps.permute(0, 3, 1, 2)), inplace=True).permute(0, 2, 3, 1)
        maps = maps.reshape(n_epochs, windows.shape[1], n_channels * self.token_width)
        # (n_out, n, c, 1) -> (n_out, c * n)
        weight = self.spatial.weight.squeeze(3).transpose(1, 2).flatten(1)
        maps = F.linear(maps, weight, self.spatial.bias)
        # (b, s, n) -> (b, n, s, 1), and back
        maps = self.spatial_norm(maps.transpose(1, 2).unsqueeze(3)).squeeze(3).transpose(1, 2)
        tokens: Tensor = self.dropout(F.elu(maps))
        if self.mix is not None:
            tokens = F.linear(tokens, self.mix.weight.flatten(1), self.mix.bias)
        return tokens


def flatten_tokens(tokens: Tensor, order: Flatten) -> Tensor:
    """Flatten ``(b, s, n)`` with the positions (NICE, ATM) or the channels (UBP, NeuroBridge) as the slow axis."""
    return (tokens if order == "position" else tokens.transpose(1, 2)).flatten(1)


def _moving_sum(n_times: int, width: int) -> Tensor:
    """Return the matrix ``(n_times, n_times - width + 1)`` whose columns add ``width`` neighbours."""
    n_out = n_times - width + 1
    lag = torch.arange(n_times)[:, None] - torch.arange(n_out)[None, :]
    # ones, not 1 / width: exact in every dtype
    return ((lag >= 0) & (lag < width)).to(torch.float32)
