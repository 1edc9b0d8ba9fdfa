"""Contextual transformer block of CoTNet: a convolution's context decides a small kernel for every position.

The published local aggregation is a CUDA kernel; here it is one multiply-add per tap with its own backward pass, which
needs neither the nine-fold copy of an unfolded map nor its gradient.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SHARES = 8  # channels that share one kernel: d / 8 kernels per position


class _LocalAggregation(torch.autograd.Function):
    """Sum the neighbourhood of every position of (b, s, g, h, w) with weights (b, g, taps, h, w)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kernels: Tensor) -> Tensor:
        side, (height, width) = round(kernels.shape[2] ** 0.5), values.shape[-2:]
        reach = side // 2
        padded = F.pad(values, (reach, reach, reach, reach))
        ctx.save_for_backward(padded, kernels)
        out = torch.zeros_like(values)
        for tap in range(side * side):
            top, left = divmod(tap, side)
            window = padded[..., top : top + height, left : left + width]
            out.addcmul_(window, kernels[:, None, :, tap])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        padded, kernels = ctx.saved_tensors
        side, (height, width) = round(kernels.shape[2] ** 0.5), gradient.shape[-2:]
        reach = side // 2
        to_padded, to_kernels = torch.zeros_like(padded), torch.empty_like(kernels)
        for tap in range(side * side):
            top, left = divmod(tap, side)
            rows, columns = slice(top, top + height), slice(left, left + width)
            to_padded[..., rows, columns].addcmul_(gradient, kernels[:, None, :, tap])
            to_kernels[:, :, tap] = (gradient * padded[..., rows, columns]).sum(dim=1)
        return to_padded[..., reach : reach + height, reach : reach + width], to_kernels


def aggregate_locally(values: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each position with a kernel of its own, zeros beyond the border.

    Parameters
    ----------
    values : Tensor, (b, d, h, w), float32
    kernels : Tensor, (b, g, k * k, h, w), float32
        ``k`` odd, ``g`` a divisor of ``d``; channel ``c`` uses kernel ``c % g``.

    Returns
    -------
    Tensor, (b, d, h, w), float32
    """
    n_epochs, width, *size = values.shape
    n_kernels = kernels.shape[1]
    shared = values.reshape(n_epochs, width // n_kernels, n_kernels, *size)
    out: Tensor = _LocalAggregation.apply(shared, kernels)  # type: ignore[no-untyped-call]
    return out.reshape(values.shape)


class CoTBlock(nn.Module):
    """Mix static context (a grouped convolution) and dynamic context (kernels predicted from it) of a map.

    Parameters
    ----------
    dim : int
        Channels in and out, a multiple of 8.
    kernel : int
        Side of the neighbourhood, odd.
    start : float
        Gain of both contexts at first; 1 is published. With 0.1 a residual block starts close to the identity, which
        learns more from few noisy epochs.

    Raises
    ------
    ValueError
        If ``dim`` is not a multiple of 8 or ``kernel`` is even.

    References
    ----------
    Li, Yao, Pan, Mei 2021, "Contextual transformer networks for visual recognition", arXiv:2107.12292.
    """

    def __init__(self, dim: int, kernel: int = 3, start: float = 1.0) -> None:
        super().__init__()
        if dim % SHARES or dim < SHARES:
            raise ValueError(f"CoTBlock expects a width that is a multiple of {SHARES}, got {dim}; round it up")
        if kernel % 2 == 0:
            raise ValueError(f"CoTBlock expects an odd kernel, got {kernel}; use {kernel + 1}")
        n_kernels, squeezed = dim // SHARES, max(dim // 2, 32)
        self.n_kernels = n_kernels
        self.context = nn.Sequential(
            nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=4, bias=False), nn.BatchNorm2d(dim), nn.ReLU()
        )
        self.kernels = nn.Sequential(
            nn.Conv2d(2 * dim, dim // 2, 1, bias=False),
            nn.BatchNorm2d(dim // 2),
            nn.ReLU(),
            nn.Conv2d(dim // 2, kernel * kernel * n_kernels, 1),
            nn.GroupNorm(n_kernels, kernel * kernel * n_kernels),
        )
        self.values = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim))
        self.norm = nn.BatchNorm2d(dim)
        for norm in (self.context[1], self.norm):
            nn.init.constant_(norm.weight, start)  # type: ignore[arg-type]
        self.squeeze = nn.Linear(dim, squeezed)
        self.squeeze_norm = nn.BatchNorm1d(squeezed)
        self.weigh = nn.Linear(squeezed, 2 * dim)

    def contexts(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the static and the dynamic context, both (b, dim, h, w)."""
        static = self.context(maps)
        kernels = self.kernels(torch.cat((maps, static), dim=1))
        kernels = kernels.reshape(len(maps), self.n_kernels, -1, *maps.shape[-2:])
        dynamic = F.silu(self.norm(aggregate_locally(self.values(maps), kernels)))
        return static, dynamic

    def fusion_weights(self, static: Tensor, dynamic: Tensor) -> Tensor:
        """Return the weights of dynamic and static context per channel, (b, dim, 2); they sum to 1."""
        squeezed = self.squeeze(static.mean(dim=(2, 3)) + dynamic.mean(dim=(2, 3)))
        norm = self.squeeze_norm
        if self.training and len(squeezed) == 1:  # one value per channel has no variance: use the running statistics
            squeezed = F.batch_norm(squeezed, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        else:
            squeezed = norm(squeezed)
        weights: Tensor = self.weigh(F.relu(squeezed)).reshape(len(squeezed), -1, 2).softmax(dim=-1)
        return weights

    def forward(self, maps: Tensor) -> Tensor:
        """Transform maps.

        Parameters
        ----------
        maps : Tensor, (b, dim, h, w), float32

        Returns
        -------
        Tensor, (b, dim, h, w), float32
        """
        static, dynamic = self.contexts(maps)
        share = self.fusion_weights(static, dynamic)[:, :, 1, None, None]
        return torch.lerp(dynamic, static, share)
