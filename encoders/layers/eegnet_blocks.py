"""The convolutional part of EEGNet, shared by EEGNet and its SSVEP variant.

Temporal filter bank, batch norm and spatial filters are linear in a row (batch norm is, once its statistics are
known), so the spatial filters go first: ``n_filters * depth`` series are filtered instead of
``n_filters * n_channels``. The statistics of the bank's output, which is never computed, follow exactly from the
covariance of the input over time. Output, gradients and running statistics are those of the published order.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.constraints import MaxNormConv2d
from encoders.layers.temporal_filter import filter_each, same_padding

KERAS_EPS = 1e-3
SPATIAL_MAX_NORM = 1.0


class FilterBank(nn.Module):
    """Temporal filters shared by all sensors, batch norm, then ``depth`` spatial filters for each of them.

    Parameters
    ----------
    n_channels, n_filters, depth, kernel : int
        ``kernel`` in samples.
    momentum : float
        Of batch norm, in torch's sense (one minus Keras').
    """

    def __init__(self, n_channels: int, n_filters: int, depth: int, kernel: int, momentum: float) -> None:
        super().__init__()
        self.depth = depth
        self.temporal = nn.Conv1d(1, n_filters, kernel, bias=False)
        self.norm = nn.BatchNorm1d(n_filters, KERAS_EPS, momentum)
        self.spatial = MaxNormConv2d(
            n_filters, n_filters * depth, (n_channels, 1), groups=n_filters, bias=False, max_norm=SPATIAL_MAX_NORM
        )

    def statistics(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and biased variance of the temporal filters' outputs without computing the outputs.

        Parameters
        ----------
        data : Tensor, (b, c, t), float32

        Returns
        -------
        mean, variance : Tensor, (n_filters,), float32
            Over epochs, sensors and samples.
        """
        rows = data.reshape(-1, data.shape[-1])
        average = rows.mean(dim=0)
        centred = rows - average
        taps = self.temporal.weight.squeeze(1)
        kernel, n_times = taps.shape[1], data.shape[-1]
        padding = same_padding(kernel)
        covariance = F.pad(centred.T @ centred / len(rows), padding + padding).contiguous()
        down, right = covariance.stride()
        # the kernel-sized squares along the diagonal: what each output sample sees
        seen = covariance.as_strided((n_times, kernel, kernel), (down + right, down, right)).mean(dim=0)
        course = F.conv1d(F.pad(average.view(1, 1, -1), padding), self.temporal.weight).squeeze(0)
        variance = ((taps @ seen) * taps).sum(dim=1) + course.var(dim=1, correction=0)
        return course.mean(dim=1), variance

    def _normalising(self, data: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None and self.norm.num_batches_tracked is not None
        if not self.training:
            return mean, variance
        batch_mean, batch_variance = self.statistics(data)
        with torch.no_grad():
            n, momentum = data.numel(), self.norm.momentum or 0.0
            mean.lerp_(batch_mean.to(mean), momentum)
            variance.lerp_(batch_variance.to(variance) * n / max(n - 1, 1), momentum)
            self.norm.num_batches_tracked += 1
        return batch_mean, batch_variance

    def forward(self, data: Tensor) -> Tensor:
        """Map ``(b, c, t)`` to ``(b, n_filters * depth, t)``."""
        mean, variance = self._normalising(data)
        scale = self.norm.weight * (variance + self.norm.eps).rsqrt()
        shift = self.norm.bias - mean * scale
        filters = self.spatial.weight.flatten(1)
        taps = (self.temporal.weight.squeeze(1) * scale.unsqueeze(1)).repeat_interleave(self.depth, dim=0)
        offset = shift.repeat_interleave(self.depth) * filters.sum(dim=1)
        return filter_each(filters @ data, taps) + offset.unsqueeze(1)


class EEGNetBlocks(nn.Module):
    """Filter bank, ELU, mean pooling, separable convolution, ELU: ``(b, c, t)`` to ``(b, width, t / pool)``.

    Parameters
    ----------
    n_channels, n_filters, depth : int
        ``width`` is ``n_filters * depth`` throughout (F2 = F1 * D).
    kernel, pool, separable_kernel : int
        In samples of what reaches them.
    dropout : float
    momentum : float
        Of the batch norms, in torch's sense.
    """

    def __init__(
        self, n_channels: int, n_filters: int, depth: int, kernel: int, pool: int, separable_kernel: int,
        dropout: float, momentum: float,
    ) -> None:  # fmt: skip
        super().__init__()
        width = n_filters * depth
        self.pool = pool
        self.bank = FilterBank(n_channels, n_filters, depth, kernel, momentum)
        self.bank_norm = nn.BatchNorm1d(width, KERAS_EPS, momentum)
        self.dropout = nn.Dropout(dropout)
        self.depthwise = nn.Conv1d(width, width, separable_kernel, groups=width, bias=False)
        self.pointwise = nn.Conv1d(width, width, 1, bias=False)
        self.separable_norm = nn.BatchNorm1d(width, KERAS_EPS, momentum)

    def forward(self, data: Tensor) -> Tensor:
        """Return the maps in front of the second pooling."""
        maps = F.avg_pool1d(F.elu(self.bank_norm(self.bank(data))), self.pool)
        maps = filter_each(self.dropout(maps), self.depthwise.weight.squeeze(1))
        maps = F.elu(self.separable_norm(self.pointwise(maps)))
        return maps
