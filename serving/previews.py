"""A small view of an uploaded recording for people: traces of the mean over epochs, and where the sensors are."""

from collections.abc import Sequence

import numpy as np

from encoders.epochs import SignalEpochs
from encoders.sensors import layout_positions_2d
from serving.schema import SignalPreview

_MAX_TIMES = 120
# kind -> (unit to show, how many of them make one SI unit)
_UNITS = {"eeg": ("uV", 1e6), "mag": ("fT", 1e15), "grad": ("fT/cm", 1e13)}


def signal_previews(recordings: Sequence[SignalEpochs]) -> tuple[SignalPreview, ...]:
    """Make one preview per recording and channel kind."""
    previews = []
    for recording in recordings:
        for kind in dict.fromkeys(recording.ch_types):
            previews.append(_preview(recording.pick_types(kind), kind))
    return tuple(previews)


def _preview(recording: SignalEpochs, kind: str) -> SignalPreview:
    unit, per_si = _UNITS[kind]
    mean = recording.data.mean(axis=0, dtype=np.float64) * per_si
    step = -(-recording.n_times // _MAX_TIMES)
    n_blocks = recording.n_times // step
    # averaging blocks rather than picking samples keeps the preview free of aliases
    blocks = mean[:, : n_blocks * step].reshape(recording.n_channels, n_blocks, step).mean(axis=2)
    times = recording.times[: n_blocks * step].reshape(n_blocks, step).mean(axis=1)
    positions = layout_positions_2d(recording.positions)
    return SignalPreview(
        kind=kind,
        unit=unit,
        scale=1.0 / per_si,
        times_ms=tuple(np.round(times * 1000.0, 1).tolist()),
        ch_names=recording.ch_names,
        traces=tuple(tuple(float(f"{value:.4g}") for value in row) for row in blocks),
        positions=tuple((round(float(x), 4), round(float(y), 4)) if x >= 0 and y >= 0 else None for x, y in positions),
    )
