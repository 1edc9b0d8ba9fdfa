"""BrainModule: spatial attention over sensor positions, subject layers, dilated convolutions, temporal aggregation.

One set of weights reads any montage, because everything behind the attention sees virtual channels only. Written from
the paper's equations; the defaults are the published sizes. With ``causal=True`` convolutions look back only and every
sample gets an embedding of the epoch so far, so that a decoder can answer while a recording runs.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from encoders.layers.causal import (
    CausalConv1d,
    mix_few,
    refuse_unless_causal,
    running_courses,
    running_mean,
    running_softmax,
)
from encoders.layers.signal_shape import SignalShape
from encoders.layers.spatial_attention import SpatialAttention
from encoders.layers.subject_layers import SubjectLayers

DILATIONS = (1, 2, 4, 8, 16)
BlockState = tuple[Tensor | None, Tensor | None]


class BrainModuleConfig(BaseModel):
    """Sizes of `BrainModule`; the defaults are the published network with a mean over time."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Defossez et al. 2023, Nat. Mach. Intell.; Benchetrit et al. 2024, arXiv:2310.19812"

    name: Literal["brain_module"] = "brain_module"
    n_virtual: int = Field(270, gt=0, description="virtual channels")
    fourier_width: int = Field(2048, gt=0, description="width of the position code, twice a square")
    spatial_dropout: float = Field(0.2, ge=0, description="radius of silenced sensors in training, layout units")
    init: Literal["published", "linear"] = Field(
        "published", description="linear: attention on a grid of places, identity mixing, non-linear branches at zero"
    )
    width: int = Field(320, gt=0, description="channels of the convolutions")
    n_convs: int = Field(10, ge=0, description="dilations cycle through 1, 2, 4, 8, 16; 0 leaves a linear network")
    head_width: int = Field(640, ge=0, description="hidden width of the head; 0 for a linear head")
    time_agg: Literal["mean", "linear", "attention"] = "mean"
    n_time_weights: int = Field(1, gt=0, description="learned time courses of time_agg='linear'")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the aggregated features")
    causal: bool = Field(False, description="look back only, for use while a recording runs")

    def build(self, shape: SignalShape, embed_dim: int) -> "BrainModule":
        """Build the untrained network."""
        return BrainModule(self, shape, embed_dim)


