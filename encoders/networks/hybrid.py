"""Hybrids of convolution, transformer, wavelets and graph attention: one composer, seven names.

The stages of a network follow from its name by `STAGES`. Only the Conformer-like ``cnn_transformer`` has published
sizes (``PRESETS["cnn_transformer_published"]``: six layers of ten heads on 40 features); the defaults are smaller,
because one-second epochs overfit them, and so are their pooling windows, because evoked responses are faster than the
oscillations it was made for. ``transformer_cnn`` has the order of ATM with our front ends; ATM itself is another file.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from encoders.layers.causal import RunningSum, running_dense
from encoders.layers.residual_projection import ResidualProjection
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers
from encoders.layers.transformer_block import Caches
from encoders.networks.hybrid_stages import (
    ConvSizes,
    GraphStage,
    MapCNN,
    MapState,
    MapTransformer,
    RowCNN,
    RowPatchTransformer,
    RowStreams,
    RowTransformer,
    Stage,
    Table,
    VirtualSensors,
)

HybridName = Literal[
    "gat",
    "cnn_gat",
    "transformer_gat",
    "cnn_transformer",
    "transformer_cnn",
    "cnn_transformer_gat",
    "wavelet_cnn_gat",
]
StageName = Literal[
    "graph", "row_cnn", "row_streams", "row_patches", "row_transformer", "map_cnn", "map_transformer", "virtual_sensors"
]
STAGES: dict[HybridName, tuple[StageName, ...]] = {
    "gat": ("graph",),
    "cnn_gat": ("row_cnn", "graph"),
    "transformer_gat": ("row_patches", "graph"),
    "cnn_transformer": ("map_cnn", "map_transformer"),
    "transformer_cnn": ("row_transformer", "map_cnn"),
    "cnn_transformer_gat": ("virtual_sensors", "row_patches", "graph"),
    "wavelet_cnn_gat": ("row_streams", "graph"),
}
SETTINGS: dict[StageName, set[str]] = {
    "graph": {"width", "heads", "neighbours"},
    "row_cnn": {"n_filters", "kernel", "pool", "stride"},
    "row_streams": {"n_filters", "kernel", "pool", "stride"},
    "row_patches": {"kernel", "width", "heads", "layers"},
    "row_transformer": {"width", "heads", "layers"},
    "map_cnn": {"n_filters", "kernel", "pool", "stride"},
    "map_transformer": {"width", "heads", "layers"},
    "virtual_sensors": {"n_filters"},
}
LOOK_BACK_ONLY = {"map_cnn", "map_transformer"}


class HybridConfig(BaseModel):
    """Name and sizes of a `HybridEncoder`; a setting that the name does not use must be left at its default."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Song et al. 2023, IEEE TNSRE 31 (cnn_transformer); the other combinations are ours"

    name: HybridName
    width: int = Field(64, gt=0, description="features per token or node, a multiple of heads")
    heads: int = Field(4, gt=0)
    layers: int = Field(2, gt=0, description="of transformers")
    n_filters: int = Field(40, gt=0, description="temporal filters and their mixtures, or virtual sensors")
    kernel: float = Field(0.1, gt=0, description="temporal kernel, or patch of a transformer over patches, s")
    pool: float = Field(0.05, gt=0, description="mean pooling window, s")
    stride: float = Field(0.05, gt=0, description="pooling step, s")
    neighbours: Literal["all", "learned"] | Annotated[int, Field(gt=0)] = Field(
        "all", description="whom a node listens to: all others, all with learned weights, or so many nearest sensors"
    )
    dropout: float = Field(0.25, ge=0, lt=1)
    subject_layers: bool = Field(False, description="one channel mixing per person at the start (ours)")
    causal: bool = Field(False, description="no time step sees later ones; cnn_transformer only")

    @model_validator(mode="after")
    def _check_effects(self) -> Self:
        stages = STAGES[self.name]
        used = {"name", "dropout", "subject_layers"}.union(*(SETTINGS[stage] for stage in stages))
        if LOOK_BACK_ONLY.issuperset(stages):
            used.add("causal")
        for field, info in type(self).model_fields.items():
            if field not in used and getattr(self, field) != info.default:
                raise ValueError(
                    f"{field}={getattr(self, field)!r} has no effect in {self.name}, expected the default "
                    f"{info.default!r}; {self.name} reads {sorted(used - {'name'})}"
                )
        return self

    def build(self, shape: SignalShape, embed_dim: int) -> "HybridEncoder":
        """Build the untrained network."""
        return HybridEncoder(self, shape, embed_dim)


def build_stage(name: StageName, config: HybridConfig, table: Table) -> Stage:
    """Build one stage for what the stages before it put out."""
    sizes = ConvSizes(config.n_filters, config.kernel, config.pool, config.stride)
    width, heads, layers, dropout = config.width, config.heads, config.layers, config.dropout
    match name:
        case "graph":
            return GraphStage(width, heads, config.neighbours, dropout, table)
        case "row_cnn":
            return RowCNN(sizes, table)
        case "row_streams":
            return RowStreams(sizes, table)
        case "row_patches":
            return RowPatchTransformer(config.kernel, width, heads, layers, dropout, table)
        case "row_transformer":
            return RowTransformer(width, heads, layers, dropout, table)
        case "map_cnn":
            return MapCNN(sizes, config.causal, table)
        case "map_transformer":
            return MapTransformer(width, heads, layers, dropout, config.causal, table)
        case "virtual_sensors":
            return VirtualSensors(config.n_filters, table)


@dataclass(frozen=True)
class HybridState:
    """What a running epoch leaves behind: matrix of the person, maps, keys and values, and the dense layer's sum."""

    mixing: Tensor | None
    maps: MapState
    caches: Caches
    projected: RunningSum | None = None


