"""The header of an EDF or BDF file, checked by arithmetic before any reader sees the file.

Every size that a reader would trust is compared with the others and with the length of the file. Offsets are those of
Kemp et al. 1992 (EDF) and 2003 (EDF+); BDF differs by three bytes per sample instead of two.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from encoders.edf_notes import check_notes
from encoders.epochs import EpochsMismatch
from encoders.recording_bounds import MAX_BYTES, MAX_CHANNELS, MAX_SFREQ

_FIXED = 256
_LABEL, _SCALES, _SAMPLES = 16, (104, 112, 120, 128), 216
_NOTES = ("EDF Annotations", "BDF Annotations")
# MNE reads about so many bytes at a time, and joins the annotation signals of each piece
_PIECE_BYTES = 10 * 1024**2


@dataclass(frozen=True)
class _Signal:
    """One signal of the header: physical and digital limits, samples per record."""

    label: str
    limits: tuple[float, ...]
    n_samples: int


def check_edf(path: Path, n_bytes_per_sample: int) -> None:
    """Check the header of an EDF (2 bytes per sample) or BDF file (3), and its annotations.

    Raises
    ------
    EpochsMismatch
        If a field is no number, is out of bounds, or does not fit the others or the length of the file, or if the
        annotations would take long to search.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        fixed = file.read(_FIXED)
        n_signals = _whole(fixed[252:256], "number of signals", 1, MAX_CHANNELS)
        table = file.read(_FIXED * n_signals)
    if len(table) < _FIXED * n_signals:
        raise EpochsMismatch(f"the header announces {n_signals} signals, the file ends before it; copy it again")
    n_header = _whole(fixed[184:192], "header length", _FIXED, 1 << 26)
    if n_header != _FIXED * (n_signals + 1):
        raise EpochsMismatch(
            f"the header says it has {n_header} bytes, expected {_FIXED * (n_signals + 1)} for {n_signals} signals; "
            "export the recording again"
        )
    n_records = _whole(fixed[236:244], "number of records", -1, 1 << 31)
    duration = _real(fixed[244:252], "duration of a record")
    signals = [_signal(table, n_signals, index) for index in range(n_signals)]
    _check_signals(signals, duration)
    record = n_bytes_per_sample * sum(signal.n_samples for signal in signals)
    held = (size - n_header) // record
    if n_records == 0 or held < max(n_records, 1):
        raise EpochsMismatch(
            f"the header announces {n_records} records of {record} bytes, the file holds {held}; copy it again"
        )
    _check_length(signals, n_records if n_records > 0 else held)
    check_notes(_notes(path, signals, n_bytes_per_sample, n_header, held))


def _notes(path: Path, signals: list[_Signal], n_bytes_per_sample: int, n_header: int, n_records: int) -> bytes:
    """Return the bytes of the annotation signals; a signal also is one if its type stands before the label."""
    ends = n_bytes_per_sample * np.cumsum([signal.n_samples for signal in signals])
    columns = [
        slice(end - n_bytes_per_sample * signal.n_samples, end)
        for signal, end in zip(signals, ends.tolist(), strict=True)
        if signal.label.endswith(_NOTES)
    ]
    record = int(ends[-1])
    table = np.memmap(path, np.uint8, "r", offset=n_header, shape=(n_records, record))
    n_per_piece = max(_PIECE_BYTES // record, 1)
    pieces = (table[at : at + n_per_piece] for at in range(0, n_records if columns else 0, n_per_piece))
    return b"".join(piece[:, column].tobytes() for piece in pieces for column in columns)


def _signal(table: bytes, n_signals: int, index: int) -> _Signal:
    def column(offset: int, width: int) -> bytes:
        start = offset * n_signals + width * index
        return table[start : start + width]

    label = column(0, _LABEL).strip().decode("latin-1")
    return _Signal(
        label,
        tuple(_real(column(offset, 8), f"limit of signal {index}") for offset in _SCALES),
        _whole(column(_SAMPLES, 8), f"number of samples of signal {index}", 1, 1 << 24),
    )


def _check_signals(signals: list[_Signal], duration: float) -> None:
    sampled = [signal for signal in signals if signal.label not in _NOTES]
    if not sampled:
        raise EpochsMismatch("the file holds annotations only, expected signals; send the recording")
    if not 0 < duration <= 1e6:
        raise EpochsMismatch(f"a record lasts {duration:g} s, expected more than 0; export the recording again")
    for signal in sampled:
        low, high, digital_low, digital_high = signal.limits
        if digital_low >= digital_high or low == high:
            raise EpochsMismatch(
                f"a signal has the physical limits {low:g} and {high:g} and the digital limits {digital_low:g} and "
                f"{digital_high:g}, expected two different ones each, the digital ones rising; export it again"
            )
        if signal.n_samples / duration > MAX_SFREQ:
            raise EpochsMismatch(
                f"a signal has {signal.n_samples / duration:g} samples per second, at most {MAX_SFREQ:g} are read; "
                "send a lower rate"
            )


def _check_length(signals: list[_Signal], n_records: int) -> None:
    # readers bring all signals to the highest rate
    n_values = len(signals) * max(signal.n_samples for signal in signals) * n_records
    if 8 * n_values > MAX_BYTES:
        raise EpochsMismatch(f"the recording needs {8 * n_values} bytes, at most {MAX_BYTES} are read; cut it shorter")


def _whole(field: bytes, what: str, low: int, high: int) -> int:
    value = _real(field, what)
    if not value.is_integer() or not low <= value <= high:
        raise EpochsMismatch(f"the header gives {value:g} as {what}, expected {low} to {high}; export it again")
    return int(value)


def _real(field: bytes, what: str) -> float:
    text = field.decode("latin-1").replace("\x00", " ").replace(",", ".").strip()
    try:
        value = float(text) if len(text) == len(text.encode()) and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise EpochsMismatch(f"the header gives no number as {what}; the file is damaged, export it again")
    return value
