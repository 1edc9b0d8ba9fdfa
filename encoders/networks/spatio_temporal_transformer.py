"""Spatio-temporal transformer: attention over sensors within a window, then attention over windows.

The paper's abstract says what it does (electrode arrangement and time, by transformers, to estimate a person's state of
attention from band features); its internals were not at hand, so this is a reconstruction and the factorisation is what
is tested. Raw patches are the default, because band power discards the phase that carries an evoked response; band
power, the paper's kind of feature, is the other mode.
"""

from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from encoders.layers.band_power import BandPower, log_power
from encoders.layers.fourier_positions import FourierPositions
from encoders.layers.residual_projection import ResidualProjection
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers
from encoders.layers.transformer_block import TransformerEncoder

BANDS = ((1.0, 4.0), (4.0, 8.0), (8.0, 13.0), (13.0, 30.0), (30.0, 45.0))
FOURIER_WIDTH = 288
READOUT_WIDTH = 8  # features that each place passes on


class SpatioTemporalTransformerConfig(BaseModel):
    """Sizes of `SpatioTemporalTransformer`; none is published."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Delvigne et al. 2022, arXiv:2204.07162 (reconstruction)"

    name: Literal["spatio_temporal_transformer"] = "spatio_temporal_transformer"
    features: Literal["patch", "band_power"] = "patch"
    bands: tuple[tuple[float, float], ...] = Field(BANDS, min_length=1, description="of band_power, Hz")
    window: float = Field(0.1, gt=0, description="time per token, s")
    width: int = Field(64, gt=0, description="features per token, a multiple of heads")
    heads: int = Field(4, gt=0)
    spatial_layers: int = Field(2, gt=0)
    temporal_layers: int = Field(2, gt=0)
    n_virtual: int = Field(64, gt=0, description="weighted sums of the sensors that a window is read out by")
    readout: Literal["flatten", "token"] = Field("flatten", description="all windows side by side, or one token")
    dropout: float = Field(0.25, ge=0, lt=1)
    subject_layers: bool = Field(False, description="one channel mixing per person at the start (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "SpatioTemporalTransformer":
        """Build the untrained network."""
        return SpatioTemporalTransformer(self, shape, embed_dim)


class SpatioTemporalTransformer(nn.Module):
    """Let the sensors of each window attend to each other, then the windows, and project.

    Sensors are told apart by the Fourier code of their position alone, so any montage can be read (except with
    ``subject_layers``, which fix the channels). A window is read out by sums over its sensors whose weights are learned
    functions of the position; averages over places of the head would lose what whitened neighbours differ in. Attention
    costs ``c^2 w + w^2`` instead of ``(c w)^2`` for ``c`` sensors and ``w`` windows.

    Parameters
    ----------
    config : SpatioTemporalTransformerConfig
    shape : SignalShape
        ``n_times`` fixes the windows; samples behind the last whole one are filled up with zeros.
    embed_dim : int
        Width of the output.

    Raises
    ------
    ValueError
        If the epoch is shorter than one window, bands are given for raw patches, or a band cannot be measured.

    References
    ----------
    Delvigne, Wannous, Vandeborre, Ris and Dutoit 2022, "Spatio-temporal analysis of transformer based architecture for
    attention estimation from EEG", arXiv:2204.07162.
    """

    white: Tensor

    def __init__(self, config: SpatioTemporalTransformerConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        self.n_window = max(round(config.window * shape.sfreq), 1)
        if shape.n_times < self.n_window:
            raise ValueError(
                f"spatio_temporal_transformer needs epochs of at least {self.n_window} samples at {shape.sfreq:g} Hz, "
                f"got {shape.n_times}; lengthen the epoch or shorten window"
            )
        if config.features == "patch" and config.bands != BANDS:
            raise ValueError(
                f"bands={config.bands} have no effect with features='patch'; use features='band_power' or leave bands"
            )
        n_windows = -(-shape.n_times // self.n_window)
        self.padding = n_windows * self.n_window - shape.n_times
        width = self.token_width = config.width
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.band_power = (
            BandPower(shape.sfreq, config.bands, self.n_window) if config.features == "band_power" else None
        )
        self.embed = nn.Linear(self.n_window if self.band_power is None else len(config.bands), width)
        if self.band_power is not None:
            # power of white noise of unit variance, as whitened sensors have it
            white = 2 / shape.sfreq * torch.tensor([high - low for low, high in config.bands])
            self.register_buffer("white", white.log(), persistent=False)
        self.place_code = FourierPositions(FOURIER_WIDTH)
        self.embed_place = nn.Linear(FOURIER_WIDTH, width)
        self.spatial = TransformerEncoder(width, config.heads, config.spatial_layers, config.dropout, expansion=2)
        self.narrow = nn.Linear(width, READOUT_WIDTH)
        self.gather = nn.Linear(FOURIER_WIDTH, config.n_virtual, bias=False)
        nn.init.normal_(self.gather.weight, std=(FOURIER_WIDTH / 2) ** -0.5)  # the length of every code, inverted
        self.collect = nn.Linear(config.n_virtual * READOUT_WIDTH, width)
        self.times = nn.Parameter(0.02 * torch.randn(n_windows, width))
        self.token = nn.Parameter(torch.randn(1, width)) if config.readout == "token" else None
        self.temporal = TransformerEncoder(width, config.heads, config.temporal_layers, config.dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.head = ResidualProjection(width * (1 if self.token is not None else n_windows), embed_dim, config.dropout)

    def windows(self, data: Tensor) -> Tensor:
        """Cut ``(b, c, t)`` epochs and describe each window, (b, w, c, n_features)."""
        n_epochs, n_channels, _ = data.shape
        patches = nn.functional.pad(data, (0, self.padding)).view(n_epochs, n_channels, -1, self.n_window)
        # (b, c, w, n_window) -> (b, w, c, n_window)
        patches = patches.transpose(1, 2)
        return patches if self.band_power is None else log_power(self.band_power(patches)) - self.white

    def embed_windows(self, windows: Tensor, positions: Tensor) -> Tensor:
        """Attend over the sensors of each window: (b, w, c, n_features) to (b, w, width), windows apart."""
        n_epochs, n_windows, n_channels, _ = windows.shape
        known = (positions >= 0).all(dim=-1, keepdim=True)
        if not bool(known.any(dim=-2).all()):
            raise ValueError(
                f"spatio_temporal_transformer needs sensor positions, got {n_channels} sensors without one; "
                "take positions from a montage or a standard layout"
            )
        code = self.place_code(positions) * known  # an unknown place has no code, and is not read out
        place, near = self.embed_place(code), self.gather(code).mT / n_channels**0.5
        if positions.ndim == 3:  # one montage per epoch, the same for all of its windows
            place, near = place.unsqueeze(1), near.unsqueeze(1)
        sensors = self.spatial((self.embed(windows) + place).flatten(0, 1))
        heard = near @ self.narrow(sensors).view(n_epochs, n_windows, n_channels, READOUT_WIDTH)
        embedded: Tensor = self.collect(heard.flatten(2))
        return embedded

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return one token per window, behind the read-out token if there is one, (b, w or w + 1, width)."""
        if self.people is not None:
            data = self.people(data, subject)
        tokens = self.embed_windows(self.windows(data), positions) + self.times
        if self.token is not None:
            tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)
        out: Tensor = self.temporal(tokens)
        return out

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed epochs.

        Parameters
        ----------
        data : Tensor, (b, c, t), float32
            Preprocessed, unitless.
        positions : Tensor, (c, 2) or (b, c, 2), float32
            Layout coordinates in [0, 1]; sensors with a negative one are heard by the others but not read out.
        subject : Tensor, (b,), int64
            Used only with ``subject_layers``.

        Returns
        -------
        Tensor, (b, embed_dim), float32
        """
        tokens = self.tokens(data, positions, subject)
        features = tokens[:, 0] if self.token is not None else tokens.flatten(1)
        embeds: Tensor = self.head(self.dropout(features))
        return embeds
