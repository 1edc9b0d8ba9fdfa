"""Epochs as plain numbers between two processes: a JSON object and float32 bytes, so that no object ever crosses.

The side that unpacks does not trust the side that packed, which has read a stranger's file.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.recording_bounds import check_bounds

MAX_VALUES = 1 << 29
_TEXTS = ("ch_names", "ch_types", "stimulus")


def pack_epochs(epochs: SignalEpochs) -> tuple[dict[str, Any], tuple[memoryview, memoryview]]:
    """Return what stands in the JSON object, and the bytes of the samples and of the positions."""
    head = {
        "shape": list(epochs.data.shape),
        "sfreq": float(epochs.sfreq),
        "tmin": float(epochs.tmin),
        "ch_names": list(epochs.ch_names),
        "ch_types": list(epochs.ch_types),
        "subject": epochs.subject,
        "stimulus": list(epochs.stimulus),
        "n_averaged": list(epochs.n_averaged),
    }
    arrays = (np.ascontiguousarray(array, dtype="<f4") for array in (epochs.data, epochs.positions))
    samples, positions = (array.reshape(-1).data.cast("B") for array in arrays)
    return head, (samples, positions)


def unpack_epochs(head: Mapping[str, Any], body: bytes) -> SignalEpochs:
    """Check every value and build the epochs.

    Raises
    ------
    EpochsMismatch
        If a value is absent, of another kind, or does not fit the others.
    """
    shape = _integers(head.get("shape"), "shape")
    if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > MAX_VALUES:
        raise EpochsMismatch(f"the reader gave the shape {shape}, expected three positive sizes")
    n_samples = math.prod(shape)
    if len(body) != 4 * (n_samples + 3 * shape[1]):
        raise EpochsMismatch(f"the reader gave {len(body)} bytes for the shape {shape}; send the file again")
    values = np.frombuffer(body, dtype="<f4").astype(np.float32, copy=False)
    texts = {name: _texts(head.get(name), name) for name in _TEXTS}
    subject = head.get("subject")
    if not isinstance(subject, str):
        raise EpochsMismatch("the reader gave a subject that is no text; send the file again")
    epochs = SignalEpochs(
        data=values[:n_samples].reshape(shape),
        positions=values[n_samples:].reshape(shape[1], 3),
        sfreq=_number(head.get("sfreq"), "sfreq"),
        tmin=_number(head.get("tmin"), "tmin"),
        subject=subject,
        n_averaged=_integers(head.get("n_averaged"), "n_averaged"),
        **texts,
    )
    check_bounds(epochs)
    return epochs


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        raise EpochsMismatch(f"the reader gave a {name} that is no finite number; send the file again")
    return float(value)


def _integers(values: object, name: str) -> tuple[int, ...]:
    whole = isinstance(values, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in values)
    if not isinstance(values, list) or not whole or any(abs(value) >= 1 << 53 for value in values):
        raise EpochsMismatch(f"the reader gave {name} that are no whole numbers; send the file again")
    return tuple(values)


def _texts(values: object, name: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise EpochsMismatch(f"the reader gave {name} that are no texts; send the file again")
    return tuple(values)
