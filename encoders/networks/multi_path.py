"""MultiPath: waveform, log power, learned wavegram and wavelet packet of the same epoch, joined on one grid.

The published network reads sound: a wavegram beside a log-mel spectrogram, concatenated and read by one 2-D network.
Here the scales are those of brain signals. Every path makes ``width`` maps of the same time-frequency grid: a step of
time is ``2 ** levels`` samples, and as many rows stand for frequency, so a map holds as many values as a sensor's line.
The short-time Fourier windows are centred, so each step looks half a window ahead: not for decoding on line.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from encoders.layers.signal_shape import SignalShape
from encoders.layers.skip import Skip
from encoders.layers.subject_layers import SubjectLayers
from encoders.wavelets import WaveletPacket1d

PathName = Literal["raw", "logpower", "wavegram", "wavelet"]
LOG_FLOOR = 1e-4  # of unitless power; a bin of white noise has 0.06 at 100 Hz, 0.006 at 1000 Hz
WAVEGRAM_KERNEL = 11  # samples, as published


class MultiPathConfig(BaseModel):
    """Sizes of `MultiPath`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Kong et al. 2020, arXiv:1912.10211 (PANNs); scales and the other paths ours"

    name: Literal["multi_path"] = "multi_path"
    paths: tuple[PathName, ...] = Field(("raw", "logpower", "wavegram", "wavelet"), min_length=1)
    merge: Literal["concat", "add"] = Field("concat", description="of the paths' maps, each scaled by its batch norm")
    step: float = Field(0.04, gt=0, description="grid step, s; rounded to a power of two of samples")
    window: float = Field(0.25, gt=0, description="short-time Fourier window, s")
    max_frequency: float = Field(40.0, gt=0, description="highest frequency of the log power, Hz")
    width: int = Field(32, gt=0, description="maps per path")
    wavelet: str = Field("haar", description="any discrete wavelet of PyWavelets")
    n_maps: int = Field(16, gt=0, description="maps in front of the dense layer")
    dropout: float = Field(0.5, ge=0, lt=1, description="in front of the dense layer")
    subject_layers: bool = Field(False, description="one channel mixing per person before the paths (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "MultiPath":
        """Build the untrained network."""
        return MultiPath(self, shape, embed_dim)


def stft_power(data: Tensor, n_window: int, hop: int) -> Tensor:
    """Return the power of a centred short-time Fourier transform, scaled as `scipy.signal.stft` does.

    Parameters
    ----------
    data : Tensor, (n, t), float32
    n_window : int
        Length of the Hann window in samples; zeros stand beyond the borders.
    hop : int
        Samples from one window's centre to the next; the first centre is the first sample.

    Returns
    -------
    Tensor, (n, n_window // 2 + 1, frames), float32
        ``abs(z) ** 2``; a sine of amplitude a at a bin's centre gives ``a ** 2 / 4`` there.
    """
    window = torch.hann_window(n_window, dtype=data.dtype, device=data.device)
    spectrum = torch.stft(data, n_window, hop, window=window, center=True, pad_mode="constant", return_complex=True)
    real = torch.view_as_real(spectrum)  # the power of the parts has a gradient at zero, abs has none
    return real.square().sum(dim=-1) / window.sum() ** 2


class RawPath(nn.Module):
    """Mix sensors linearly, then a bank of strided filters that all virtual channels share."""

    def __init__(self, n_channels: int, width: int, hop: int) -> None:
        super().__init__()
        self.spatial = nn.Conv1d(n_channels, width, 1, bias=False)
        self.temporal = nn.Conv1d(1, hop, 2 * hop + 1, stride=hop, padding=hop, bias=False)

    def forward(self, data: Tensor) -> Tensor:
        virtual = self.spatial(data)
        maps: Tensor = self.temporal(virtual.reshape(-1, 1, virtual.shape[-1]))
        return maps.reshape(*virtual.shape[:2], *maps.shape[1:])


class LogPowerPath(nn.Module):
    """Mix sensors linearly, then log power up to a highest frequency, bins mixed to the rows of the grid."""

    def __init__(self, n_channels: int, width: int, hop: int, n_window: int, n_bins: int) -> None:
        super().__init__()
        self.hop, self.n_window, self.n_bins = hop, n_window, n_bins
        self.spatial = nn.Conv1d(n_channels, width, 1, bias=False)
        self.rows = nn.Linear(n_bins, hop)

    def forward(self, data: Tensor) -> Tensor:
        virtual = self.spatial(data)
        power = stft_power(virtual.flatten(0, 1), self.n_window, self.hop)
        n_steps = -(-data.shape[-1] // self.hop)
        logarithm = (power[:, : self.n_bins, :n_steps] + LOG_FLOOR).log()
        maps: Tensor = self.rows(logarithm.transpose(1, 2)).transpose(1, 2)
        return maps.reshape(*virtual.shape[:2], *maps.shape[1:])


class WavegramPath(nn.Module):
    """Convolve with stride 2, halve by dilated convolutions and max pooling, cut the features into rows."""

    def __init__(self, n_channels: int, width: int, levels: int) -> None:
        super().__init__()
        self.n_rows, hidden = 2**levels, 2 * width
        self.stem = nn.Sequential(
            nn.Conv1d(n_channels, hidden, WAVEGRAM_KERNEL, stride=2, padding=WAVEGRAM_KERNEL // 2, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = []
        for _ in range(levels - 1):
            for dilation in (1, 2):
                blocks += [
                    nn.Conv1d(hidden, hidden, 3, padding=dilation, dilation=dilation, bias=False),
                    nn.BatchNorm1d(hidden),
                    nn.ReLU(),
                ]
            blocks.append(nn.MaxPool1d(2, ceil_mode=True))
        self.blocks = nn.Sequential(*blocks)
        self.cut = nn.Conv1d(hidden, width * self.n_rows, 1)

    def forward(self, data: Tensor) -> Tensor:
        features: Tensor = self.cut(self.blocks(self.stem(data)))
        return features.reshape(len(features), -1, self.n_rows, features.shape[-1])


class WaveletPath(nn.Module):
    """Mix sensors linearly, then a wavelet packet along time with its rows in order of frequency."""

    order: Tensor

    def __init__(self, n_channels: int, width: int, levels: int, wavelet: str) -> None:
        super().__init__()
        self.spatial = nn.Conv1d(n_channels, width, 1, bias=False)
        self.packet = WaveletPacket1d(wavelet, levels)
        index = torch.arange(2**levels)
        self.register_buffer("order", index ^ (index >> 1), persistent=False)  # high passes mirror: Gray code

    def forward(self, data: Tensor) -> Tensor:
        nodes: Tensor = self.packet(self.spatial(data))
        return nodes[:, :, self.order]


class MultiPath(nn.Module):
    """Read an epoch along several paths, join their maps, convolve them together, flatten, project.

    Parameters
    ----------
    config : MultiPathConfig
    shape : SignalShape
        Channels and samples are fixed by the spatial filters and the dense layer.
    embed_dim : int
        Width of the output.

    Raises
    ------
    ValueError
        If a path is named twice, the epoch is shorter than the window or one step, or ``max_frequency`` is above
        half the sampling rate.

    References
    ----------
    Kong et al. 2020, "PANNs: large-scale pretrained audio neural networks for audio pattern recognition",
    IEEE/ACM Trans. Audio Speech Lang. Process. 28, arXiv:1912.10211 (Wavegram-Logmel-CNN).
    """

    def __init__(self, config: MultiPathConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        self.levels = max(round(math.log2(config.step * shape.sfreq)), 1)
        hop, n_window = 2**self.levels, max(round(config.window * shape.sfreq), 2)
        _check(config, shape, hop, n_window)
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        n, width = shape.n_channels, config.width
        n_bins = int(config.max_frequency * n_window / shape.sfreq) + 1
        paths: dict[str, nn.Module] = {
            "raw": RawPath(n, width, hop),
            "logpower": LogPowerPath(n, width, hop, n_window, n_bins),
            "wavegram": WavegramPath(n, width, self.levels),
            "wavelet": WaveletPath(n, width, self.levels, config.wavelet),
        }
        self.paths = nn.ModuleDict({name: paths[name] for name in config.paths})
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(width) for name in config.paths})
        self.merge = config.merge
        n_joined = width * len(config.paths) if config.merge == "concat" else width
        self.stem = nn.Sequential(
            nn.Conv2d(n_joined, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.GELU()
        )
        self.shared = Skip(
            "identity",
            nn.Sequential(
                nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.GELU()
            ),
        )
        self.reduce = nn.Conv2d(2 * width, config.n_maps, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.token_width = config.n_maps * hop
        self.head = nn.Linear(self.token_width * -(-shape.n_times // hop), embed_dim)

    def path_maps(self, data: Tensor) -> dict[str, Tensor]:
        """Return the scaled maps of every path, (b, width, rows, steps) each."""
        return {name: self.norms[name](path(data)) for name, path in self.paths.items()}

    def join(self, maps: dict[str, Tensor]) -> Tensor:
        """Merge the paths' maps and convolve them together, (b, n_maps, rows, steps)."""
        parts = list(maps.values())
        joined = torch.cat(parts, dim=1) if self.merge == "concat" else torch.stack(parts).sum(dim=0)
        out: Tensor = self.reduce(self.shared(self.stem(joined)))
        return out

    def _maps(self, data: Tensor, subject: Tensor) -> Tensor:
        if self.people is not None:
            data = self.people(data, subject)
        return self.join(self.path_maps(data))

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return one token per step of time, (b, steps, token_width); arguments as in `forward`."""
        # (b, n, r, s) -> (b, s, n * r)
        return self._maps(data, subject).flatten(1, 2).transpose(1, 2)

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
        embeds: Tensor = self.head(self.dropout(self._maps(data, subject).flatten(1)))
        return embeds


def _check(config: MultiPathConfig, shape: SignalShape, hop: int, n_window: int) -> None:
    """Refuse paths named twice and windows or frequencies that the signal does not have."""
    if len(set(config.paths)) != len(config.paths):
        raise ValueError(f"multi_path expects each path once, got {config.paths}; remove the repeated ones")
    shortest = max(hop, n_window if "logpower" in config.paths else 0)
    if shape.n_times < shortest:
        raise ValueError(
            f"multi_path needs epochs of at least {shortest} samples at {shape.sfreq:g} Hz, got {shape.n_times}; "
            "lengthen the epochs or shorten window and step"
        )
    if "logpower" in config.paths and config.max_frequency > shape.sfreq / 2:
        raise ValueError(
            f"max_frequency is {config.max_frequency:g} Hz, expected at most {shape.sfreq / 2:g} at a sampling rate of "
            f"{shape.sfreq:g} Hz; lower it"
        )
