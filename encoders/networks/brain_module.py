"""BrainModule: spatial attention over sensor positions, subject layers, dilated convolutions, temporal aggregation.

One set of weights reads any montage, because everything behind the attention sees virtual channels only. Written from
the paper's equations; the defaults are the published sizes.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from encoders.layers.signal_shape import SignalShape
from encoders.layers.spatial_attention import SpatialAttention
from encoders.layers.subject_layers import SubjectLayers

DILATIONS = (1, 2, 4, 8, 16)


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

    def build(self, shape: SignalShape, embed_dim: int) -> "BrainModule":
        """Build the untrained network."""
        return BrainModule(self, shape, embed_dim)


class ConvBlock(nn.Module):
    """Dilated convolution, batch norm, GELU, residual where widths agree, and on every second block a gate (GLU)."""

    def __init__(self, n_in: int, width: int, dilation: int, gated: bool, zero_init: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(n_in, width, 3, padding=dilation, dilation=dilation)
        self.norm = nn.BatchNorm1d(width)
        self.gate = nn.Conv1d(width, 2 * width, 3, padding=1) if gated else None
        self.is_residual = n_in == width
        self.scale = nn.Parameter(torch.zeros(width, 1)) if zero_init else None

    def forward(self, data: Tensor) -> Tensor:
        out: Tensor = nn.functional.gelu(self.norm(self.conv(data)))
        if self.scale is not None:
            if self.gate is not None:
                out = nn.functional.glu(self.gate(out), dim=1)
            return data + self.scale * out
        if self.is_residual:
            out = data + out
        return out if self.gate is None else nn.functional.glu(self.gate(out), dim=1)


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


def _tiling_wavelets(n_weights: int, n_times: int) -> Tensor:
    """Return unit-norm, zero-mean Gaussian-windowed cosines and sines in turn, spread evenly, (n_weights, n_times)."""
    index = torch.arange(n_weights)
    width = 0.1 * n_times
    times = (torch.arange(n_times) - (index[:, None] + 0.5) * n_times / n_weights) / width
    phase = (index % 2)[:, None] * math.pi / 2
    waves = torch.exp(-0.5 * times.square()) * torch.cos(2 * math.pi / 3 * times + phase)
    return nn.functional.normalize(waves - waves.mean(dim=1, keepdim=True), dim=1)


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
        self.attention = SpatialAttention(
            n, config.fourier_width, config.spatial_dropout, "anchored" if is_linear else "random"
        )
        self.mix = nn.Conv1d(n, n, 1)
        self.people = SubjectLayers(n, shape.n_subjects, "identity" if is_linear else "normal")
        self.blocks = nn.Sequential(
            *(
                ConvBlock(
                    n if i == 0 else config.width, config.width, DILATIONS[i % len(DILATIONS)], i % 2 == 1, is_linear
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
