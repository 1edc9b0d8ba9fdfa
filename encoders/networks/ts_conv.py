"""TSConv, the network of NICE: temporal convolution, pooling, spatial convolution, projection.

Kernels are given in seconds (published: 25, 51 and 5 samples at 250 Hz) so that the same network means the same thing
at 100 Hz. Temporal convolution and mean pooling follow each other without a non-linearity, so they are computed as one
strided convolution: same result, a quarter of the memory traffic.
"""

from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.residual_projection import ResidualProjection
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers


class TSConvConfig(BaseModel):
    """Sizes of `TSConv`; the defaults are the published network."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Song et al. 2024, ICLR, arXiv:2308.13234 (NICE)"

    name: Literal["ts_conv"] = "ts_conv"
    n_filters: int = Field(40, gt=0)
    kernel: float = Field(0.1, gt=0, description="temporal kernel, s")
    pool: float = Field(0.204, gt=0, description="mean pooling window, s")
    stride: float = Field(0.02, gt=0, description="pooling step, s")
    dropout: float = Field(0.5, ge=0, lt=1)
    subject_layers: bool = Field(False, description="one channel mixing per person before the convolutions (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "TSConv":
        """Build the untrained network."""
        return TSConv(self, shape, embed_dim)


class TSConv(nn.Module):
    """Convolve over time, pool, convolve over all sensors, project.

    Parameters
    ----------
    config : TSConvConfig
    shape : SignalShape
        Channels and samples are fixed by the spatial convolution and the dense layer.
    embed_dim : int
        Width of the output.

    Raises
    ------
    ValueError
        If the epoch is shorter than one kernel plus one pooling window.

    References
    ----------
    Song et al. 2024, "Decoding natural images from EEG for object recognition", ICLR, arXiv:2308.13234.
    """

    def __init__(self, config: TSConvConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        kernel, self.pool, self.stride = (
            max(round(seconds * shape.sfreq), 1) for seconds in (config.kernel, config.pool, config.stride)
        )
        shortest = kernel + self.pool - 1
        if shape.n_times < shortest:
            raise ValueError(
                f"ts_conv needs epochs of at least {shortest} samples at {shape.sfreq:g} Hz, got {shape.n_times}; "
                "lengthen the window or shorten kernel and pool"
            )
        n_steps = (shape.n_times - shortest) // self.stride + 1
        n = config.n_filters
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.temporal = nn.Conv1d(1, n, kernel)
        self.temporal_norm = nn.BatchNorm2d(n)
        self.spatial = nn.Conv2d(n, n, (shape.n_channels, 1))
        self.spatial_norm = nn.BatchNorm2d(n)
        self.dropout = nn.Dropout(config.dropout)
        self.mix = nn.Conv2d(n, n, 1)
        self.head = ResidualProjection(n * n_steps, embed_dim, config.dropout)

    def _convolve_and_pool(self, data: Tensor) -> Tensor:
        n_epochs, n_channels, n_times = data.shape
        weight = F.pad(self.temporal.weight, (self.pool - 1, self.pool - 1))
        weight = F.avg_pool1d(weight, self.pool, stride=1)
        maps = F.conv1d(data.reshape(-1, 1, n_times), weight, self.temporal.bias, stride=self.stride)
        # (b * c, n, s) -> (b, n, c, s)
        return maps.reshape(n_epochs, n_channels, *maps.shape[1:]).transpose(1, 2)

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
        if self.people is not None:
            data = self.people(data, subject)
        maps = F.elu(self.temporal_norm(self._convolve_and_pool(data)))
        maps = self.mix(self.dropout(F.elu(self.spatial_norm(self.spatial(maps)))))
        # (b, n, 1, s) -> (b, s, n): position-major, as NICE flattens
        features = torch.flatten(maps.squeeze(2).transpose(1, 2), 1)
        embeds: Tensor = self.head(features)
        return embeds
