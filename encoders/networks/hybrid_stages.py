"""The stages that hybrid networks are composed of.

Every stage maps a batch of tables ``(b, rows, columns)`` to another one. The same table is a set of nodes with features
(rows are sensors) or a set of maps over time (columns are samples), so any stage may follow any other.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.graph_attention import GATv2
from encoders.layers.transformer_block import Caches, PatchTransformer, TransformerEncoder
from encoders.wavelets import WaveletPacket1d

PACKET_LEVELS = 2


@dataclass(frozen=True)
class Table:
    """Size of what goes from stage to stage.

    Attributes
    ----------
    n_rows, n_columns : int
    sfreq : float
        Columns per second, as far as they are times.
    positions : tuple of (float, float)
        Places of the rows, if they are sensors with known places.
    tokens : "rows" | "columns"
        What a token is to those who read the table.
    """

    n_rows: int
    n_columns: int
    sfreq: float
    positions: tuple[tuple[float, float], ...] = ()
    tokens: Literal["rows", "columns"] = "rows"

    def samples(self, seconds: float) -> int:
        """Convert a duration."""
        return max(round(seconds * self.sfreq), 1)

    def check_length(self, shortest: int) -> None:
        """Refuse a table that is too short for the next stage."""
        if self.n_columns < shortest:
            raise ValueError(
                f"hybrid network needs at least {shortest} samples at {self.sfreq:g} Hz here, got {self.n_columns}; "
                "lengthen the window or shorten kernel, pool and stride"
            )


@dataclass(frozen=True)
class ConvSizes:
    """Temporal convolution and pooling, in seconds."""

    n_filters: int
    kernel: float
    pool: float
    stride: float


class Stage(nn.Module):
    """One step of a hybrid: ``forward (b, n_rows, n_columns) -> (b, out.n_rows, out.n_columns)``."""

    out: Table


class RowConv(nn.Module):
    """Convolve every row over time with the same filters and pool; (b, n, bands, t) to (b, n, steps * n_filters).

    No non-linearity stands between convolution and mean pooling, so both are one strided convolution.
    """

    def __init__(self, sizes: ConvSizes, n_bands: int, table: Table) -> None:
        super().__init__()
        kernel, self.pool, self.stride = (table.samples(s) for s in (sizes.kernel, sizes.pool, sizes.stride))
        shortest = kernel + self.pool - 1
        table.check_length(shortest)
        self.conv = nn.Conv1d(n_bands, sizes.n_filters, kernel)
        self.norm = nn.BatchNorm1d(sizes.n_filters)
        self.width = sizes.n_filters * ((table.n_columns - shortest) // self.stride + 1)

    def forward(self, rows: Tensor) -> Tensor:
        weight = F.pad(self.conv.weight, (self.pool - 1, self.pool - 1))
        weight = F.avg_pool1d(weight, self.pool, stride=1)
        # (b, n, m, t) -> (b, n, m, s, k) -> (b, n, s, m * k)
        windows = rows.unfold(-1, weight.shape[-1], self.stride).transpose(2, 3).flatten(3)
        maps = F.linear(windows, weight.flatten(1), self.conv.bias)
        out = F.elu(self.norm(maps.flatten(0, 2)))
        return out.view(*rows.shape[:2], -1)


class RowCNN(Stage):
    """Describe every row by its own filtered and pooled time course."""

    def __init__(self, sizes: ConvSizes, table: Table) -> None:
        super().__init__()
        self.raw = RowConv(sizes, 1, table)
        self.out = replace(table, n_columns=self.raw.width, tokens="rows")

    def forward(self, data: Tensor) -> Tensor:
        out: Tensor = self.raw(data.unsqueeze(2))
        return out


class RowStreams(Stage):
    """Describe every row by two streams side by side: its time course, and its Haar wavelet packets."""

    def __init__(self, sizes: ConvSizes, table: Table) -> None:
        super().__init__()
        self.packets = WaveletPacket1d("haar", PACKET_LEVELS)
        n_bands = 2**PACKET_LEVELS
        table.check_length(n_bands)
        n_columns = self.packets.node_length(table.n_columns)
        coarse = replace(table, n_columns=n_columns, sfreq=table.sfreq / n_bands)
        self.raw, self.wavelet = RowConv(sizes, 1, table), RowConv(sizes, n_bands, coarse)
        self.out = replace(table, n_columns=self.raw.width + self.wavelet.width, tokens="rows")

    def forward(self, data: Tensor) -> Tensor:
        return torch.cat([self.raw(data.unsqueeze(2)), self.wavelet(self.packets(data))], dim=-1)


@dataclass(frozen=True)
class MapState:
    """A causal `MapCNN` in the middle of an epoch: its merged convolution, samples and maps still needed."""

    weight: Tensor
    bias: Tensor
    tail: Tensor
    maps: Tensor


class MapCNN(Stage):
    """Convolve over time, then over all rows, normalise, ELU, pool: the patch embedding of EEG Conformer.

    The two convolutions follow each other without a non-linearity and are computed as one. The causal form pads on the
    left only, pools over past samples, and has a learned gain per filter in place of the batch norm, which looks over
    time in training: it starts at unit variance on white noise. Step ``s`` ends with sample ``(s + 1) * stride - 1``.
    A layer norm over the filters of each sample, tried in its place, throws amplitudes away: after 250 steps on
    simulated single epochs its top-5 of 200 was 3 % (chance 2.5 %), this one's 27 %.

    References
    ----------
    Song et al. 2023, IEEE TNSRE 31 (EEG Conformer).
    """

    def __init__(self, sizes: ConvSizes, causal: bool, table: Table) -> None:
        super().__init__()
        n = sizes.n_filters
        kernel, self.pool, self.stride = (table.samples(s) for s in (sizes.kernel, sizes.pool, sizes.stride))
        shortest = self.stride if causal else kernel + self.pool - 1
        table.check_length(shortest)
        self.causal = causal
        self.temporal = nn.Conv1d(1, n, kernel)
        self.spatial = nn.Conv2d(n, n, (table.n_rows, 1))
        self.norm = None if causal else nn.BatchNorm1d(n)
        self.gain = nn.Parameter(1 / self._merged()[0].flatten(1).norm(dim=1)) if causal else None
        n_steps = (table.n_columns - shortest) // self.stride + 1
        self.out = Table(n, n_steps, table.sfreq / self.stride, tokens="columns")

    def _merged(self) -> tuple[Tensor, Tensor]:
        """Return weight (n, n_rows, kernel) and bias of both convolutions as one."""
        spatial = self.spatial.weight.squeeze(-1)  # (o, m, c)
        weight = torch.einsum("omc,mk->ock", spatial, self.temporal.weight.squeeze(1))
        assert self.temporal.bias is not None and self.spatial.bias is not None
        return weight, self.spatial.bias + spatial.sum(-1) @ self.temporal.bias

    def start(self, n_epochs: int) -> MapState:
        """Begin a causal stage: silence before the first sample, and the part of the first pooling window before it."""
        assert self.gain is not None
        weight, bias = self._merged()
        weight, bias = weight * self.gain[:, None, None], bias * self.gain
        silence = weight.new_zeros(n_epochs, weight.shape[1], weight.shape[2] - 1)
        return MapState(weight, bias, silence, weight.new_zeros(n_epochs, len(weight), max(self.pool - self.stride, 0)))

    def step(self, chunk: Tensor, state: MapState) -> tuple[Tensor, MapState]:
        """Continue by a chunk, ``(b, n_rows, n)``; returns the columns that it completes, maybe none."""
        seen = torch.cat([state.tail, chunk], dim=2)
        maps = F.elu(F.conv1d(seen, state.weight, state.bias))
        maps = torch.cat([state.maps, maps], dim=2)
        n_used = (maps.shape[2] - max(self.pool - self.stride, 0)) // self.stride * self.stride
        columns = maps[:, :, :0]
        if n_used:
            due = maps[:, :, max(self.stride - self.pool, 0) : n_used + max(self.pool - self.stride, 0)]
            columns = F.avg_pool1d(due, self.pool, self.stride)
        return columns, replace(state, tail=seen[:, :, chunk.shape[2] :], maps=maps[:, :, n_used:])

    def forward(self, data: Tensor) -> Tensor:
        weight, bias = self._merged()
        if self.norm is not None:
            return F.avg_pool1d(F.elu(self.norm(F.conv1d(data, weight, bias))), self.pool, self.stride)
        assert self.gain is not None
        weight, bias = weight * self.gain[:, None, None], bias * self.gain
        maps = F.elu(F.conv1d(F.pad(data, (weight.shape[-1] - 1, 0)), weight, bias))
        return F.avg_pool1d(F.pad(maps, (self.pool - self.stride, 0)), self.pool, self.stride)


class MapTransformer(Stage):
    """Let time steps attend to each other: columns are tokens; causal ones see their past only."""

    def __init__(self, width: int, heads: int, n_layers: int, dropout: float, causal: bool, table: Table) -> None:
        super().__init__()
        self.embed = nn.Linear(table.n_rows, width)
        self.places = nn.Parameter(0.02 * torch.randn(table.n_columns, width))
        self.dropout = nn.Dropout(dropout)
        self.encoder = TransformerEncoder(width, heads, n_layers, dropout, causal)
        self.out = replace(table, n_rows=width, positions=(), tokens="columns")

    def forward(self, data: Tensor) -> Tensor:
        # (b, d, t) -> (b, t, d) and back
        tokens = self.dropout(self.embed(data.transpose(1, 2)) + self.places)
        out: Tensor = self.encoder(tokens)
        return out.transpose(1, 2)

    def step(self, columns: Tensor, first: int, caches: Caches) -> tuple[Tensor, Caches]:
        """Continue a causal stage by columns ``first`` and following, ``(b, d, n)``; one cache per layer."""
        places = self.places[first : first + columns.shape[2]]
        # (b, d, n) -> (b, n, d) and back
        out, caches = self.encoder.step(self.dropout(self.embed(columns.transpose(1, 2)) + places), caches)
        return out.transpose(1, 2), caches


class RowTransformer(Stage):
    """Let whole rows attend to each other and add what they learn to them; time stays time.

    ATM's first layer has tokens as wide as epochs are long; here a row is embedded, and the result projected back.
    """

    def __init__(self, width: int, heads: int, n_layers: int, dropout: float, table: Table) -> None:
        super().__init__()
        self.embed = nn.Linear(table.n_columns, width)
        self.places = nn.Parameter(0.02 * torch.randn(table.n_rows, width))
        self.encoder = TransformerEncoder(width, heads, n_layers, dropout)
        self.back = nn.Linear(width, table.n_columns)
        self.out = table

    def forward(self, data: Tensor) -> Tensor:
        out: Tensor = data + self.back(self.encoder(self.embed(data) + self.places))
        return out


class RowPatchTransformer(Stage):
    """Describe every row by a transformer over the patches of its own time course."""

    def __init__(self, patch: float, width: int, heads: int, n_layers: int, dropout: float, table: Table) -> None:
        super().__init__()
        n_patch = table.samples(patch)
        table.check_length(n_patch)
        self.transformer = PatchTransformer(table.n_columns, n_patch, width, heads, n_layers, dropout)
        self.out = replace(table, n_columns=self.transformer.n_patches * width, tokens="rows")

    def forward(self, data: Tensor) -> Tensor:
        out: Tensor = self.transformer(data).flatten(2)
        return out


class VirtualSensors(Stage):
    """Mix sensors into virtual ones, sample by sample."""

    def __init__(self, n_virtual: int, table: Table) -> None:
        super().__init__()
        self.mix = nn.Conv1d(table.n_rows, n_virtual, 1)
        self.norm = nn.BatchNorm1d(n_virtual)
        self.out = replace(table, n_rows=n_virtual, positions=())

    def forward(self, data: Tensor) -> Tensor:
        out: Tensor = self.norm(self.mix(data))
        return out


class GraphStage(Stage):
    """Pass messages between rows once, by graph attention with separate weights for the node itself, and ELU.

    Parameters
    ----------
    width, heads : int
        Features per node, shared by the heads.
    neighbours : "all" | "learned" | int
        ``all``: every node may listen to every other one. ``learned``: the same with one weight per pair, which all
        epochs share. A number: so many nearest sensors on the map.
    dropout : float
        On the features of nodes.
    table : Table

    Raises
    ------
    ValueError
        If the heads cannot share the width, or the nearest sensors are not known.
    """

    prior: Tensor

    def __init__(
        self, width: int, heads: int, neighbours: Literal["all", "learned"] | int, dropout: float, table: Table
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"graph attention of width {width} cannot be shared by {heads} heads; make the width a multiple of them"
            )
        n = table.n_rows
        prior = nearest(table, neighbours) if isinstance(neighbours, int) else torch.ones(n, n)
        self.register_buffer("prior", prior)
        self.pairs = nn.Parameter(torch.zeros(n, n)) if neighbours == "learned" else None
        self.dropout = nn.Dropout(dropout)
        self.graph = GATv2(table.n_columns, width // heads, heads, concat=True, self_weights="separate")
        self.out = replace(table, n_columns=width, tokens="rows")

    def set_prior(self, adjacency: Tensor) -> None:
        """Multiply attention by the weights of a known graph from now on; kept with the other weights."""
        others = adjacency.clone().fill_diagonal_(0) if adjacency.shape == self.prior.shape else adjacency
        if others.shape != self.prior.shape or not ((others >= 0) & others.isfinite()).all() or not others.any(1).all():
            raise ValueError(
                f"graph prior of shape {tuple(adjacency.shape)} does not fit, expected {tuple(self.prior.shape)}, "
                "finite and non-negative, with a neighbour in every row; estimate it on this montage"
            )
        self.prior.copy_(others)

    def forward(self, nodes: Tensor) -> Tensor:
        adjacency = self.prior if self.pairs is None else self.prior * self.pairs.exp()
        return F.elu(self.graph(self.dropout(nodes), adjacency))


def nearest(table: Table, n_neighbours: int) -> Tensor:
    """Return the graph of each row's nearest others on the map, (n, n), float32, zeros and ones."""
    if not table.positions or min(min(place) for place in table.positions) < 0:
        raise ValueError(
            f"neighbours={n_neighbours} needs the place of every node on the sensor map, got "
            f"{len(table.positions)} places for {table.n_rows} nodes, or unknown ones; pass SignalShape.positions of "
            "the montage (virtual sensors have none), or use neighbours='all'"
        )
    if n_neighbours >= table.n_rows:
        raise ValueError(
            f"neighbours={n_neighbours} is impossible among {table.n_rows} sensors, expected fewer; "
            "lower it or use neighbours='all'"
        )
    places = torch.tensor(table.positions)
    distance = torch.cdist(places, places).fill_diagonal_(torch.inf)
    return torch.zeros_like(distance).scatter(1, distance.topk(n_neighbours, largest=False).indices, 1.0)
