"""DeepConvNet: temporal and spatial convolution, then blocks of convolution and max pooling.

The defaults are the sizes of the authors of EEGNet for 128 Hz (kernels of 5, pools of 2). Those of the first
publication, ``kernel=10, pool=3, published_sfreq=250``, need epochs of 1.8 s. At another rate than the published one
each block gets the number of samples that lasts as long at the rate that reaches it, so that a second stays a second.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.constraints import MaxNormConv2d, MaxNormLinear
from encoders.layers.folded_convolution import FoldedConvolution
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers


class DeepConvNetConfig(BaseModel):
    """Sizes of `DeepConvNet`; the defaults are those for 128 Hz."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Schirrmeister et al. 2017, Hum. Brain Mapp.; sizes: Lawhern et al. 2018, arXiv:1611.08024"

    name: Literal["deep_conv_net"] = "deep_conv_net"
    n_filters: int = Field(25, gt=0, description="maps of the first block; each block doubles them")
    n_blocks: int = Field(4, gt=0, description="fewer for short epochs: each halves their length")
    kernel: int = Field(5, gt=0, description="samples at the published rate")
    pool: int = Field(2, gt=0, description="samples at the published rate")
    published_sfreq: float = Field(128.0, gt=0, description="rate that kernel and pool belong to, Hz")
    dropout: float = Field(0.5, ge=0, lt=1)
    conv_max_norm: float = Field(2.0, gt=0)
    dense_max_norm: float = Field(0.5, gt=0, description="longest row of the dense layer")
    subject_layers: bool = Field(False, description="one channel mixing per person before the convolutions (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "DeepConvNet":
        """Build the untrained network."""
        return DeepConvNet(self, shape, embed_dim)

    def sizes(self, sfreq: float) -> list[tuple[int, int]]:
        """Give kernel and pool of every block in samples of what reaches it."""
        found = []
        published = self.published_sfreq
        for _ in range(self.n_blocks):
            kernel, pool = (max(round(n * sfreq / published), 1) for n in (self.kernel, self.pool))
            found.append((kernel, pool))
            sfreq, published = sfreq / pool, published / self.pool
        return found


class DeepConvNet(nn.Module):
    """Convolve over time and sensors, then over time in blocks that pool, project.

    Parameters
    ----------
    config : DeepConvNetConfig
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
        If nothing would be left of an epoch.

    References
    ----------
    Schirrmeister et al. 2017, "Deep learning with convolutional neural networks for EEG decoding and visualization".
    """

    def __init__(self, config: DeepConvNetConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        sizes = config.sizes(shape.sfreq)
        shortest = 1
        for kernel, pool in reversed(sizes):
            shortest = shortest * pool + kernel - 1
        if shape.n_times < shortest:
            raise ValueError(
                f"deep_conv_net with {config.n_blocks} blocks needs epochs of at least {shortest} samples at "
                f"{shape.sfreq:g} Hz, got {shape.n_times}; lengthen the window or set a smaller n_blocks"
            )
        n_steps = shape.n_times
        for kernel, pool in sizes:
            n_steps = (n_steps - kernel + 1) // pool
        self.pools = [pool for _, pool in sizes]
        widths = [config.n_filters * 2**i for i in range(config.n_blocks)]
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.front = FoldedConvolution(
            widths[0], widths[0], shape.n_channels, sizes[0][0], bias=True, max_norm=config.conv_max_norm
        )
        self.convs = nn.ModuleList(
            MaxNormConv2d(n_in, n_out, (1, kernel), max_norm=config.conv_max_norm)
            for n_in, n_out, (kernel, _) in zip(widths, widths[1:], sizes[1:], strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths)
        self.dropout = nn.Dropout(config.dropout)
        self.token_width = widths[-1]
        self.dense = MaxNormLinear(widths[-1] * n_steps, embed_dim, config.dense_max_norm)

    def _maps(self, data: Tensor, subject: Tensor) -> Tensor:
        if self.people is not None:
            data = self.people(data, subject)
        maps: Tensor = self.front(data)
        for i, (norm, pool) in enumerate(zip(self.norms, self.pools, strict=True)):
            if i:
                conv = self.convs[i - 1]
                assert isinstance(conv, MaxNormConv2d)
                maps = F.conv1d(maps, conv.weight.squeeze(2), conv.bias)
            # ELU rises everywhere, so it may follow the maximum: fewer samples, same result
            maps = self.dropout(F.elu(F.max_pool1d(norm(maps), pool)))
        return maps

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return the features in front of the dense layer, ``(b, n_steps, token_width)``."""
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
        embeds: Tensor = self.dense(self._maps(data, subject).flatten(1))
        return embeds
