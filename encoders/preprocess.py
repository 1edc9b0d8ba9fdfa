"""From a recording in SI units to the unitless window that a network reads.

Match channels, low-pass and resample and crop, baseline, reference, scale robustly, optionally whiten,
clamp. Statistics come from training epochs only and travel with the configuration. The 0.1 Hz
high-pass belongs to continuous data (`encoders.readers`), since it is longer than any epoch.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.modality import CHANNEL_KINDS, MODALITIES
from encoders.resample import window_matrix, window_reach
from encoders.sensors import SensorLayout, layout_positions_2d, match_channels
from encoders.whitening import mvnn

MAX_SFREQ = 50_000.0
FOREIGN_GAIN = 3.0
FLAT_FRACTION = 1e-4


class PreprocessConfig(BaseModel):
    """What one modality's `Preprocessor` does.

    Attributes
    ----------
    sfreq, tmin, n_times
        Time axis that the networks see, in Hz, seconds and samples.
    l_freq, h_freq
        Pass band in Hz. The lower edge is for readers of continuous data; epochs get the upper one.
    reference
        ``average`` subtracts the mean over electrodes; MEG has no reference and needs ``none``.
    baseline
        Interval in seconds whose mean is subtracted; None subtracts nothing.
    clamp
        Largest absolute value of the output, in robust units.
    whiten
        Whether to apply training-fitted noise normalisation (MVNN).
    min_fraction
        Fraction of the layout's sensors that a recording must have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sfreq: float = Field(default=100.0, gt=0.0)
    tmin: float = 0.0
    n_times: int = Field(default=64, ge=2)
    l_freq: float = Field(default=0.1, gt=0.0)
    h_freq: float = Field(default=40.0, gt=0.0)
    reference: Literal["average", "none"] = "average"
    baseline: tuple[float, float] | None = (-0.1, 0.0)
    clamp: float = Field(default=20.0, gt=0.0)
    whiten: bool = False
    min_fraction: float = Field(default=0.75, gt=0.0, le=1.0)

    @model_validator(mode="after")
    def _check_bands(self) -> "PreprocessConfig":
        if not self.l_freq < self.h_freq < self.sfreq / 2.0:
            raise ValueError(
                f"l_freq {self.l_freq} < h_freq {self.h_freq} < sfreq / 2 = {self.sfreq / 2.0} must hold; change one"
            )
        if self.baseline is not None and not self.baseline[0] < self.baseline[1]:
            raise ValueError(f"baseline {self.baseline} must be (start, end) in seconds with start < end")
        return self

    @property
    def tmax(self) -> float:
        """Time of the last sample in seconds."""
        return self.tmin + (self.n_times - 1) / self.sfreq


def default_preprocess(modality: str, **changes: Any) -> PreprocessConfig:
    """Return the configuration for ``modality`` ("eeg" or "meg"), with ``changes`` applied."""
    return PreprocessConfig(**{"reference": MODALITIES[modality].reference, **changes})


@dataclass(frozen=True)
class ChannelReport:
    """What was done to a recording to make it fit."""

    interpolated: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreprocessedEpochs:
    """Unitless epochs ``data`` (n_epochs, n_channels, n_times), float32, in the layout's channel order."""

    data: NDArray[np.float32]
    stimulus: tuple[str, ...]
    n_averaged: tuple[int, ...]
    subject: str
    report: ChannelReport


