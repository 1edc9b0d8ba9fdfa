"""Query decoder: patches of the signal become tokens, and one learned query reads the embedding out of them.

What object tracking (STARK) lends to decoding: encoder layers over tokens, a decoder with a single query in place of a
mean, and a template beside the present (`encoders.template_memory`). The sizes are ours: STARK reads video with a
ResNet-50, six encoder and six decoder layers. Here the patches alone are the encoder, because self-attention slowed
learning down on simulated single epochs, and the heads start with latencies that tile the epoch, because heads that had
to find theirs hardly learned. 200-way top-5 after 150 steps of 256 of 3,000 simulated epochs of one person, 4 averaged
at test: 0.575, without the tiling and at half the width 0.045 to 0.28, ridge 0.54, chance 0.025 (one seed).
"""

from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from encoders.layers.query_decoder_pool import QueryDecoderPool
from encoders.layers.residual_projection import ResidualProjection
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers


class QueryDecoderConfig(BaseModel):
    """Sizes of `QueryDecoder`, ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "after Yan et al. 2021, ICCV, arXiv:2103.17154 (STARK)"

    name: Literal["query_decoder"] = "query_decoder"
    width: int = Field(256, gt=0, description="of the tokens (STARK: 256)")
    n_heads: int = Field(32, gt=0, description="windows of latency at the start")
    feedforward: int = Field(256, gt=0)
    encoder_layers: int = Field(0, ge=0, description="self-attention among tokens (STARK: 6)")
    decoder_layers: int = Field(1, gt=0, description="cross-attention of the query (STARK: 6)")
    patch: float = Field(0.1, gt=0, description="length of a patch, s")
    stride: float = Field(0.04, gt=0, description="step between patches, s")
    dropout: float = Field(0.25, ge=0, lt=1)
    subject_layers: bool = Field(False, description="one channel mixing per person before the patches")

    def build(self, shape: SignalShape, embed_dim: int) -> "QueryDecoder":
        """Build the untrained network."""
        return QueryDecoder(self, shape, embed_dim)


class QueryDecoder(nn.Module):
    """Convolve patches of all sensors into tokens, let them attend to each other, read them with one query, project.

    Parameters
    ----------
    config : QueryDecoderConfig
    shape : SignalShape
        Channels are fixed by the patches, samples by the learned place of each patch.
    embed_dim : int
        Width of the output.

    Raises
    ------
    ValueError
        If the epoch is shorter than a patch, or the heads do not divide the width.

    References
    ----------
    Yan et al. 2021, "Learning Spatio-Temporal Transformer for Visual Tracking", ICCV, arXiv:2103.17154.
    """

    def __init__(self, config: QueryDecoderConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        patch, stride = (max(round(seconds * shape.sfreq), 1) for seconds in (config.patch, config.stride))
        if shape.n_times < patch:
            raise ValueError(
                f"query_decoder needs epochs of at least {patch} samples at {shape.sfreq:g} Hz, got {shape.n_times}; "
                "lengthen the window or shorten patch"
            )
        n_tokens = (shape.n_times - patch) // stride + 1
        self.token_width = config.width
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.patches = nn.Conv1d(shape.n_channels, config.width, patch, stride=stride, bias=False)
        self.patch_norm = nn.BatchNorm1d(config.width)
        self.position = nn.Parameter(0.02 * torch.randn(n_tokens, config.width))
        self.position_scores = nn.Parameter(_tiling_scores(config.n_heads, n_tokens))
        self.pool = QueryDecoderPool(
            config.width, config.n_heads, config.decoder_layers, config.feedforward, config.dropout
        )
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width, config.n_heads, config.feedforward, config.dropout, "gelu", batch_first=True,
                norm_first=True,
            )
            for _ in range(config.encoder_layers)
        )  # fmt: skip
        self.token_norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.head = ResidualProjection(config.width, embed_dim, config.dropout)

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return the tokens in front of the query, (b, n_tokens, token_width); arguments as in `forward`."""
        if self.people is not None:
            data = self.people(data, subject)
        # (b, w, s) -> (b, s, w)
        tokens = self.patch_norm(self.patches(data)).transpose(1, 2) + self.position
        tokens = self.dropout(tokens)
        for layer in self.layers:
            tokens = layer(tokens)
        normed: Tensor = self.token_norm(tokens)
        return normed

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
        embeds: Tensor = self.head(self.pool(self.tokens(data, positions, subject), prior=self.position_scores))
        return embeds


def _tiling_scores(n_heads: int, n_tokens: int) -> Tensor:
    """Return scores (n_heads, n_tokens) whose softmax are windows of latency that tile the epoch, one per head."""
    centres = (torch.arange(n_heads) + 0.5) / n_heads
    places = (torch.arange(n_tokens) + 0.5) / n_tokens
    width = max(0.75 / n_heads, 0.5 / n_tokens)
    return -0.5 * ((places - centres[:, None]) / width).square()