class HybridEncoder(nn.Module):
    """Run the stages of a name one after the other, flatten, project.

    Parameters
    ----------
    config : HybridConfig
    shape : SignalShape
        Channels and samples are fixed by the dense layer; ``positions`` are read if ``neighbours`` is a number.
    embed_dim : int
        Width of the output.

    Raises
    ------
    ValueError
        If the epoch is too short for the kernels, or the nearest sensors are not known.

    References
    ----------
    Song, Zheng, Liu and Gao 2023, "EEG Conformer", IEEE TNSRE 31; Brody et al. 2022, arXiv:2105.14491 (GATv2).
    """

    def __init__(self, config: HybridConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        self.name, self.causal = config.name, config.causal
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        table = Table(shape.n_channels, shape.n_times, shape.sfreq, shape.positions)
        stages: list[Stage] = []
        for name in STAGES[config.name]:
            stages.append(build_stage(name, config, table))
            table = stages[-1].out
        self.stages = nn.Sequential(*stages)
        self.transposed = table.tokens == "columns"
        self.token_width = table.n_rows if self.transposed else table.n_columns
        self.dropout = nn.Dropout(config.dropout)
        self.head = ResidualProjection(table.n_rows * table.n_columns, embed_dim, config.dropout)

    def set_graph(self, adjacency: Tensor) -> None:
        """Multiply graph attention by the weights of a known graph; they are kept with the other weights.

        Parameters
        ----------
        adjacency : Tensor, (n_channels, n_channels), float32
            For example from `encoders.connectivity.adjacency`, estimated on training epochs only. ``[i, j]``: how much
            ``i`` listens to ``j``, non-negative; 0 cuts the edge. The diagonal is ignored.

        Raises
        ------
        ValueError
            If the network has no graph of sensors, or the adjacency does not fit it.
        """
        graphs = [stage for stage in self.stages if isinstance(stage, GraphStage)]
        if not graphs or any(isinstance(stage, VirtualSensors) for stage in self.stages):
            raise ValueError(
                f"{self.name} has no graph of sensors, expected one of gat, cnn_gat, transformer_gat and "
                "wavelet_cnn_gat; set the graph there"
            )
        for graph in graphs:
            graph.set_prior(adjacency)

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return what stands before the dense layers: nodes or time steps, (b, n_tokens, token_width)."""
        if self.people is not None:
            data = self.people(data, subject)
        table: Tensor = self.stages(data)
        return table.transpose(1, 2) if self.transposed else table

    def over_time(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed what is known at the end of each time step, as if the rest of the epoch were missing.

        Each step adds its share to the dense layer's sum, so the last one equals `forward` and none sees later samples.

        Returns
        -------
        Tensor, (b, n_steps, embed_dim), float32

        Raises
        ------
        ValueError
            If the network is not causal.
        """
        self._causal_stages()
        return self._project(self.tokens(data, positions, subject), None)[0]

    def start(self, positions: Tensor, subject: Tensor) -> HybridState:
        """Begin epochs of known people, (b,), for `step`; positions are not used."""
        maps, transformer = self._causal_stages()
        mixing = None if self.people is None else self.people.matrices(subject)
        return HybridState(mixing, maps.start(len(subject)), (None,) * len(transformer.encoder.blocks))

    def step(self, chunk: Tensor, state: HybridState) -> tuple[Tensor, HybridState]:
        """Continue epochs by a chunk, ``(b, c, n)``; returns the steps of `over_time` that it completes."""
        maps, transformer = self._causal_stages()
        if state.mixing is not None:
            chunk = state.mixing @ chunk
        columns, maps_state = maps.step(chunk, state.maps)
        if columns.shape[2] == 0:
            none = chunk.new_empty(len(chunk), 0, self.head.linear.out_features)
            return none, replace(state, maps=maps_state)
        first = 0 if state.projected is None else state.projected.n_seen
        if first + columns.shape[2] > maps.out.n_columns:
            raise ValueError(
                f"{self.name} embeds epochs of {maps.out.n_columns} steps, got {first + columns.shape[2]}; end the "
                "epoch there and reset"
            )
        tokens, caches = transformer.step(columns, first, state.caches)
        embeds, projected = self._project(tokens.transpose(1, 2), state.projected)
        return embeds, HybridState(state.mixing, maps_state, caches, projected)

    def _causal_stages(self) -> tuple[MapCNN, MapTransformer]:
        if not self.causal:
            raise ValueError(
                f"this {self.name} looks ahead, so it has no output over time, expected causal=True; "
                "train a causal cnn_transformer"
            )
        maps, transformer = self.stages
        assert isinstance(maps, MapCNN) and isinstance(transformer, MapTransformer)
        return maps, transformer

    def _project(self, tokens: Tensor, state: RunningSum | None) -> tuple[Tensor, RunningSum]:
        weight = self.head.linear.weight.view(self.head.linear.out_features, -1, self.token_width)  # (e, s, w)
        sums, state = running_dense(self.dropout(tokens), weight, state)
        return self.head.refine(sums + self.head.linear.bias), state

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed epochs.

        Parameters
        ----------
        data : Tensor, (b, c, t), float32
            Preprocessed, unitless.
        positions : Tensor, (c, 2) or (b, c, 2), float32
            Not used; the places of the training montage decide about neighbours when the network is built.
        subject : Tensor, (b,), int64
            Used only with ``subject_layers``.

        Returns
        -------
        Tensor, (b, embed_dim), float32
        """
        embeds: Tensor = self.head(self.dropout(self.tokens(data, positions, subject).flatten(1)))
        return embeds
