"""The first EEGNet (arXiv version 2): spatial filters, then two strided 2-D convolutions over filters and time.

Kernels and strides over time are given in seconds (published: 32 and 4, then 4 and 4 samples at 128 Hz), the second
pair at the rate that the first stride leaves. Its L1 and L2 norms are part of the loss (`Penalised`).
"""

from math import ceil
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.constraints import Penalised
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers

KERAS_EPS, KERAS_MOMENTUM = 1e-3, 0.01
HEIGHTS = (2, 8)
"""Filters that a kernel of the second and of the third convolution spans."""
HEIGHT_STRIDE = 2


class EEGNetV1Config(BaseModel):
    """Sizes of `EEGNetV1`; the defaults are the published network."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Lawhern et al. 2016, arXiv:1611.08024v2"

    name: Literal["eegnet_v1"] = "eegnet_v1"
    n_spatial: int = Field(16, gt=0, description="spatial filters")
    n_maps: int = Field(4, gt=0, description="maps of each 2-D convolution")
    kernel: float = Field(0.25, gt=0, description="first temporal kernel, s")
    stride: float = Field(1 / 32, gt=0, description="first temporal stride, s")
    second_kernel: float = Field(0.125, gt=0, description="second temporal kernel, s")
    second_stride: float = Field(0.125, gt=0, description="second temporal stride, s")
    dropout: float = Field(0.25, ge=0, lt=1)
    l1: float = Field(1e-4, ge=0, description="weight of the L1 norm of the spatial filters in the loss")
    l2: float = Field(1e-4, ge=0, description="weight of the squared norm of all filters in the loss")
    subject_layers: bool = Field(False, description="one channel mixing per person before the filters (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "EEGNetV1":
        """Build the untrained network."""
        return EEGNetV1(self, shape, embed_dim)


class EEGNetV1(Penalised):
    """Weigh sensors, convolve the image of spatial filters by time twice, project.

    Parameters
    ----------
    config : EEGNetV1Config
    shape : SignalShape
        Channels and samples are fixed by the spatial filters and the dense layer.
    embed_dim : int
        Width of the output.

    Attributes
    ----------
    token_width : int
        Width of `tokens`.

    Raises
    ------
    ValueError
        If the epoch is shorter than the first temporal kernel.

    References
    ----------
    Lawhern et al. 2016, arXiv:1611.08024v2, with strides in place of max pooling as in the authors' later code.
    """

    def __init__(self, config: EEGNetV1Config, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        self.l1, self.l2 = config.l1, config.l2
        kernel, stride = (max(round(seconds * shape.sfreq), 1) for seconds in (config.kernel, config.stride))
        slower = shape.sfreq / stride
        second_kernel, second_stride = (
            max(round(seconds * slower), 1) for seconds in (config.second_kernel, config.second_stride)
        )
        if shape.n_times < kernel:
            raise ValueError(
                f"eegnet_v1 needs epochs of at least {kernel} samples at {shape.sfreq:g} Hz, got {shape.n_times}; "
                "lengthen the window or shorten kernel"
            )
        n, maps = config.n_spatial, config.n_maps
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.spatial = nn.Conv1d(shape.n_channels, n, 1)
        self.spatial_norm = nn.BatchNorm1d(n, KERAS_EPS, KERAS_MOMENTUM)
        self.first = nn.Conv2d(1, maps, (HEIGHTS[0], kernel), (HEIGHT_STRIDE, stride))
        self.first_norm = nn.BatchNorm2d(maps, KERAS_EPS, KERAS_MOMENTUM)
        self.second = nn.Conv2d(maps, maps, (HEIGHTS[1], second_kernel), (HEIGHT_STRIDE, second_stride))
        self.second_norm = nn.BatchNorm2d(maps, KERAS_EPS, KERAS_MOMENTUM)
        self.dropout = nn.Dropout(config.dropout)
        height = ceil(ceil(n / HEIGHT_STRIDE) / HEIGHT_STRIDE)
        n_steps = ceil(ceil(shape.n_times / stride) / second_stride)
        self.token_width = maps * height
        self.dense = nn.Linear(self.token_width * n_steps, embed_dim)

    def penalty(self) -> Tensor:
        """Return the weighted L1 norm of the spatial filters plus the weighted squared norm of all filters, ()."""
        filters = [part.weight for part in (self.spatial, self.first, self.second)]
        squares = sum((weight.square().sum() for weight in filters[1:]), filters[0].square().sum())
        total: Tensor = self.l1 * filters[0].abs().sum() + self.l2 * squares
        return total

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return the features in front of the dense layer, ``(b, n_steps, token_width)``."""
        if self.people is not None:
            data = self.people(data, subject)
        maps = self.dropout(F.elu(self.spatial_norm(self.spatial(data))))
        # (b, n, t) -> (b, 1, n, t): the filters become the height of an image
        maps = self.dropout(F.elu(self.first_norm(self.first(_padded(maps.unsqueeze(1), self.first)))))
        maps = self.dropout(F.elu(self.second_norm(self.second(_padded(maps, self.second)))))
        # (b, m, h, s) -> (b, s, m * h)
        tokens: Tensor = maps.flatten(1, 2).transpose(1, 2)
        return tokens

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
        embeds: Tensor = self.dense(self.tokens(data, positions, subject).flatten(1))
        return embeds


def _padded(maps: Tensor, conv: nn.Conv2d) -> Tensor:
    """Pad as Keras' "same" does for a strided convolution: output length is input length over stride, rounded up."""
    padding: list[int] = []
    for size, kernel, stride in zip(maps.shape[:1:-1], conv.kernel_size[::-1], conv.stride[::-1], strict=True):
        total = max((ceil(size / stride) - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(maps, padding)
