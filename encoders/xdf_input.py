"""XDF files of LabRecorder: the chunks are walked first, then pyxdf reads them, and one EEG stream becomes a recording.

Samples are in microvolts unless the stream says volts, which is the convention of Lab Streaming Layer. Markers become
annotations at their corrected times. Layout: "XDF specification" 1.0.
"""

import re
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pyxdf

from encoders.epochs import EpochsMismatch
from encoders.modality import CHANNEL_KINDS
from encoders.plain_xml import is_plain_xml
from encoders.quotation import quoted
from encoders.recording_bounds import MAX_BYTES, MAX_CHANNELS, check_channel_names, check_rate

MAX_CHUNKS = 500_000
MAX_XML_BYTES = 4 << 20
_FILE_HEADER, _STREAM_HEADER, _SAMPLES, _FOOTER = 1, 2, 3, 6
_UNITS = {"microvolts": 1e-6, "microvolt": 1e-6, "uv": 1e-6, "\u00b5v": 1e-6, "\u03bcv": 1e-6, "volts": 1.0, "v": 1.0}
_VOLTAGES = {name for name, kind in CHANNEL_KINDS.items() if kind.unit == "V"}
_DAMAGED = "the XDF file is damaged or cut short; copy it again"


def read_xdf(path: Path) -> "mne.io.BaseRaw":
    """Read the EEG stream of an XDF file.

    Raises
    ------
    EpochsMismatch
        If the chunks do not fit the file, there is not exactly one EEG stream, or its channels have no names.
    """
    _check_chunks(path)
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


def _check_chunks(path: Path) -> None:
    """Check lengths and headers of all chunks, in the file's own words."""
    content = path.read_bytes()
    position, n_chunks, known = 4, 0, set[bytes]()
    while position < len(content):
        n_chunks += 1
        length, position = _length(content, position)
        if n_chunks > MAX_CHUNKS or length < 2 or position + length > len(content):
            raise EpochsMismatch(_DAMAGED)
        kind = int.from_bytes(content[position : position + 2], "little")
        body = content[position + 2 : position + length]
        if kind in (_FILE_HEADER, _STREAM_HEADER, _FOOTER):
            _check_xml(body if kind == _FILE_HEADER else body[4:])
        if kind == _STREAM_HEADER:
            _check_stream(body)
            known.add(body[:4])
        if kind == _SAMPLES and body[:4] not in known:
            raise EpochsMismatch("the XDF file has samples of a stream that it does not describe; copy it again")
        if kind == _SAMPLES:
            n_samples, _ = _length(body, 4)
            if n_samples > len(body):
                raise EpochsMismatch(_DAMAGED)
        position += length


def _length(content: bytes, position: int) -> tuple[int, int]:
    """Return a number of variable length and where it ends."""
    width = content[position] if position < len(content) else 0
    if width not in (1, 4, 8) or position + 1 + width > len(content):
        raise EpochsMismatch(_DAMAGED)
    start = position + 1
    return int.from_bytes(content[start : start + width], "little"), start + width


def _check_xml(content: bytes) -> None:
    if len(content) > MAX_XML_BYTES or not is_plain_xml(content):
        raise EpochsMismatch("a description in the XDF file is too long, declares entities or is not UTF-8")


def _check_stream(body: bytes) -> None:
    counts = re.findall(rb"<channel_count>\s*(-?\d{1,9})\s*</channel_count>", body)
    rates = re.findall(rb"<nominal_srate>\s*([-+.\deE]{1,30})\s*</nominal_srate>", body)
    if len(counts) != 1 or len(rates) != 1 or not 1 <= int(counts[0]) <= MAX_CHANNELS:
        raise EpochsMismatch(f"a stream announces no number of channels from 1 to {MAX_CHANNELS}, or no rate")
    try:
        rate = float(rates[0])
    except ValueError as error:
        raise EpochsMismatch("a stream announces a rate that is no number; record again") from error
    if not 0 <= rate * int(counts[0]) * 8 <= MAX_BYTES:
        raise EpochsMismatch(f"a stream announces {rate:g} samples per second, expected 0 or more; record again")
