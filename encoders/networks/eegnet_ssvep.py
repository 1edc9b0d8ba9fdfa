"""EEGNet for steady-state visual responses: many long temporal filters with one spatial filter each.

Kernels and pools are given in seconds (published: 256, 4, 16 and 8 samples at 256 Hz), the second pair at the rate
that the first pooling leaves.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.eegnet_blocks import EEGNetBlocks
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers

DEPTH = 1
NORM_MOMENTUM = 0.01


class EEGNetSSVEPConfig(BaseModel):
    """Sizes of `EEGNetSSVEP`; the defaults are the published network."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Waytowich et al. 2018, J. Neural Eng. 15 066031, arXiv:1803.04566"

    name: Literal["eegnet_ssvep"] = "eegnet_ssvep"
    n_filters: int = Field(96, gt=0, description="temporal filters, each with one spatial filter")
    kernel: float = Field(1.0, gt=0, description="temporal kernel, s")
    pool: float = Field(1 / 64, gt=0, description="first mean pooling, s")
    separable_kernel: float = Field(0.25, gt=0, description="kernel of the separable convolution, s")
    second_pool: float = Field(0.125, gt=0, description="second mean pooling, s")
    dropout: float = Field(0.5, ge=0, lt=1)
    subject_layers: bool = Field(False, description="one channel mixing per person before the filters (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "EEGNetSSVEP":
        """Build the untrained network."""
        return EEGNetSSVEP(self, shape, embed_dim)


class EEGNetSSVEP(nn.Module):
    """EEGNet's blocks with one spatial filter per temporal filter, and a dense layer without a norm limit.

    Parameters
    ----------
    config : EEGNetSSVEPConfig
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
    Waytowich et al. 2018, "Compact convolutional neural networks for classification of asynchronous steady-state
    visual evoked potentials".
    """

    def __init__(self, config: EEGNetSSVEPConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        kernel, pool = (max(round(seconds * shape.sfreq), 1) for seconds in (config.kernel, config.pool))
        slower = shape.sfreq / pool
        separable, self.second_pool = (
            max(round(seconds * slower), 1) for seconds in (config.separable_kernel, config.second_pool)
        )
        if shape.n_times < pool * self.second_pool:
            raise ValueError(
                f"eegnet_ssvep needs epochs of at least {pool * self.second_pool} samples at {shape.sfreq:g} Hz, got "
                f"{shape.n_times}; lengthen the window or shorten pool and second_pool"
            )
        self.token_width = config.n_filters * DEPTH
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.blocks = EEGNetBlocks(
            shape.n_channels, config.n_filters, DEPTH, kernel, pool, separable, config.dropout, NORM_MOMENTUM
        )
        self.dropout = nn.Dropout(config.dropout)
        n_steps = shape.n_times // pool // self.second_pool
        self.dense = nn.Linear(self.token_width * n_steps, embed_dim)

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
