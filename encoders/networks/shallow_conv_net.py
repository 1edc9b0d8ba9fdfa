"""ShallowConvNet: a temporal-spatial convolution whose log power is averaged over time and projected.

The defaults are the ARL collection's sizes for 128 Hz; the preset ``shallow_conv_net_original`` has the original
pooling of 75 samples in steps of 15 at 250 Hz.
"""

from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.constraints import MaxNormLinear
from encoders.layers.folded_convolution import FoldedConvolution
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers

MOMENTUM, EPSILON = 0.1, 1e-5
POWER_RANGE = (1e-7, 1e4)


class ShallowConvNetConfig(BaseModel):
    """Sizes of `ShallowConvNet`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Schirrmeister et al. 2017, Hum. Brain Mapp., arXiv:1703.05051"

    name: Literal["shallow_conv_net"] = "shallow_conv_net"
    n_filters: int = Field(40, gt=0)
    kernel: float = Field(0.1, gt=0, description="temporal kernel, s (13 samples at 128 Hz)")
    pool: float = Field(35 / 128, gt=0, description="averaging window, s")
    stride: float = Field(7 / 128, gt=0, description="averaging step, s")
    dropout: float = Field(0.5, ge=0, lt=1)
    subject_layers: bool = Field(False, description="one channel mixing per person before the convolutions (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "ShallowConvNet":
        """Build the untrained network."""
        return ShallowConvNet(self, shape, embed_dim)


class ShallowConvNet(nn.Module):
    """Filter, square, average, take the logarithm, project.

    It sees power only: the sign of a response is lost, which suits rhythms and costs much on evoked responses.

    Parameters
    ----------
    config : ShallowConvNetConfig
    shape : SignalShape
    embed_dim : int
        Width of the output. With the number of classes here, this is the published classifier without its softmax.

    Raises
    ------
    ValueError
        If the epoch is shorter than one kernel and one averaging window.

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
        n, n_steps = config.n_filters, (shape.n_times - shortest) // self.stride + 1
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.filters = FoldedConvolution(n, n, shape.n_channels, kernel, bias=False, max_norm=2.0)
        self.norm = nn.BatchNorm1d(n, eps=EPSILON, momentum=MOMENTUM)
        self.dropout = nn.Dropout(config.dropout)
        self.token_width = n
        self.head = MaxNormLinear(n * n_steps, embed_dim, max_norm=0.5)

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return log power per step, (b, n_steps, token_width); arguments as in `forward`."""
        maps = self.norm(self.filters(data if self.people is None else self.people(data, subject)))
        power = F.avg_pool1d(maps.square(), self.pool, self.stride)
        # (b, n, s) -> (b, s, n)
        return torch.transpose(self.dropout(power.clamp(*POWER_RANGE).log()), 1, 2)

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
