"""Numbers between two processes: what is packed comes out, and a lie of the packing side is refused."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_service import make_epochs

from encoders.epochs import EpochsMismatch
from serving.plain_epochs import pack_epochs, unpack_epochs


def test_what_is_packed_comes_out() -> None:
    epochs = replace(make_epochs(3), subject="s1", n_averaged=(1, 2, 3))
    epochs.positions[0] = (0.01, 0.02, 0.03)
    head, parts = pack_epochs(epochs)
    result = unpack_epochs(json.loads(json.dumps(head)), b"".join(parts))
    np.testing.assert_array_equal(result.data, epochs.data)
    np.testing.assert_array_equal(result.positions, epochs.positions)
    for name in ("sfreq", "tmin", "ch_names", "ch_types", "subject", "stimulus", "n_averaged"):
        assert getattr(result, name) == getattr(epochs, name)


@pytest.mark.parametrize(
    "lie",
    [
        {"shape": None},
        {"shape": [3, 11]},
        {"shape": [-3, -11, 100]},
        {"shape": [3, 11, 0]},
        {"shape": [3, 11, 101]},
        {"shape": [3.0, 11, 100]},
        {"shape": [2**40, 2**40, 2**40]},
        {"sfreq": "100"},
        {"sfreq": float("nan")},
        {"sfreq": -1.0},
        {"sfreq": 10**400},
        {"sfreq": 1e-9},
        {"tmin": 1e9},
        {"stimulus": ["\ud800", "a", "b"]},
        {"ch_names": ["a\x1b[2J", *(f"E{i}" for i in range(10))]},
        {"tmin": float("inf")},
        {"tmin": True},
        {"ch_names": ["Cz"] * 11},
        {"ch_names": [1] * 11},
        {"ch_names": {"Cz": 1}},
        {"ch_types": ["object"] * 11},
        {"subject": None},
        {"stimulus": ["a"]},
        {"n_averaged": [1, 2, "3"]},
        {"n_averaged": [0, 1, 2]},
        {"n_averaged": [2**70, 1, 1]},
    ],
)
def test_lies_are_refused(lie: dict[str, Any]) -> None:
    head, parts = pack_epochs(make_epochs(3))
    with pytest.raises(EpochsMismatch):
        unpack_epochs(head | lie, b"".join(parts))


def test_samples_that_are_no_numbers_are_refused() -> None:
    head, parts = pack_epochs(make_epochs(3))
    body = bytearray(b"".join(parts))
    body[:4] = np.float32(np.nan).tobytes()
    with pytest.raises(EpochsMismatch, match="NaN"):
        unpack_epochs(head, bytes(body))
