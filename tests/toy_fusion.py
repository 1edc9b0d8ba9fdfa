"""Two small encoders of two modalities, and inputs for them."""

import torch
from torch import Tensor

from encoders.build import AnyEncoderConfig, SignalShape
from encoders.networks.brain_module import BrainModuleConfig

CHANNELS = {"eeg": 9, "meg": 14}
D, N_TIMES, N_SUBJECTS = 16, 20, 3
ENCODER = BrainModuleConfig(
    n_virtual=8, width=8, fourier_width=32, spatial_dropout=0.0, n_convs=2, head_width=12, time_agg="linear"
)
ENCODERS: dict[str, AnyEncoderConfig] = {"eeg": ENCODER, "meg": ENCODER}


def places(n_channels: int) -> tuple[tuple[float, float], ...]:
    """Spread sensors over a grid."""
    return tuple((0.1 + 0.2 * (index % 4), 0.1 + 0.2 * (index // 4)) for index in range(n_channels))


SHAPES = {name: SignalShape(count, N_TIMES, 100.0, N_SUBJECTS, places(count)) for name, count in CHANNELS.items()}


def inputs(n: int = 6, seed: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Return random data, the maps of `SHAPES`, and people of whom some are unknown."""
    generator = torch.Generator().manual_seed(seed)
    data = {name: torch.randn(n, count, N_TIMES, generator=generator) for name, count in CHANNELS.items()}
    positions = {name: torch.tensor(shape.positions) for name, shape in SHAPES.items()}
    return data, positions, torch.arange(n) % (N_SUBJECTS + 1)
