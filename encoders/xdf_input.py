"""XDF files of LabRecorder: pyxdf reads them, and one EEG stream becomes a recording.

Samples are in microvolts unless the stream says volts, which is the convention of Lab Streaming Layer. Markers become
annotations at their corrected times.
"""

from pathlib import Path
from typing import Any

import mne
import numpy as np
import pyxdf

from encoders.epochs import EpochsMismatch
from encoders.modality import CHANNEL_KINDS
from encoders.quotation import quoted
from encoders.recording_bounds import check_channel_names, check_rate
from encoders.xdf_chunks import check_chunks

_UNITS = {"microvolts": 1e-6, "microvolt": 1e-6, "uv": 1e-6, "\u00b5v": 1e-6, "\u03bcv": 1e-6, "volts": 1.0, "v": 1.0}
_VOLTAGES = {name for name, kind in CHANNEL_KINDS.items() if kind.unit == "V"}


def read_xdf(path: Path) -> "mne.io.BaseRaw":
    """Read the EEG stream of an XDF file.

    Raises
    ------
    EpochsMismatch
        If the chunks do not fit the file, there is not exactly one EEG stream, or its channels have no names.
    """
    check_chunks(path)
    streams, _ = pyxdf.load_xdf(str(path), verbose=False)
    signals = [stream for stream in streams if _text(stream, "type").lower() in _VOLTAGES and _is_numeric(stream)]
    if len(signals) != 1:
        found = ", ".join(sorted({quoted(_text(stream, "type")) for stream in streams})[:10])
        raise EpochsMismatch(f"the XDF file has {len(signals)} EEG streams among {found}, expected one; send one")
    signal = signals[0]
    data, times = np.asarray(signal["time_series"], dtype=np.float64), np.asarray(signal["time_stamps"])
    names, scales = _channels(signal, data.shape[1] if data.ndim == 2 else 0)
    if data.ndim != 2 or len(data) < 2 or not np.isfinite(times).all():
        raise EpochsMismatch("the EEG stream holds no samples; send the file that holds the signal")
    sfreq = float(_text(signal, "nominal_srate"))
    check_rate(sfreq)
    info = mne.create_info(list(names), sfreq, "eeg")
    raw = mne.io.RawArray((data * scales).T, info, verbose="error")
    return raw.set_annotations(_markers(streams, float(times[0]), raw.times[-1]))


def _is_numeric(stream: dict[str, Any]) -> bool:
    return _text(stream, "channel_format") != "string"


def _text(stream: dict[str, Any], key: str) -> str:
    value = (stream["info"].get(key) or [""])[0]
    return value if isinstance(value, str) else ""


def _channels(stream: dict[str, Any], n_channels: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Return names and factors to volt."""
    described = (stream["info"].get("desc") or [None])[0] or {}
    channels = ((described.get("channels") or [None])[0] or {}).get("channel") or []
    names = tuple(str((channel.get("label") or [""])[0] or "") for channel in channels)
    if len(names) != n_channels or not all(names):
        raise EpochsMismatch(
            f"the EEG stream names {sum(map(bool, names))} of its {n_channels} channels; write labels into its "
            "description"
        )
    check_channel_names(names)
    units = [str((channel.get("unit") or ["microvolts"])[0] or "microvolts").lower() for channel in channels]
    unknown = sorted({quoted(unit) for unit in units if unit not in _UNITS})
    if unknown:
        named = ", ".join(unknown[:10])
        raise EpochsMismatch(f"the EEG stream has the units {named}, expected microvolts or volts; correct them")
    return names, np.asarray([_UNITS[unit] for unit in units])


def _markers(streams: list[dict[str, Any]], start: float, end: float) -> "mne.Annotations":
    onsets, texts = [], []
    for stream in streams:
        if not _is_numeric(stream):
            for time, values in zip(stream["time_stamps"], stream["time_series"], strict=True):
                if 0 <= time - start <= end:
                    onsets.append(float(time - start))
                    texts.append(str(values[0]))
    return mne.Annotations(onsets, [0.0] * len(onsets), texts)
