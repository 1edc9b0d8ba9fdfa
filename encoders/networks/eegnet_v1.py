"""The first EEGNet: spatial filters, then two small convolutions over the (filter, time) plane."""

from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.constraints import Penalised
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers

STRIDES = (2, 4)
SPATIAL_KERNELS = (2, 8)
MOMENTUM, EPSILON = 0.01, 1e-3


class EEGNetV1Config(BaseModel):
    """Sizes of `EEGNetV1`; the defaults are published for 128 Hz."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Lawhern et al. 2016, arXiv:1611.08024v2 (the first EEGNet)"

    name: Literal["eegnet_v1"] = "eegnet_v1"
    n_spatial: int = Field(16, gt=0, description="spatial filters")
    n_maps: int = Field(4, gt=0, description="maps of both plane convolutions")
    kernels: tuple[float, float] = Field((0.25, 0.125), description="temporal extent of the plane convolutions, s")
    dropout: float = Field(0.25, ge=0, lt=1)
    l1: float = Field(1e-4, ge=0, description="weight of the spatial filters' absolute values in the loss")
    l2: float = Field(1e-4, ge=0, description="weight of all kernels' squares in the loss")
    subject_layers: bool = Field(False, description="one channel mixing per person before the filters (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "EEGNetV1":
        """Build the untrained network."""
        return EEGNetV1(self, shape, embed_dim)


class EEGNetV1(Penalised):
    """Mix sensors, lay the mixtures out as a plane with time, convolve the plane twice, project.

    The second plane kernel, published as (8, 4), has its temporal extent set from 16 samples at 128 Hz down to what the
    first stride leaves: seconds of the config refer to the input's clock.

    Parameters
    ----------
    config : EEGNetV1Config
    shape : SignalShape
    embed_dim : int
        Width of the output. With the number of classes here, this is the published classifier without its softmax.

    Raises
    ------
    ValueError
        If the epoch is shorter than 16 samples, one step of both strides.

    References
    ----------
    Lawhern et al. 2016, first version of arXiv:1611.08024; sizes as in the ARL collection (EEGNet_old).
    """

    def __init__(self, config: EEGNetV1Config, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        if shape.n_times < STRIDES[1] ** 2:
            raise ValueError(
                f"eegnet_v1 needs epochs of at least {STRIDES[1] ** 2} samples, got {shape.n_times}; "
                "lengthen the window"
            )
        self.l1, self.l2 = config.l1, config.l2
        taps = (
            max(round(config.kernels[0] * shape.sfreq), 1),
            max(round(config.kernels[1] * shape.sfreq / STRIDES[1]), 1),
        )
        n, maps = config.n_spatial, config.n_maps
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.spatial = nn.Conv1d(shape.n_channels, n, 1)
        self.spatial_norm = nn.BatchNorm1d(n, eps=EPSILON, momentum=MOMENTUM)
        self.planes = nn.ModuleList(
            nn.Conv2d(n_in, maps, (height, width), stride=STRIDES)
            for n_in, height, width in zip((1, maps), SPATIAL_KERNELS, taps, strict=True)
        )
        self.plane_norms = nn.ModuleList(nn.BatchNorm2d(maps, eps=EPSILON, momentum=MOMENTUM) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)
        height, width = n, shape.n_times
        for _ in range(2):
            height, width = -(-height // STRIDES[0]), -(-width // STRIDES[1])
        self.token_width = maps * height
        self.head = nn.Linear(self.token_width * width, embed_dim)

    def penalty(self) -> Tensor:
        """Return the L1 and L2 terms of the kernels, ()."""
        kernels = [self.spatial.weight, *self.planes.parameters()]
        squares = torch.stack([kernel.square().sum() for kernel in kernels if kernel.dim() > 1]).sum()
        return self.l1 * self.spatial.weight.abs().sum() + self.l2 * squares

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return the last plane's columns, (b, n_steps, token_width); arguments as in `forward`."""
        data = data if self.people is None else self.people(data, subject)
        # (b, n, t) -> (b, 1, n, t)
        plane = self.dropout(F.elu(self.spatial_norm(self.spatial(data)))).unsqueeze(1)
        for conv, norm in zip(self.planes, self.plane_norms, strict=True):
            assert isinstance(conv, nn.Conv2d)
            plane = self.dropout(F.elu(norm(conv(_same_padded(plane, conv.kernel_size)))))
        # (b, m, n, s) -> (b, s, m * n)
        return torch.permute(plane, (0, 3, 1, 2)).flatten(2)

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


def _same_padded(plane: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Pad so that a strided convolution gives ceil(size / stride) steps, the odd sample at the end (Keras "same")."""
    pads: list[int] = []
    for size, taps, stride in zip(plane.shape[:1:-1], kernel[::-1], STRIDES[::-1], strict=True):
        total = max((-(-size // stride) - 1) * stride + taps - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(plane, pads)