class ConvBlock(nn.Module):
    """Dilated convolution, batch norm, GELU, residual where widths agree, and on every second block a gate (GLU)."""

    def __init__(
        self, n_in: int, width: int, dilation: int, gated: bool, zero_init: bool, causal: bool = False
    ) -> None:
        super().__init__()
        self.conv = _conv(n_in, width, dilation, causal)
        self.norm = nn.BatchNorm1d(width)
        self.gate = _conv(width, 2 * width, 1, causal) if gated else None
        self.is_residual = n_in == width
        self.scale = nn.Parameter(torch.zeros(width, 1)) if zero_init else None

    def forward(self, data: Tensor) -> Tensor:
        out = self._activate(data, self.conv(data))
        return out if self.gate is None else self._gate(data, self.gate(out))

    def step(self, chunk: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        """Continue a causal block; the state is the tail of its convolution and that of its gate."""
        assert isinstance(self.conv, CausalConv1d), "only a causal block has steps"
        out, tail = self.conv.step(chunk, state[0])
        out = self._activate(chunk, out)
        if self.gate is None:
            return out, (tail, None)
        assert isinstance(self.gate, CausalConv1d)
        gated, gate_tail = self.gate.step(out, state[1])
        return self._gate(chunk, gated), (tail, gate_tail)

    def _activate(self, data: Tensor, convolved: Tensor) -> Tensor:
        out = nn.functional.gelu(self.norm(convolved))
        if self.scale is not None:
            return out if self.gate is not None else data + self.scale * out
        return data + out if self.is_residual else out

    def _gate(self, data: Tensor, gated: Tensor) -> Tensor:
        out = nn.functional.glu(gated, dim=1)
        return out if self.scale is None else data + self.scale * out


def _conv(n_in: int, n_out: int, dilation: int, causal: bool) -> nn.Conv1d:
    if causal:
        return CausalConv1d(n_in, n_out, 3, dilation)
    return nn.Conv1d(n_in, n_out, 3, padding=dilation, dilation=dilation)


class TimeAggregation(nn.Module):
    """Reduce ``(b, f, t)`` to ``(b, f, n_weights)`` by learned time courses, attention, or the mean.

    One learned course starts as the mean; several start as short zero-mean wavelets that tile the window, because
    brain noise is strongest at low frequencies and responses last tens of milliseconds.
    """

    def __init__(self, kind: Literal["mean", "linear", "attention"], n_features: int, n_times: int, n_weights: int):
        super().__init__()
        self.kind = kind
        self.course = self.bias = self.score = None
        if kind == "linear":
            flat = torch.full((1, n_times), 1 / n_times)
            self.course = nn.Parameter(flat if n_weights == 1 else _tiling_wavelets(n_weights, n_times))
            self.bias = nn.Parameter(torch.zeros(n_weights))
        elif kind == "attention":
            self.score = nn.Conv1d(n_features, 1, 1)

    def forward(self, data: Tensor) -> Tensor:
        if self.course is not None and self.bias is not None:
            return data @ self.course.T + self.bias
        if self.score is not None:
            weighted: Tensor = (data * self.score(data).softmax(dim=-1)).sum(dim=-1, keepdim=True)
            return weighted
        return data.mean(dim=-1, keepdim=True)

    def step(self, chunk: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Aggregate the epoch so far, at every step of ``(b, f, n)``; returns ``(b, n, f * n_weights)``.

        Learned courses count the future as zero, attention and the mean leave it out. The last step of an epoch is
        what `forward` gives.
        """
        if self.course is not None and self.bias is not None:
            sums, state = running_courses(chunk, self.course, state)
            return (sums + self.bias).flatten(2), state
        if self.score is not None:
            return running_softmax(chunk, self.score(chunk), state)
        return running_mean(chunk, state)


def _tiling_wavelets(n_weights: int, n_times: int) -> Tensor:
    """Return unit-norm, zero-mean Gaussian-windowed cosines and sines in turn, spread evenly, (n_weights, n_times)."""
    index = torch.arange(n_weights)
    width = 0.1 * n_times
    times = (torch.arange(n_times) - (index[:, None] + 0.5) * n_times / n_weights) / width
    phase = (index % 2)[:, None] * math.pi / 2
    waves = torch.exp(-0.5 * times.square()) * torch.cos(2 * math.pi / 3 * times + phase)
    return nn.functional.normalize(waves - waves.mean(dim=1, keepdim=True), dim=1)


@dataclass(frozen=True)
class BrainModuleState:
    """What a running epoch leaves behind: the front end of its montage and person, tails, and the running aggregate."""

    mixing: Tensor
    offset: Tensor
    blocks: tuple[BlockState, ...]
    aggregate: Any = None


class BrainModule(nn.Module):
    """Map epochs of any montage and any known or unknown person to one embedding each.

    Parameters
    ----------
    config : BrainModuleConfig
    shape : SignalShape
        ``n_channels`` is not used: positions decide. ``n_times`` is fixed only by ``time_agg="linear"``.
    embed_dim : int
        Width of the output.

    Raises
    ------
    ValueError
        If a setting has no effect, or widths differ where they must agree.

    References
    ----------
    Defossez et al. 2023, "Decoding speech perception from non-invasive brain recordings", Nat. Mach. Intell.;
    Benchetrit et al. 2024, arXiv:2310.19812 (temporal aggregation).
    """

    def __init__(self, config: BrainModuleConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        is_linear = config.init == "linear"
        if (is_linear or config.n_convs == 0) and config.width != config.n_virtual:
            raise ValueError(
                f"init='linear' and n_convs=0 need width == n_virtual, got {config.width} and {config.n_virtual}; "
                "make them equal"
            )
        if config.n_time_weights > 1 and config.time_agg != "linear":
            raise ValueError(
                f"n_time_weights={config.n_time_weights} has no effect with time_agg='{config.time_agg}'; "
                "use time_agg='linear' or n_time_weights=1"
            )
        n = config.n_virtual
        self.causal = config.causal
        self.attention = SpatialAttention(
            n, config.fourier_width, config.spatial_dropout, "anchored" if is_linear else "random"
        )
        self.mix = nn.Conv1d(n, n, 1)
        self.people = SubjectLayers(n, shape.n_subjects, "identity" if is_linear else "normal")
        self.blocks = nn.Sequential(
            *(
                ConvBlock(
                    n if i == 0 else config.width,
                    config.width,
                    DILATIONS[i % len(DILATIONS)],
                    i % 2 == 1,
                    is_linear,
                    config.causal,
                )
                for i in range(config.n_convs)
            )
        )
        self.hidden = nn.Conv1d(config.width, config.head_width, 1) if config.head_width else None
        n_features = config.head_width or config.width
        # without anything non-linear in between, the time courses may go first: a quarter of the work, same function
        self.commutes = config.n_convs == 0 and config.head_width == 0 and config.time_agg != "attention"
        self.aggregate = TimeAggregation(config.time_agg, n_features, shape.n_times, config.n_time_weights)
        self.token_width = n_features
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(n_features * config.n_time_weights, embed_dim)
        if is_linear:
            nn.init.dirac_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def mix_sensors(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Map ``(b, c, t)`` sensors to ``(b, v, t)`` virtual channels, linearly: attention, mixing, person."""
        virtual: Tensor = self.people(self.mix(self.attention(data, positions)), subject)
        return virtual

    def features(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return the time-resolved features ``(b, f, t)`` in front of the temporal aggregation."""
        data = self.blocks(self.mix_sensors(data, positions, subject))
        return data if self.hidden is None else nn.functional.gelu(self.hidden(data))

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return one token per sample in front of the temporal aggregation, (b, t, token_width)."""
        return self.features(data, positions, subject).transpose(1, 2)  # (b, f, t) -> (b, t, f)

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed epochs.

        Parameters
        ----------
        data : Tensor, (b, c, t), float32
            Preprocessed, unitless.
        positions : Tensor, (c, 2) or (b, c, 2), float32
            Layout coordinates in [0, 1]; negative for unknown places, which are ignored.
        subject : Tensor, (b,), int64
            Index of the person; ``n_subjects`` for an unknown one.

        Returns
        -------
        Tensor, (b, embed_dim), float32
        """
        if self.commutes:
            aggregated = self.mix_sensors(self.aggregate(data), positions, subject)
        else:
            aggregated = self.aggregate(self.features(data, positions, subject))
        embeds: Tensor = self.head(self.dropout(aggregated.flatten(1)))
        return embeds

    def over_time(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed, at every sample, the epoch up to and with it; the last step is what `forward` gives.

        Returns
        -------
        Tensor, (b, t, embed_dim), float32
            In evaluation mode no step depends on later samples. In training, batch norm's statistics do.

        Raises
        ------
        ValueError
            If the network is not causal.
        """
        refuse_unless_causal(self, "brain_module")
        if self.commutes:
            return self.step(data, self.start(positions, subject))[0]
        embeds: Tensor = self.head(self.dropout(self.aggregate.step(self.features(data, positions, subject))[0]))
        return embeds

    def start(self, positions: Tensor, subject: Tensor) -> BrainModuleState:
        """Begin epochs of one montage, (c, 2) or (b, c, 2), and of known people, (b,), for `step`.

        Everything in front of the convolutions is linear and the same at every sample, so it becomes one matrix.
        """
        refuse_unless_causal(self, "brain_module")
        people = self.people.matrices(subject)
        mixing = people @ self.mix.weight.squeeze(2) @ self.attention.weights(positions)
        assert self.mix.bias is not None
        return BrainModuleState(mixing, people @ self.mix.bias[:, None], tuple((None, None) for _ in self.blocks))

    def step(self, chunk: Tensor, state: BrainModuleState) -> tuple[Tensor, BrainModuleState]:
        """Continue epochs by a chunk, ``(b, c, n)`` to ``(b, n, embed_dim)``: the next steps of `over_time`."""
        if self.commutes:
            courses, aggregate = self.aggregate.step(chunk, state.aggregate)
            # (b, n, c * k) -> (b, n, c, k), sensors mixed last as in forward
            courses = courses.view(*courses.shape[:2], chunk.shape[1], -1)
            mixed = state.mixing.unsqueeze(1) @ courses + state.offset.unsqueeze(1)
            return self.head(self.dropout(mixed.flatten(2))), replace(state, aggregate=aggregate)
        data = state.mixing @ chunk + state.offset
        blocks = []
        for block, before in zip(self.blocks, state.blocks, strict=True):
            assert isinstance(block, ConvBlock)
            data, after = block.step(data, before)
            blocks.append(after)
        if self.hidden is not None:
            data = nn.functional.gelu(mix_few(data, self.hidden.weight, self.hidden.bias))
        aggregated, aggregate = self.aggregate.step(data, state.aggregate)
        return self.head(self.dropout(aggregated)), replace(state, blocks=tuple(blocks), aggregate=aggregate)
