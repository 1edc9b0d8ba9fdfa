"""ATM: attention first, convolution after. Two networks were published under the name; both are here.

`ATM` (``ATMS`` in its code) treats every channel's whole time course as one token and puts a learned token of the
person in front; `ATM50` (``ATMS_50``) attends over time and knows no person. The rest, convolutions and projection, is
the same. Parameters of the published classes that never reach their output (mask tokens, the embedding of time stamps,
a duplicate encoder layer, the per-person linear maps of ``ATMS``) do not exist here.

What may surprise: in ``ATMS`` as many tokens as there are channels are kept *after* the person's token was put in
front. So the convolution sees the person's token as its first row, and the last channel only through the attention.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.residual_projection import ResidualProjection
from encoders.layers.signal_shape import SignalShape
from encoders.layers.temporal_spatial_conv import TemporalSpatialConv, flatten_tokens

KERNEL, POOL, STRIDE = 25, 51, 5
CONV_DROPOUT = 0.5


class ATMConfig(BaseModel):
    """Sizes of `ATM`; the defaults are the published network."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Li et al. 2024, NeurIPS, arXiv:2403.07721 (ATM, class ATMS)"

    name: Literal["atm"] = "atm"
    width: int = Field(250, ge=KERNEL + POOL - 1, description="features of a channel's token")
    n_heads: int = Field(4, gt=0)
    feedforward: int = Field(256, gt=0)
    n_filters: int = Field(40, gt=0)
    dropout: float = Field(0.25, ge=0, lt=1, description="in the transformer; the convolutions have 0.5")
    subject_dropout: float = Field(0.1, ge=0, lt=1, description="share of samples trained as an unknown person (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "ATM":
        """Build the untrained network."""
        return ATM(self, shape, embed_dim)


class ATM50Config(BaseModel):
    """Sizes of `ATM50`; the defaults are the published network. There is one attention head."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Li et al. 2024, NeurIPS, arXiv:2403.07721 (ATM, older class ATMS_50)"

    name: Literal["atm_50"] = "atm_50"
    width: int = Field(250, ge=KERNEL + POOL - 1, description="samples after the linear map of time")
    feedforward: int = Field(2048, gt=0)
    n_filters: int = Field(40, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1, description="in the transformer; the convolutions have 0.5")

    def build(self, shape: SignalShape, embed_dim: int) -> "ATM50":
        """Build the untrained network."""
        return ATM50(self, shape, embed_dim)


class ATM(nn.Module):
    """Attend over channels and the person, convolve the attended tokens, project.

    Parameters
    ----------
    config : ATMConfig
    shape : SignalShape
        Channels and samples are fixed by the spatial convolution and the token embedding.
    embed_dim : int
        Width of the output.

    Attributes
    ----------
    people : nn.Parameter, (n_subjects + 1, width)
        One token per person; the last row is the shared token, which an unknown person gets. In the published code
        one unknown person in a batch switches the whole batch to it; here it is decided for each sample.

    References
    ----------
    Li et al. 2024, "Visual decoding and reconstruction via EEG embeddings with guided diffusion", NeurIPS.
    """

    def __init__(self, config: ATMConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        self.n_subjects = shape.n_subjects
        self.subject_dropout = config.subject_dropout
        self.embedding = nn.Linear(shape.n_times, config.width)
        self.people = nn.Parameter(torch.randn(shape.n_subjects + 1, config.width))
        self.layer = _AttentionLayer(
            config.width,
            config.n_heads,
            config.width // config.n_heads,
            config.feedforward,
            dropout=config.dropout,
            activation="gelu",
        )
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.convs = _convolutions(shape.n_channels, config.width, config.n_filters)
        self.head = ResidualProjection(config.n_filters * self.convs.n_steps, embed_dim, CONV_DROPOUT)
        self.token_width = self.convs.token_width

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return what stands before the projection, ``(b, n_steps, token_width)``; arguments as in `forward`."""
        if self.training and self.subject_dropout > 0:
            unknown = torch.rand(subject.shape, device=subject.device) < self.subject_dropout
            subject = subject.masked_fill(unknown, self.n_subjects)
        channels = self.dropout(torch.cat([self.people[subject].unsqueeze(1), self.embedding(data)], dim=1))
        # the last channel is asked by the others but asks nothing itself: its own token is not used afterwards
        attended = self.norm(self.layer(channels, n_out=data.shape[1]))
        return self.convs.convolve(attended)

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed epochs.

        Parameters
        ----------
        data : Tensor, (b, c, t), float32
            Preprocessed, unitless.
        positions : Tensor, (c, 2) or (b, c, 2), float32
            Not used.
        subject : Tensor, (b,), int64
            0 to ``n_subjects - 1``, or ``n_subjects`` for an unknown person.

        Returns
        -------
        Tensor, (b, embed_dim), float32
        """
        embeds: Tensor = self.head(flatten_tokens(self.tokens(data, positions, subject), "position"))
        return embeds


class ATM50(nn.Module):
    """Attend over time with the channels as features, map time linearly, convolve, project.

    Parameters
    ----------
    config : ATM50Config
    shape : SignalShape
        Channels and samples are fixed by the transformer and the linear map of time.
    embed_dim : int
        Width of the output.

    References
    ----------
    Li et al. 2024, "Visual decoding and reconstruction via EEG embeddings with guided diffusion", NeurIPS.
    """

    time_code: Tensor

    def __init__(self, config: ATM50Config, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        self.register_buffer("time_code", sinusoids(shape.n_times, shape.n_channels), persistent=False)
        self.layer = _AttentionLayer(
            shape.n_channels,
            1,
            shape.n_channels,
            config.feedforward,
            dropout=config.dropout,
            activation="relu",
        )
        self.time = nn.Linear(shape.n_times, config.width)
        self.convs = _convolutions(shape.n_channels, config.width, config.n_filters)
        self.head = ResidualProjection(config.n_filters * self.convs.n_steps, embed_dim, CONV_DROPOUT)
        self.token_width = self.convs.token_width

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return what stands before the projection, ``(b, n_steps, token_width)``; arguments as in `forward`."""
        # (b, c, t) -> (b, t, c), and back
        attended = self.layer(data.transpose(1, 2) + self.time_code).transpose(1, 2)
        return self.convs.convolve(self.time(attended))

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed epochs.

        Parameters
        ----------
        data : Tensor, (b, c, t), float32
            Preprocessed, unitless.
        positions : Tensor, (c, 2) or (b, c, 2), float32
            Not used.
        subject : Tensor, (b,), int64
            Not used.

        Returns
        -------
        Tensor, (b, embed_dim), float32
        """
        embeds: Tensor = self.head(flatten_tokens(self.tokens(data, positions, subject), "position"))
        return embeds


class _AttentionLayer(nn.Module):
    """One transformer layer, normalised after each residual sum, with heads of any width."""

    def __init__(
        self,
        width: int,
        n_heads: int,
        head_width: int,
        feedforward: int,
        *,
        dropout: float,
        activation: Literal["gelu", "relu"],
    ) -> None:
        super().__init__()
        self.n_heads, self.head_width = n_heads, head_width
        self.qkv = nn.Linear(width, 3 * n_heads * head_width)
        self.out = nn.Linear(n_heads * head_width, width)
        self.attended_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.activation = nn.GELU() if activation == "gelu" else nn.ReLU()
        self.contract = nn.Linear(feedforward, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, n_out: int | None = None) -> Tensor:
        """Map ``(b, n, width)`` to ``(b, n_out, width)``: all tokens are attended to, the first ``n_out`` attend."""
        n_epochs, n_tokens, _ = tokens.shape
        qkv = self.qkv(tokens).view(n_epochs, n_tokens, 3, self.n_heads, self.head_width)
        # (b, n, 3, h, w) -> three of (b, h, n, w)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        heads = F.scaled_dot_product_attention(query[:, :, :n_out], key, value, dropout_p=dropout)
        # (b, h, n_out, w) -> (b, n_out, h * w)
        attended = self.out(heads.transpose(1, 2).flatten(2))
        tokens = self.attended_norm(tokens[:, :n_out] + self.dropout(attended))
        changed = self.dropout(self.contract(self.dropout(self.activation(self.expand(tokens)))))
        normed: Tensor = self.norm(tokens + changed)
        return normed


def sinusoids(n_steps: int, width: int) -> Tensor:
    """Return sines (even columns) and cosines (odd columns) of falling frequency, ``(n_steps, width)``.

    References
    ----------
    Vaswani et al. 2017, section 3.5.
    """
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angle = torch.arange(n_steps).to(torch.float32)[:, None] * frequency
    code = torch.empty(n_steps, width)
    code[:, 0::2] = angle.sin()
    code[:, 1::2] = angle[:, : width // 2].cos()
    return code


def _convolutions(n_channels: int, width: int, n_filters: int) -> TemporalSpatialConv:
    return TemporalSpatialConv(
        n_channels, width, n_filters=n_filters, kernel=KERNEL, pool=POOL, stride=STRIDE, dropout=CONV_DROPOUT
    )
