"""WaveletCNN: an epoch as an image of channels by time, split by a wavelet packet, convolved, read by a CoT block.

A two-dimensional transform is only meaningful if neighbouring rows are neighbouring sensors, so rows are sorted by the
sensor map when the network is built, and the order is part of its state. Subbands differ in power by orders of
magnitude: each is scaled by its own batch norm first. The maps are flattened, not averaged, because which image was
seen is coded in where and when; a 1x1 convolution first makes them few, as a wide dense layer learns by heart.
"""

from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from encoders.layers.cot_block import CoTBlock
from encoders.layers.signal_shape import SignalShape
from encoders.layers.skip import Skip
from encoders.layers.subject_layers import SubjectLayers
from encoders.layers.wave_attention import WaveAttention
from encoders.wavelets import WaveletPacket2d


class WaveletCNNConfig(BaseModel):
    """Sizes of `WaveletCNN`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Li et al. 2021, arXiv:2107.12292 (CoT); Yao et al. 2022, ECCV (Wave-ViT); ours around them"

    name: Literal["wavelet_cnn"] = "wavelet_cnn"
    wavelet: str = Field("haar", description="any discrete wavelet of PyWavelets")
    levels: int = Field(2, gt=0, le=4, description="4 ** levels maps")
    width: int = Field(64, gt=0, multiple_of=8, description="maps of the convolution")
    cot: bool = Field(True, description="a CoT block with a residual")
    attention_heads: int = Field(0, ge=0, description="heads of a wavelet attention with a residual; 0 for none")
    channel_order: Literal["topographic", "as_given"] = Field(
        "topographic", description="rows front to back and left to right by the sensor map, or as recorded"
    )
    n_maps: int = Field(8, gt=0, description="maps in front of the dense layer")
    dropout: float = Field(0.5, ge=0, lt=1, description="in front of the dense layer")
    subject_layers: bool = Field(False, description="one channel mixing per person before the packet (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "WaveletCNN":
        """Build the untrained network."""
        return WaveletCNN(self, shape, embed_dim)


def topographic_order(positions: tuple[tuple[float, float], ...], n_channels: int) -> Tensor:
    """Sort sensors row by row, front to back, and within a row from left to right.

    Parameters
    ----------
    positions : tuple of (float, float)
        Flat map, y to the front; negative for an unknown place. Empty if nothing is known.
    n_channels : int
        Number of sensors.

    Returns
    -------
    Tensor, (n_channels,), int64
        Indices of the sensors. The known ones are cut into ``round(sqrt(n))`` rows of equal height; sensors without a
        known place come last, as given.
    """
    known = [i for i, place in enumerate(positions) if min(place) >= 0]
    unknown = sorted(set(range(n_channels)) - set(known))
    if known:
        depths = [positions[i][1] for i in known]
        front, n_rows = max(depths), round(len(known) ** 0.5)
        height = max(front - min(depths), 1e-9) / n_rows
        row = {i: min(int((front - positions[i][1]) / height), n_rows - 1) for i in known}
        known.sort(key=lambda i: (row[i], positions[i][0]))
    return torch.tensor(known + unknown)


class WaveletCNN(nn.Module):
    """Sort, transform, convolve, mix by context, flatten, project.

    Parameters
    ----------
    config : WaveletCNNConfig
    shape : SignalShape
        Channels and samples are fixed by the dense layer; ``positions`` decides the order of rows, which is stored in
        the state (``order``), so a loaded network keeps the order it was trained with.
    embed_dim : int
        Width of the output.

    Raises
    ------
    ValueError
        If there are fewer than ``2 ** levels`` channels or samples.

    Notes
    -----
    The published model is known by its parts only (two-level packet, 3x3 convolution with batch norm and GELU, CoT
    block, dense layer); the width in front of the dense layer, dropout and the CoT block's quiet start are ours.
    """

    order: Tensor

    def __init__(self, config: WaveletCNNConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        shortest = 2**config.levels
        if min(shape.n_channels, shape.n_times) < shortest:
            raise ValueError(
                f"wavelet_cnn with {config.levels} levels needs at least {shortest} channels and samples, got "
                f"{shape.n_channels} x {shape.n_times}; use fewer levels or longer epochs"
            )
        is_sorted = config.channel_order == "topographic"
        order = topographic_order(shape.positions, shape.n_channels) if is_sorted else torch.arange(shape.n_channels)
        self.register_buffer("order", order)
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.packet = WaveletPacket2d(config.wavelet, config.levels)
        n_nodes = 4**config.levels
        self.stem = nn.Sequential(
            nn.Conv2d(n_nodes, config.width, 3, padding=1, bias=False), nn.BatchNorm2d(config.width), nn.GELU()
        )
        self.cot = Skip("identity", CoTBlock(config.width, start=0.1)) if config.cot else nn.Identity()
        self.attention = (
            Skip("identity", WaveAttention(config.width, config.attention_heads))
            if config.attention_heads
            else nn.Identity()
        )
        self.reduce = nn.Conv2d(config.width, config.n_maps, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.n_rows, n_steps = self.packet.node_length(shape.n_channels), self.packet.node_length(shape.n_times)
        self.token_width = config.n_maps * self.n_rows
        self.head = nn.Linear(self.token_width * n_steps, embed_dim)

    def maps(self, data: Tensor, subject: Tensor) -> Tensor:
        """Return the maps in front of the dense layer, (b, n_maps, rows, steps)."""
        if self.people is not None:
            data = self.people(data, subject)
        nodes = self.packet(data[:, self.order].unsqueeze(1))
        maps: Tensor = self.reduce(self.attention(self.cot(self.stem(nodes))))
        return maps

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return one token per step of time, (b, steps, token_width); arguments as in `forward`."""
        # (b, n, r, s) -> (b, s, n * r)
        return self.maps(data, subject).flatten(1, 2).transpose(1, 2)

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed epochs.

        Parameters
        ----------
        data : Tensor, (b, c, t), float32
            Preprocessed, unitless, channels in the order of the shape's positions.
        positions : Tensor, (c, 2) or (b, c, 2), float32
            Not used: the order of rows was fixed when the network was built.
        subject : Tensor, (b,), int64
            Used only with ``subject_layers``.

        Returns
        -------
        Tensor, (b, embed_dim), float32
        """
        embeds: Tensor = self.head(self.dropout(self.maps(data, subject).flatten(1)))
        return embeds
