"""LF-CNN and VAR-CNN: linear de-mixing into latent sources, one temporal convolution, pooling, one dense layer.

Both are made to be read: a latent source's spatial filter turns into a topography by `encoders.interpret.patterns`.
They differ in the convolution alone: LF has one filter per source, VAR mixes all sources (a vector-autoregressive
model).
"""

from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.constraints import Penalised
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers

POOL = 2
INITIAL_BIAS = 0.1


class LFCNNConfig(BaseModel):
    """Sizes of `LFCNN`; the defaults are published."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Zubarev et al. 2019, NeuroImage 197:425-434"

    name: Literal["lf_cnn"] = "lf_cnn"
    n_latent: int = Field(32, gt=0, description="latent sources")
    taps: int = Field(7, gt=0, description="temporal kernel, samples")
    dropout: float = Field(0.5, ge=0, lt=1)
    l1: float = Field(3e-4, ge=0, description="weight of absolute values of all weights in the loss")
    subject_layers: bool = Field(False, description="one channel mixing per person before the de-mixing (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "LFCNN":
        """Build the untrained network."""
        return LFCNN(self, shape, embed_dim)


class VARCNNConfig(BaseModel):
    """Sizes of the VAR-CNN form of `LFCNN`; the defaults are published."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Zubarev et al. 2019, NeuroImage 197:425-434"

    name: Literal["var_cnn"] = "var_cnn"
    n_latent: int = Field(32, gt=0, description="latent sources")
    taps: int = Field(7, gt=0, description="temporal kernel, samples")
    dropout: float = Field(0.5, ge=0, lt=1)
    l1: float = Field(3e-4, ge=0, description="weight of absolute values of all weights in the loss")
    subject_layers: bool = Field(False, description="one channel mixing per person before the de-mixing (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "LFCNN":
        """Build the untrained network."""
        return LFCNN(self, shape, embed_dim)


class LFCNN(Penalised):
    """De-mix sensors, filter in time, rectify, pool, project.

    Parameters
    ----------
    config : LFCNNConfig or VARCNNConfig
        Which of the two convolutions.
    shape : SignalShape
    embed_dim : int
        Width of the output. With the number of classes here, this is the published classifier without its softmax.

    References
    ----------
    Zubarev, Zetter, Halme, Parkkonen 2019, "Adaptive neural network classifier for decoding MEG signals".
    """

    def __init__(self, config: LFCNNConfig | VARCNNConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        self.l1 = config.l1
        n, groups = config.n_latent, config.n_latent if isinstance(config, LFCNNConfig) else 1
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.demix = nn.Linear(shape.n_channels, n)
        self.temporal = nn.Conv1d(n, n, config.taps, groups=groups)
        self.dropout = nn.Dropout(config.dropout)
        self.token_width = n
        self.head = nn.Linear(n * -(-shape.n_times // POOL), embed_dim)
        for layer in (self.demix, self.temporal, self.head):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.constant_(layer.bias, INITIAL_BIAS)

    def penalty(self) -> Tensor:
        """Return the L1 norm of de-mixing, temporal and dense weights, scaled, ()."""
        weights = (self.demix.weight, self.temporal.weight, self.head.weight)
        return self.l1 * torch.stack([weight.abs().sum() for weight in weights]).sum()

    @property
    def spatial_filters(self) -> Tensor:
        """Weights of the latent sources over the sensors, (n_latent, c), for `encoders.interpret.patterns`."""
        return self.demix.weight

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return the pooled sources, (b, ceil(t / 2), n_latent); arguments as in `forward`."""
        data = data if self.people is None else self.people(data, subject)
        taps = self.temporal.kernel_size[0]
        latent = self.demix.weight @ data + self.demix.bias[:, None]
        latent = F.relu(self.temporal(F.pad(latent, ((taps - 1) // 2, taps // 2))))
        pooled = F.max_pool1d(latent, POOL, ceil_mode=True)
        # (b, n, s) -> (b, s, n)
        return torch.transpose(self.dropout(pooled), 1, 2)

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
