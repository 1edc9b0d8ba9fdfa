"""A temporal and a spatial convolution with nothing in between, computed as one: same function, less work."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.constraints import MaxNormConv2d


class FoldedConvolution(nn.Module):
    """Convolve every channel over time with shared filters, then all channels with all maps.

    Two convolutions without a non-linearity in between are one convolution whose kernel is their product. Parameters
    (and max-norm limits) stay those of the two layers, and so do gradients.

    Parameters
    ----------
    n_temporal, n_spatial : int
        Maps of the temporal and of the spatial convolution.
    n_channels : int
        Sensors; all are mixed.
    kernel : int
        Temporal taps; no padding.
    bias : bool
        Whether the spatial convolution has one; the temporal one always has.
    max_norm : float
        Limit of each filter's length.

    References
    ----------
    Schirrmeister et al. 2017, Hum. Brain Mapp., arXiv:1703.05051 (the two layers).
    """

    def __init__(
        self, n_temporal: int, n_spatial: int, n_channels: int, kernel: int, *, bias: bool, max_norm: float
    ) -> None:
        super().__init__()
        self.temporal = MaxNormConv2d(1, n_temporal, (1, kernel), max_norm=max_norm)
        self.spatial = MaxNormConv2d(n_temporal, n_spatial, (n_channels, 1), bias=bias, max_norm=max_norm)

    def forward(self, data: Tensor) -> Tensor:
        """Map ``(b, c, t)`` to ``(b, n_spatial, t - kernel + 1)``."""
        spatial = self.spatial.weight[..., 0]
        kernels = torch.einsum("oic,ik->ock", spatial, self.temporal.weight[:, 0, 0])
        assert self.temporal.bias is not None
        bias = spatial.sum(dim=2) @ self.temporal.bias
        if self.spatial.bias is not None:
            bias = bias + self.spatial.bias
        return F.conv1d(data, kernels, bias)
