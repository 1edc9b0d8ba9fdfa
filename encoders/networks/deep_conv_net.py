"""DeepConvNet: a temporal-spatial convolution and three more convolutions, each with pooling.

Sizes are those of the ARL collection, whose kernels are half the original's because it assumes 128 Hz; in seconds both
are the same network.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.constraints import MaxNormConv2d, MaxNormLinear
from encoders.layers.folded_convolution import FoldedConvolution
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers

POOL = 2
MOMENTUM, EPSILON = 0.1, 1e-5


class DeepConvNetConfig(BaseModel):
    """Sizes of `DeepConvNet`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Schirrmeister et al. 2017, Hum. Brain Mapp., arXiv:1703.05051"

    name: Literal["deep_conv_net"] = "deep_conv_net"
    widths: tuple[int, ...] = Field((25, 50, 100, 200), min_length=1, description="maps of each block")
    kernel: float = Field(0.04, gt=0, description="temporal kernel of every block, s (5 samples at 128 Hz)")
    dropout: float = Field(0.5, ge=0, lt=1)
    subject_layers: bool = Field(False, description="one channel mixing per person before the convolutions (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "DeepConvNet":
        """Build the untrained network."""
        return DeepConvNet(self, shape, embed_dim)


class DeepConvNet(nn.Module):
    """Convolve, pool and drop four times; project.

    Parameters
    ----------
    config : DeepConvNetConfig
    shape : SignalShape
    embed_dim : int
        Width of the output. With the number of classes here, this is the published classifier without its softmax.

    Raises
    ------
    ValueError
        If nothing of the epoch is left after the last pooling; 100 samples at 100 Hz leave 3.

    References
    ----------
    Schirrmeister et al. 2017, "Deep learning with convolutional neural networks for EEG decoding and visualization".
    """

    def __init__(self, config: DeepConvNetConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        kernel = max(round(config.kernel * shape.sfreq), 1)
        n_steps = shape.n_times
        for _ in config.widths:
            n_steps = (n_steps - kernel + 1) // POOL
        if n_steps < 1:
            raise ValueError(
                f"deep_conv_net has nothing left of {shape.n_times} samples after {len(config.widths)} blocks of "
                f"kernel {kernel} and pooling {POOL}, expected at least one step; lengthen the window or give "
                "fewer widths"
            )
        widths = config.widths
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.first = FoldedConvolution(widths[0], widths[0], shape.n_channels, kernel, bias=True, max_norm=2.0)
        self.convs = nn.ModuleList(
            MaxNormConv2d(n_in, n_out, (1, kernel), max_norm=2.0)
            for n_in, n_out in zip(widths[:-1], widths[1:], strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width, eps=EPSILON, momentum=MOMENTUM) for width in widths)
        self.dropout = nn.Dropout(config.dropout)
        self.token_width = widths[-1]
        self.head = MaxNormLinear(widths[-1] * n_steps, embed_dim, max_norm=0.5)

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return the last block's steps, (b, n_steps, token_width); arguments as in `forward`."""
        maps = self.first(data if self.people is None else self.people(data, subject))
        maps = self._pooled(self.norms[0](maps))
        for conv, norm in zip(self.convs, list(self.norms)[1:], strict=True):
            maps = self._pooled(norm(conv(maps.unsqueeze(2)).squeeze(2)))
        # (b, m, s) -> (b, s, m)
        return maps.transpose(1, 2)

    def _pooled(self, maps: Tensor) -> Tensor:
        pooled: Tensor = self.dropout(F.max_pool1d(F.elu(maps), POOL))
        return pooled

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
