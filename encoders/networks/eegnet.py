"""EEGNet: temporal filters, spatial filters for each of them, a separable convolution, one dense layer.

Padding, batch norm and max-norm follow the Keras original: "same" padding of an even kernel has the extra sample on the
right, so 128 samples stay 128. The published network has 16 spatial filters, which caps what it can tell apart; the
preset ``eegnet_embed`` has 64.
"""

from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.constraints import MaxNormConv2d, MaxNormLinear
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers

POOLS = (4, 8)
MOMENTUM, EPSILON = 0.01, 1e-3


class EEGNetConfig(BaseModel):
    """Sizes of `EEGNet`; the defaults are the published EEGNet-8,2."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Lawhern et al. 2018, J. Neural Eng., arXiv:1611.08024"

    name: Literal["eegnet"] = "eegnet"
    n_temporal: int = Field(8, gt=0, description="temporal filters (F1)")
    depth: int = Field(2, gt=0, description="spatial filters for each temporal one (D)")
    n_pointwise: int = Field(16, gt=0, description="maps of the separable convolution (F2)")
    kernel: float = Field(0.5, gt=0, description="temporal kernel, s: half the sampling rate in samples")
    separable_kernel: float = Field(0.5, gt=0, description="kernel of the separable convolution, s")
    dropout: float = Field(0.5, ge=0, lt=1)
    head_norm: float = Field(0.25, gt=0, description="max-norm of the dense layer; inf for none")
    subject_layers: bool = Field(False, description="one channel mixing per person before the filters (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "EEGNet":
        """Build the untrained network."""
        return EEGNet(self, shape, embed_dim)


class EEGNet(nn.Module):
    """Filter in time, in space, and in time again; average; project.

    Parameters
    ----------
    config : EEGNetConfig
    shape : SignalShape
        Channels and samples are fixed by the spatial filters and the dense layer.
    embed_dim : int
        Width of the output. With the number of classes here, this is the published classifier without its softmax.

    Raises
    ------
    ValueError
        If the epoch is shorter than 32 samples, which the two poolings leave nothing of.

    References
    ----------
    Lawhern et al. 2018, "EEGNet: a compact convolutional neural network for EEG-based brain-computer interfaces".
    """

    def __init__(self, config: EEGNetConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        n_steps = shape.n_times // POOLS[0] // POOLS[1]
        if n_steps < 1:
            raise ValueError(
                f"{config.name} needs epochs of at least {POOLS[0] * POOLS[1]} samples, got {shape.n_times}; "
                "lengthen the window or sample faster"
            )
        kernel = max(round(config.kernel * shape.sfreq), 1)
        separable = max(round(config.separable_kernel * shape.sfreq / POOLS[0]), 1)
        n_maps = config.n_temporal * config.depth
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.temporal = nn.Conv1d(1, config.n_temporal, kernel, bias=False)
        self.temporal_norm = nn.BatchNorm2d(config.n_temporal, eps=EPSILON, momentum=MOMENTUM)
        self.spatial = MaxNormConv2d(
            config.n_temporal, n_maps, (shape.n_channels, 1), groups=config.n_temporal, bias=False, max_norm=1.0
        )
        self.spatial_norm = nn.BatchNorm1d(n_maps, eps=EPSILON, momentum=MOMENTUM)
        self.separable = nn.Conv1d(n_maps, n_maps, separable, groups=n_maps, bias=False)
        self.pointwise = nn.Conv1d(n_maps, config.n_pointwise, 1, bias=False)
        self.separable_norm = nn.BatchNorm1d(config.n_pointwise, eps=EPSILON, momentum=MOMENTUM)
        self.dropout = nn.Dropout(config.dropout)
        self.token_width = config.n_pointwise
        self.head = MaxNormLinear(config.n_pointwise * n_steps, embed_dim, max_norm=config.head_norm)

    def _filtered(self, data: Tensor) -> Tensor:
        """Apply both filters of the first block, ``(b, c, t) -> (b, maps, t)``."""
        if not self.training:
            return self._filtered_spatial_first(data)
        n_epochs, n_channels, n_times = data.shape
        maps = F.conv1d(same_padded(data.reshape(-1, 1, n_times), self.temporal.kernel_size[0]), self.temporal.weight)
        # (b * c, f, t) -> (b, f, c, t)
        maps = self.temporal_norm(maps.reshape(n_epochs, n_channels, -1, n_times).transpose(1, 2))
        filtered: Tensor = self.spatial(maps).squeeze(2)
        return filtered

    def _filtered_spatial_first(self, data: Tensor) -> Tensor:
        """Do the same with fixed statistics in the other order: few maps instead of channels x filters."""
        norm, depth = self.temporal_norm, self.spatial.out_channels // self.temporal.out_channels
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        offset = norm.bias - norm.running_mean * scale
        weight = self.spatial.weight[:, 0, :, 0]
        kernels = (scale[:, None, None] * self.temporal.weight).repeat_interleave(depth, dim=0)
        mixed = same_padded(weight @ data, self.temporal.kernel_size[0])
        bias = offset.repeat_interleave(depth) * weight.sum(dim=1)
        return F.conv1d(mixed, kernels, bias, groups=len(kernels))

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return the pooled maps in front of the dense layer, (b, n_steps, token_width); arguments as in `forward`."""
        if self.people is not None:
            data = self.people(data, subject)
        maps = F.elu(self.spatial_norm(self._filtered(data)))
        maps = self.dropout(F.avg_pool1d(maps, POOLS[0]))
        maps = self.pointwise(self.separable(same_padded(maps, self.separable.kernel_size[0])))
        maps = F.avg_pool1d(F.elu(self.separable_norm(maps)), POOLS[1])
        # (b, m, s) -> (b, s, m)
        return torch.transpose(self.dropout(maps), 1, 2)

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed epochs.

        Parameters
        ----------
        data : Tensor, (b, c, t), float32
            Preprocessed, unitless.
        positions : Tensor, (c, 2) or (b, c, 2), float32
            Not used.
        subject : Tensor, (b,), int64
            Used only with ``subject_layers``.

        Returns
        -------
        Tensor, (b, embed_dim), float32
        """
        embeds: Tensor = self.head(self.tokens(data, positions, subject).flatten(1))
        return embeds


def same_padded(data: Tensor, kernel: int) -> Tensor:
    """Pad time with zeros so that a convolution keeps its length, the extra sample of an even kernel on the right."""
    return F.pad(data, ((kernel - 1) // 2, kernel // 2))
