"""TSConv, the network of NICE, and its relatives in UBP and NeuroBridge: temporal and spatial convolution, projection.

Kernels are given in seconds (published: 25, 51 and 5 samples at 250 Hz) so that the same network means the same thing
at 100 Hz. NICE mixes the maps once more and flattens position by position; NeuroBridge mixes and flattens channel by
channel; UBP does not mix and flattens channel by channel.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from encoders.layers.residual_projection import ResidualProjection
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers
from encoders.layers.temporal_spatial_conv import TemporalSpatialConv, flatten_tokens


class TSConvConfig(BaseModel):
    """Sizes of `TSConv`; the defaults are the network of NICE."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Song et al. 2024, ICLR, arXiv:2308.13234 (NICE); Wu et al. 2025, CVPR (UBP)"

    name: Literal["ts_conv"] = "ts_conv"
    n_filters: int = Field(40, gt=0)
    kernel: float = Field(0.1, gt=0, description="temporal kernel, s")
    pool: float = Field(0.204, gt=0, description="mean pooling window, s")
    stride: float = Field(0.02, gt=0, description="pooling step, s")
    mix: bool = Field(True, description="a 1 x 1 convolution after the spatial one; UBP has none")
    flatten: Literal["position", "channel"] = Field("position", description="slow axis; UBP, NeuroBridge: channel")
    dropout: float = Field(0.5, ge=0, lt=1)
    subject_layers: bool = Field(False, description="one channel mixing per person before the convolutions (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "TSConv":
        """Build the untrained network."""
        return TSConv(self, shape, embed_dim)


class TSConv(TemporalSpatialConv):
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
        kernel, pool, stride = (
            max(round(seconds * shape.sfreq), 1) for seconds in (config.kernel, config.pool, config.stride)
        )
        shortest = kernel + pool - 1
        if shape.n_times < shortest:
            raise ValueError(
                f"ts_conv needs epochs of at least {shortest} samples at {shape.sfreq:g} Hz, got {shape.n_times}; "
                "lengthen the window or shorten kernel and pool"
            )
        super().__init__(
            shape.n_channels,
            shape.n_times,
            n_filters=config.n_filters,
            kernel=kernel,
            pool=pool,
            stride=stride,
            dropout=config.dropout,
            mix=config.mix,
        )
        self.order = config.flatten
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.head = ResidualProjection(config.n_filters * self.n_steps, embed_dim, config.dropout)

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return what stands before the projection, ``(b, n_steps, token_width)``; arguments as in `forward`."""
        if self.people is not None:
            data = self.people(data, subject)
        return self.convolve(data)

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
        embeds: Tensor = self.head(flatten_tokens(self.tokens(data, positions, subject), self.order))
        return embeds
