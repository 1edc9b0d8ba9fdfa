"""LF-CNN and VAR-CNN: spatial de-mixing into latent sources, temporal filters, max pooling, dense layer.

Both follow a generative model of MEG and differ in one thing. LF-CNN filters each latent source by itself. VAR-CNN
filters every latent across all of them, as a vector-autoregressive model does, so it alone can see that one source
leads another. Kernel and pool are given in seconds (published: 7 and 2 samples; taken at 125 Hz). The L1 norms are
part of the loss (`Penalised`); `encoders.interpret.patterns` turns the spatial filters into topographies.
"""

from math import ceil
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.constraints import Penalised
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers
from encoders.layers.temporal_filter import filter_each, same_padding

FIRST_BIAS = 0.1


class LFCNNConfig(BaseModel):
    """Sizes of `LFCNN`; the defaults are the published networks, ``name`` tells which."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Zubarev et al. 2019, NeuroImage 197:425-434"

    name: Literal["lf_cnn", "var_cnn"] = "lf_cnn"
    n_latents: int = Field(32, gt=0, description="latent sources")
    kernel: float = Field(0.056, gt=0, description="temporal kernel, s")
    pool: float = Field(0.016, gt=0, description="max pooling window and step, s")
    dropout: float = Field(0.5, ge=0, lt=1)
    l1: float = Field(3e-4, ge=0, description="weight of the L1 norm of all filters and dense weights in the loss")
    subject_layers: bool = Field(False, description="one channel mixing per person before the de-mixing (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "LFCNN":
        """Build the untrained network."""
        return LFCNN(self, shape, embed_dim)


class LFCNN(Penalised):
    """De-mix sensors into latent sources, filter these in time, keep the largest of each window, project.

    Parameters
    ----------
    config : LFCNNConfig
    shape : SignalShape
        Channels and samples are fixed by the de-mixing and the dense layer.
    embed_dim : int
        Width of the output.

    Attributes
    ----------
    token_width : int
        Width of `tokens`.

    Raises
    ------
    ValueError
        If the epoch is shorter than the temporal kernel.

    References
    ----------
    Zubarev et al. 2019, "Adaptive neural network classifier for decoding MEG signals", NeuroImage 197:425-434.
    """

    def __init__(self, config: LFCNNConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        kernel, self.pool = (max(round(seconds * shape.sfreq), 1) for seconds in (config.kernel, config.pool))
        if shape.n_times < kernel:
            raise ValueError(
                f"{config.name} needs epochs of at least {kernel} samples at {shape.sfreq:g} Hz, got {shape.n_times}; "
                "lengthen the window or shorten kernel"
            )
        n = config.n_latents
        self.l1 = config.l1
        self.token_width = n
        self.alone = config.name == "lf_cnn"
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.demix = nn.Conv1d(shape.n_channels, n, 1)
        self.temporal = nn.Conv1d(n, n, kernel, groups=n if self.alone else 1)
        self.dropout = nn.Dropout(config.dropout)
        self.dense = nn.Linear(n * ceil(shape.n_times / self.pool), embed_dim)
        for part in (self.demix, self.temporal, self.dense):
            nn.init.kaiming_uniform_(part.weight, nonlinearity="relu")
            assert part.bias is not None
            nn.init.constant_(part.bias, FIRST_BIAS)

    @property
    def spatial_filters(self) -> Tensor:
        """De-mixing weights, (n_latents, n_channels)."""
        return self.demix.weight.squeeze(2)

    def penalty(self) -> Tensor:
        """Return the weighted L1 norm of de-mixing, temporal and dense weights, ()."""
        sizes = [part.weight.abs().sum() for part in (self.demix, self.temporal, self.dense)]
        return self.l1 * torch.stack(sizes).sum()

    def latents(self, data: Tensor, subject: Tensor) -> Tensor:
        """Return rectified latent time courses at the full rate, ``(b, n_latents, t)``."""
        return F.relu(self._filtered(data, subject))

    def _filtered(self, data: Tensor, subject: Tensor) -> Tensor:
        if self.people is not None:
            data = self.people(data, subject)
        sources: Tensor = self.demix(data)
        if self.alone:
            assert self.temporal.bias is not None
            return filter_each(sources, self.temporal.weight.squeeze(1)) + self.temporal.bias.unsqueeze(1)
        filtered: Tensor = self.temporal(F.pad(sources, same_padding(self.temporal.kernel_size[0])))
        return filtered

    def _pooled(self, data: Tensor, subject: Tensor) -> Tensor:
        # the largest value first, rectified after: fewer samples, same result
        return F.relu(F.max_pool1d(self._filtered(data, subject), self.pool, ceil_mode=True))

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return the pooled latents in front of the dense layer, ``(b, n_steps, token_width)``."""
        return self._pooled(data, subject).transpose(1, 2)

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
        embeds: Tensor = self.dense(self.dropout(self._pooled(data, subject)).flatten(1))
        return embeds
