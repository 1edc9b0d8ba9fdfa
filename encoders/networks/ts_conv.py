"""TSConv, the network of NICE, and its relatives in UBP and NeuroBridge: temporal and spatial convolution, projection.

Kernels are given in seconds (published: 25, 51 and 5 samples at 250 Hz) so that the same network means the same thing
at 100 Hz. NICE mixes the maps once more and flattens position by position; NeuroBridge mixes and flattens channel by
channel; UBP does not mix and flattens channel by channel. With ``causal=True`` the signal counts as zero before the
epoch, so that there is a token after every ``stride``, and the projection can be asked after each of them.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from encoders.layers.causal import RunningSum, refuse_unless_causal, running_dense
from encoders.layers.residual_projection import ResidualProjection
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers
from encoders.layers.temporal_spatial_conv import TemporalSpatialConv, flatten_tokens


class TSConvConfig(BaseModel):
    """Sizes of `TSConv`; the defaults are the network of NICE."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Song et al. 2024, ICLR, arXiv:2308.13234 (NICE); Wu et al. 2025, CVPR (UBP)"

    name: Literal["ts_conv"] = "ts_conv"
    n_filters: int = Field(40, gt=0)
    kernel: float = Field(0.1, gt=0, description="temporal kernel, s")
    pool: float = Field(0.204, gt=0, description="mean pooling window, s")
    stride: float = Field(0.02, gt=0, description="pooling step, s")
    mix: bool = Field(True, description="a 1 x 1 convolution after the spatial one; UBP has none")
    flatten: Literal["position", "channel"] = Field("position", description="slow axis; UBP, NeuroBridge: channel")
    dropout: float = Field(0.5, ge=0, lt=1)
    subject_layers: bool = Field(False, description="one channel mixing per person before the convolutions (ours)")
    causal: bool = Field(False, description="a token after every stride from the onset on (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "TSConv":
        """Build the untrained network."""
        return TSConv(self, shape, embed_dim)


@dataclass(frozen=True)
class TSConvState:
    """What a running epoch leaves behind: the person's matrix, samples still needed, and the projection's sum."""

    mixing: Tensor | None
    tail: Tensor
    projected: RunningSum


class TSConv(TemporalSpatialConv):
    """Convolve over time, pool, convolve over all sensors, project.

    Parameters
    ----------
    config : TSConvConfig
    shape : SignalShape
        Channels and samples are fixed by the spatial convolution and the dense layer.
    embed_dim : int
        Width of the output.

    Raises
    ------
    ValueError
        If the epoch is shorter than one kernel plus one pooling window, or, when causal, than one stride, or the
        stride leaves out samples.

    References
    ----------
    Song et al. 2024, "Decoding natural images from EEG for object recognition", ICLR, arXiv:2308.13234.
    """

    def __init__(self, config: TSConvConfig, shape: SignalShape, embed_dim: int) -> None:
        kernel, pool, stride = (
            max(round(seconds * shape.sfreq), 1) for seconds in (config.kernel, config.pool, config.stride)
        )
        span = kernel + pool - 1
        if config.causal and stride > span:
            raise ValueError(
                f"a causal ts_conv needs a stride of at most {span} samples (kernel and pool), got {stride}; shorten it"
            )
        # with this much silence in front, the first token is complete after one stride
        silence = span - stride if config.causal else 0
        shortest = span - silence
        if shape.n_times < shortest:
            raise ValueError(
                f"ts_conv needs epochs of at least {shortest} samples at {shape.sfreq:g} Hz, got {shape.n_times}; "
                "lengthen the window or shorten kernel and pool"
            )
        super().__init__(
            shape.n_channels,
            shape.n_times + silence,
            n_filters=config.n_filters,
            kernel=kernel,
            pool=pool,
            stride=stride,
            dropout=config.dropout,
            mix=config.mix,
        )
        self.causal, self.silence = config.causal, silence
        self.order = config.flatten
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.head = ResidualProjection(config.n_filters * self.n_steps, embed_dim, config.dropout)

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return what stands before the projection, ``(b, n_steps, token_width)``; arguments as in `forward`."""
        if self.people is not None:
            data = self.people(data, subject)
        return self.convolve(F.pad(data, (self.silence, 0)) if self.silence else data)

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
        embeds: Tensor = self.head(flatten_tokens(self.tokens(data, positions, subject), self.order))
        return embeds

    def over_time(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed, after every stride, the epoch so far; the last step is what `forward` gives.

        The dense layer counts tokens of the future as zero.

        Returns
        -------
        Tensor, (b, n_steps, embed_dim), float32
            Step ``s`` has seen ``(s + 1) * stride`` samples and in evaluation mode depends on no other.

        Raises
        ------
        ValueError
            If the network is not causal.
        """
        refuse_unless_causal(self, "ts_conv")
        return self._project(self.tokens(data, positions, subject), None)[0]

    def start(self, positions: Tensor, subject: Tensor) -> TSConvState:
        """Begin epochs of known people, (b,), for `step`; positions are not used."""
        refuse_unless_causal(self, "ts_conv")
        mixing = None if self.people is None else self.people.matrices(subject)
        weight = self.head.linear.weight
        tail = weight.new_zeros(len(subject), self.spatial.kernel_size[0], self.silence)
        return TSConvState(mixing, tail, RunningSum(weight.new_zeros(len(subject), len(weight)), 0))

    def step(self, chunk: Tensor, state: TSConvState) -> tuple[Tensor, TSConvState]:
        """Continue epochs by a chunk, ``(b, c, n)``; returns the steps of `over_time` that it completes."""
        if state.mixing is not None:
            chunk = state.mixing @ chunk
        seen = torch.cat([state.tail, chunk], dim=2)
        n_steps = (seen.shape[2] - self.silence) // self.stride
        if n_steps == 0:
            none = chunk.new_empty(len(chunk), 0, state.projected.total.shape[1])
            return none, TSConvState(state.mixing, seen, state.projected)
        tokens = self.convolve(seen[:, :, : self.silence + n_steps * self.stride])
        embeds, projected = self._project(tokens, state.projected)
        return embeds, TSConvState(state.mixing, seen[:, :, n_steps * self.stride :], projected)

    def _project(self, tokens: Tensor, state: RunningSum | None) -> tuple[Tensor, RunningSum]:
        """Apply the projection after each of the next tokens, ``(b, s, n)`` to ``(b, s, embed_dim)``."""
        weight = self.head.linear.weight
        # the part of the dense layer that reads each token, (embed_dim, s, n)
        if self.order == "position":
            parts = weight.view(len(weight), self.n_steps, self.token_width)
        else:
            parts = weight.view(len(weight), self.token_width, self.n_steps).transpose(1, 2)
        sums, state = running_dense(tokens, parts, state)
        return self.head.refine(sums + self.head.linear.bias), state