class Preprocessor:
    """Bring recordings of one modality onto a layout and a time axis, scaled by training statistics."""

    def __init__(self, config: PreprocessConfig, layout: SensorLayout) -> None:
        referenced = [CHANNEL_KINDS[kind].referenced for kind in layout.ch_types]
        if config.reference == "average" and not all(referenced):
            raise ValueError(
                f"reference 'average' has no meaning for the channel types {sorted(set(layout.ch_types))} of layout "
                f"{layout.name}; use 'none'"
            )
        self.config = config
        self.layout = layout
        self._arrays: dict[str, NDArray[np.float32]] = {}

    @property
    def positions_2d(self) -> NDArray[np.float32]:
        """Flat sensor map of the layout, (n_channels, 2), as the networks take it."""
        return layout_positions_2d(self.layout.positions)

    @property
    def fitted(self) -> bool:
        """Whether there are training statistics."""
        return bool(self._arrays)

    def fit(self, epochs: SignalEpochs) -> "Preprocessor":
        """Learn median, interquartile range and whitener of each channel from training epochs."""
        data, _ = self.window(epochs)
        quartiles = [np.quantile(data[:, channel], (0.25, 0.5, 0.75)) for channel in range(data.shape[1])]
        low, centre, high = np.asarray(quartiles).T
        if not (high > low).all():
            names = [name for name, ok in zip(self.layout.ch_names, high > low, strict=True) if not ok]
            raise EpochsMismatch(f"channels {names} do not vary in the training epochs; leave them out")
        self._arrays = {"centre": centre.astype(np.float32), "scale": (high - low).astype(np.float32)}
        if self.config.whiten:
            self._arrays["whitener"] = mvnn(self._scale(data))
        return self

    def __call__(self, epochs: SignalEpochs) -> PreprocessedEpochs:
        """Preprocess a recording.

        Parameters
        ----------
        epochs : SignalEpochs
            SI units; channels by name in any order, any sampling rate that covers the window.

        Returns
        -------
        PreprocessedEpochs
            ``data`` (n_epochs, n_channels, n_times), float32, unitless, within +-clamp. A recording
            whose overall spread is more than 3 times off the training spread is scaled by one factor
            per channel kind, which the report says.

        Raises
        ------
        EpochsMismatch
            If the recording does not fit: see `match_channels` and `check_signal`.
        """
        if not self.fitted:
            raise ValueError("this Preprocessor has no statistics; call fit with training epochs, or from_state")
        data, report = self.window(epochs)
        data = self._scale(data)
        gain, notes = self._foreign_gain(data, epochs.n_averaged)
        data *= gain[:, None]
        if "whitener" in self._arrays:
            data = np.matmul(self._arrays["whitener"], data)
        np.clip(data, -self.config.clamp, self.config.clamp, out=data)
        report = ChannelReport(report.interpolated, report.dropped, (*report.warnings, *notes))
        return PreprocessedEpochs(data, epochs.stimulus, epochs.n_averaged, epochs.subject, report)

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
        """Return what `from_state` needs: a JSON-able dictionary, and arrays for safetensors."""
        meta = {"config": self.config.model_dump(mode="json"), "layout": json.loads(self.layout.to_json())}
        return meta, {name: array.copy() for name, array in self._arrays.items()}

    @classmethod
    def from_state(cls, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float32]]) -> "Preprocessor":
        """Rebuild a fitted preprocessor; its output and digest are those of the original."""
        config = PreprocessConfig.model_validate(meta["config"])
        preprocessor = cls(config, SensorLayout.from_json(json.dumps(meta["layout"])))
        c = preprocessor.layout.n_channels
        expected = {"centre": (c,), "scale": (c,)} | ({"whitener": (c, c)} if config.whiten else {})
        shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        if shapes != expected:
            raise ValueError(f"preprocessor statistics have shapes {shapes}, expected {expected}; take the saved ones")
        preprocessor._arrays = {name: np.asarray(arrays[name], dtype=np.float32) for name in expected}
        return preprocessor

    @property
    def digest(self) -> str:
        """SHA-256 of configuration, layout and statistics: the preprocessing hash of an answer."""
        meta, arrays = self.state()
        digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
        for name in sorted(arrays):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(arrays[name], dtype="<f4").tobytes())
        return digest.hexdigest()

    def window(self, epochs: SignalEpochs) -> tuple[NDArray[np.float32], ChannelReport]:
        """Match channels, low-pass, resample, crop, baseline and reference, and nothing that statistics are needed for.

        Returns
        -------
        data : ndarray, (n_epochs, n_channels, n_times), float32
            SI units, in the layout's channel order.
        report : ChannelReport

        Raises
        ------
        EpochsMismatch
            If the recording does not fit: see `match_channels` and `check_signal`.
        """
        match = match_channels(epochs, self.layout, min_fraction=self.config.min_fraction)
        check_signal(match.epochs, self.config)
        samples, matrix, warnings = _time_matrix(epochs, self.config)
        data = np.matmul(match.epochs.data[:, :, samples], matrix)
        if self.config.reference == "average":
            data -= data.mean(axis=1, keepdims=True)
        return data, ChannelReport(match.interpolated, match.dropped, warnings)

    def _scale(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        return (data - self._arrays["centre"][:, None]) / self._arrays["scale"][:, None]

    def _foreign_gain(
        self, data: NDArray[np.float32], n_averaged: tuple[int, ...]
    ) -> tuple[NDArray[np.float32], list[str]]:
        gain = np.ones(data.shape[1], dtype=np.float32)
        notes = []
        lowest = 1.0 / (FOREIGN_GAIN * float(np.sqrt(np.median(n_averaged))))
        kinds = np.asarray(self.layout.ch_types)
        for kind in sorted(set(self.layout.ch_types)):
            low, high = np.quantile(data[:, kinds == kind], (0.25, 0.75))
            spread = float(high - low)
            if not lowest <= spread <= FOREIGN_GAIN:
                gain[kinds == kind] = 1.0 / spread
                notes.append(
                    f"the {kind} signal is {spread:.2g} times as strong as in training, scaled by {1 / spread:.3g}"
                )
        return gain, notes


def check_signal(epochs: SignalEpochs, config: PreprocessConfig) -> None:
    """Refuse a recording whose values cannot be what they claim to be.

    Raises
    ------
    EpochsMismatch
        If values are not finite, ``sfreq`` is absurd, the window is not covered, the unit is wrong
        (judged by the spread inside epochs), or a channel or an epoch is flat.
    """
    if not np.isfinite(epochs.data).all():
        raise EpochsMismatch("the data has NaN or infinite values; remove these epochs or channels")
    if not config.sfreq / 2.0 <= epochs.sfreq <= MAX_SFREQ:
        raise EpochsMismatch(
            f"the sampling rate is {epochs.sfreq:g} Hz, expected {config.sfreq / 2.0:g} to {MAX_SFREQ:g} Hz; "
            "check sfreq, or send data with a higher rate"
        )
    first, last = float(epochs.times[0]), float(epochs.times[-1])
    slack = 0.5 / config.sfreq + 1e-6
    if first > config.tmin + slack or last < config.tmax - slack:
        raise EpochsMismatch(
            f"epochs span {first:.3f} to {last:.3f} s around the onset, the model needs {config.tmin:.3f} to "
            f"{config.tmax:.3f} s; cut longer epochs"
        )
    kinds = np.asarray(epochs.ch_types)
    peak_to_peak = np.ptp(epochs.data, axis=2)
    flat = np.zeros(peak_to_peak.shape, dtype=bool)
    for kind in sorted(set(epochs.ch_types)):
        _check_unit(epochs.data[:, kinds == kind], kind)
        typical = np.median(peak_to_peak[:, kinds == kind])
        flat[:, kinds == kind] = peak_to_peak[:, kinds == kind] <= FLAT_FRACTION * typical
    if flat.all(axis=0).any():
        names = [epochs.ch_names[i] for i in np.flatnonzero(flat.all(axis=0))]
        raise EpochsMismatch(f"channels {names} are flat; leave them out of the file and they will be interpolated")
    if flat.all(axis=1).any():
        rows = np.flatnonzero(flat.all(axis=1)).tolist()
        raise EpochsMismatch(f"epochs {rows[:20]} are flat in every channel; remove them")


def _check_unit(data: NDArray[np.float32], kind: str) -> None:
    row = CHANNEL_KINDS[kind]
    spread = float(np.median(data.std(axis=2, dtype=np.float64)))
    low, high = row.plausible_spread
    if spread > 0.0 and not low <= spread <= high:
        raise EpochsMismatch(
            f"the {kind} channels vary by {spread:.2g} {row.unit} (median standard deviation in an epoch), plausible "
            f"is {low:g} to {high:g} {row.unit}; give the data in {row.unit}, not in {row.display_unit} or another unit"
        )


def _time_matrix(
    epochs: SignalEpochs, config: PreprocessConfig
) -> tuple[slice, NDArray[np.float32], tuple[str, ...]]:
    """Return which samples the window is made of, and the matrix (n_samples, config.n_times) that makes it of them.

    The matrix holds the baseline too.
    """
    warnings = []
    if epochs.sfreq / 2.0 < config.h_freq:
        warnings.append(f"sampled at {epochs.sfreq:g} Hz: nothing above {epochs.sfreq / 2.0:g} Hz is in the recording")
    first, last = float(epochs.times[0]), float(epochs.times[-1])
    wanted = [(config.tmin, config.n_times)]
    if config.baseline is not None:
        start, end = max(config.baseline[0], first), min(config.baseline[1], last)
        if end - start < (config.baseline[1] - config.baseline[0]) / 2.0:
            warnings.append(f"no baseline {config.baseline} s in epochs from {epochs.tmin:g} s: used the window's mean")
            wanted.append(wanted[0])
        else:
            # On the output's time grid, so that the recording's rate does not change what the mean is taken over.
            wanted.append((start, round((end - start) * config.sfreq) + 1))
    reach = window_reach(epochs.sfreq, config.sfreq, config.h_freq)
    begins = min(tmin for tmin, _ in wanted)
    ends = max(tmin + (n_times - 1) / config.sfreq for tmin, n_times in wanted)
    # what lies further away has no weight, and a long recording would make a large matrix
    begin = max(0, math.floor((begins - first) * epochs.sfreq) - reach)
    stop = min(epochs.n_times, math.ceil((ends - first) * epochs.sfreq) + reach + 1)
    axis = (epochs.sfreq, float(epochs.times[begin]), stop - begin)
    matrix, *before = (window_matrix(*axis, config.sfreq, *one, config.h_freq) for one in wanted)
    for baseline in before:
        matrix = matrix - baseline.mean(axis=1, keepdims=True)
    return slice(begin, stop), matrix, tuple(warnings)
