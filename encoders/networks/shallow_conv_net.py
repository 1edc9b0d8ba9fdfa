"""ShallowConvNet: temporal and spatial convolution, then the logarithm of the pooled square, which is band power.

Kernel and pool are given in seconds. The defaults are the sizes of the authors of EEGNet for 128 Hz (13, 35 and 7
samples); ``shallow_conv_net_original`` is the first publication's (25, 75 and 15 samples at 250 Hz).
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.constraints import MaxNormLinear
from encoders.layers.folded_convolution import FoldedConvolution
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers

LOWEST_POWER, HIGHEST_POWER = 1e-7, 1e4


class ShallowConvNetConfig(BaseModel):
    """Sizes of `ShallowConvNet`; the defaults are those for 128 Hz."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Schirrmeister et al. 2017, Hum. Brain Mapp.; sizes: Lawhern et al. 2018, arXiv:1611.08024"

    name: Literal["shallow_conv_net"] = "shallow_conv_net"
    n_filters: int = Field(40, gt=0)
    kernel: float = Field(13 / 128, gt=0, description="temporal kernel, s")
    pool: float = Field(35 / 128, gt=0, description="mean pooling window, s")
    stride: float = Field(7 / 128, gt=0, description="pooling step, s")
    dropout: float = Field(0.5, ge=0, lt=1)
    conv_max_norm: float = Field(2.0, gt=0)
    dense_max_norm: float = Field(0.5, gt=0, description="longest row of the dense layer")
    subject_layers: bool = Field(False, description="one channel mixing per person before the convolutions (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "ShallowConvNet":
        """Build the untrained network."""
        return ShallowConvNet(self, shape, embed_dim)


class ShallowConvNet(nn.Module):
    """Convolve over time and sensors, take the log of the mean square in sliding windows, project.

    Parameters
    ----------
    config : ShallowConvNetConfig
    shape : SignalShape
        Channels and samples are fixed by the spatial convolution and the dense layer.
    embed_dim : int
        Width of the output.

    Attributes
    ----------
    token_width : int
        Width of `tokens`.

    Raises
    ------
    ValueError
        If the epoch is shorter than one kernel plus one pooling window.

    References
    ----------
    Schirrmeister et al. 2017, "Deep learning with convolutional neural networks for EEG decoding and visualization".
    """

    def __init__(self, config: ShallowConvNetConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        kernel, self.pool, self.stride = (
            max(round(seconds * shape.sfreq), 1) for seconds in (config.kernel, config.pool, config.stride)
        )
        shortest = kernel + self.pool - 1
        if shape.n_times < shortest:
            raise ValueError(
                f"shallow_conv_net needs epochs of at least {shortest} samples at {shape.sfreq:g} Hz, got "
                f"{shape.n_times}; lengthen the window or shorten kernel and pool"
            )
        n_steps = (shape.n_times - shortest) // self.stride + 1
        self.token_width = config.n_filters
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.front = FoldedConvolution(
            config.n_filters, config.n_filters, shape.n_channels, kernel, bias=False, max_norm=config.conv_max_norm
        )
        self.norm = nn.BatchNorm1d(config.n_filters)
        self.dropout = nn.Dropout(config.dropout)
        self.dense = MaxNormLinear(config.n_filters * n_steps, embed_dim, config.dense_max_norm)

    def _log_power(self, data: Tensor, subject: Tensor) -> Tensor:
        if self.people is not None:
            data = self.people(data, subject)
        power = F.avg_pool1d(self.norm(self.front(data)).square(), self.pool, self.stride)
        log_power: Tensor = self.dropout(power.clamp(LOWEST_POWER, HIGHEST_POWER).log())
        return log_power

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return the log powers in front of the dense layer, ``(b, n_steps, token_width)``."""
        return self._log_power(data, subject).transpose(1, 2)

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
        embeds: Tensor = self.dense(self._log_power(data, subject).flatten(1))
        return embeds
