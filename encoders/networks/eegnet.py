"""EEGNet: temporal filter bank, spatial filters per band, separable convolution, dense layer.

Kernels and pools are given in seconds (published: 64, 4, 16 and 8 samples at 128 Hz), the second pair at the rate
that the first pooling leaves. "Same" padding is that of Keras, 31 samples before and 32 after a kernel of 64.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.constraints import MaxNormLinear
from encoders.layers.eegnet_blocks import EEGNetBlocks
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers


class EEGNetConfig(BaseModel):
    """Sizes of `EEGNet`; the defaults are the published EEGNet-8,2."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Lawhern et al. 2018, J. Neural Eng. 15 056013, arXiv:1611.08024"

    name: Literal["eegnet"] = "eegnet"
    n_filters: int = Field(8, gt=0, description="temporal filters, F1")
    depth: int = Field(2, gt=0, description="spatial filters per temporal filter, D; F2 is F1 * D")
    kernel: float = Field(0.5, gt=0, description="temporal kernel, s")
    pool: float = Field(1 / 32, gt=0, description="first mean pooling, s")
    separable_kernel: float = Field(0.5, gt=0, description="kernel of the separable convolution, s")
    second_pool: float = Field(0.25, gt=0, description="second mean pooling, s")
    dropout: float = Field(0.5, ge=0, lt=1)
    dense_max_norm: float = Field(0.25, gt=0, description="longest row of the dense layer")
    norm_momentum: float = Field(0.01, gt=0, le=1, description="share of the new batch; 0.01 is Keras' 0.99")
    subject_layers: bool = Field(False, description="one channel mixing per person before the filters (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "EEGNet":
        """Build the untrained network."""
        return EEGNet(self, shape, embed_dim)


class EEGNet(nn.Module):
    """Filter in time, weigh sensors per band, convolve separably, project.

    Parameters
    ----------
    config : EEGNetConfig
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
        If the epoch is shorter than both poolings together.

    References
    ----------
    Lawhern et al. 2018, "EEGNet: a compact convolutional neural network for EEG-based brain-computer interfaces".
    """

    def __init__(self, config: EEGNetConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        kernel, pool = (max(round(seconds * shape.sfreq), 1) for seconds in (config.kernel, config.pool))
        slower = shape.sfreq / pool
        separable, self.second_pool = (
            max(round(seconds * slower), 1) for seconds in (config.separable_kernel, config.second_pool)
        )
        if shape.n_times < pool * self.second_pool:
            raise ValueError(
                f"eegnet needs epochs of at least {pool * self.second_pool} samples at {shape.sfreq:g} Hz, got "
                f"{shape.n_times}; lengthen the window or shorten pool and second_pool"
            )
        self.token_width = config.n_filters * config.depth
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.blocks = EEGNetBlocks(
            shape.n_channels, config.n_filters, config.depth, kernel, pool, separable, config.dropout,
            config.norm_momentum,
        )  # fmt: skip
        self.dropout = nn.Dropout(config.dropout)
        n_steps = shape.n_times // pool // self.second_pool
        self.dense = MaxNormLinear(self.token_width * n_steps, embed_dim, config.dense_max_norm)

    def _maps(self, data: Tensor, subject: Tensor) -> Tensor:
        if self.people is not None:
            data = self.people(data, subject)
        maps: Tensor = self.blocks(data)
        return maps

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return the features in front of the second pooling, ``(b, n_times / pool, token_width)``."""
        return self._maps(data, subject).transpose(1, 2)

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
        maps = F.avg_pool1d(self._maps(data, subject), self.second_pool)
        embeds: Tensor = self.dense(self.dropout(maps).flatten(1))
        return embeds
