"""Rates, names and values that no recording has are refused; wide but possible ones pass."""

import math
from dataclasses import replace

import numpy as np
import pytest
from fake_service import make_epochs

from encoders.epochs import EpochsMismatch
from encoders.recording_bounds import check_bounds, check_channel_names, check_rate


@pytest.mark.parametrize("sfreq", [math.nan, math.inf, -250.0, 0.0, 0.5, 1e9])
def test_impossible_rates(sfreq: float) -> None:
    with pytest.raises(EpochsMismatch, match="sampling rate"):
        check_rate(sfreq)


@pytest.mark.parametrize("names", [(), ("",), (" ",), ("a\n",), ("x" * 200,), ("a\u202eb",), ("E",) * 5000])
def test_impossible_names(names: tuple[str, ...]) -> None:
    with pytest.raises(EpochsMismatch, match="channel"):
        check_channel_names(names)


def test_possible_recordings_pass() -> None:
    check_rate(1.0)
    check_rate(50_000.0)
    check_channel_names(("Fp1", "MLC11-1609", "EEG 001", "\u0141\u00f3d\u017a"))
    check_bounds(make_epochs(2))
    check_bounds(replace(make_epochs(2), data=make_epochs(2).data * np.float32(1e6)))  # microvolt: asked about later


@pytest.mark.parametrize(
    "change", [{"tmin": 1e5}, {"stimulus": ("a" * 1000, "b")}, {"stimulus": ("a\x00", "b")}, {"subject": "s\x1b[2J"}]
)
def test_impossible_epochs(change: dict[str, object]) -> None:
    with pytest.raises(EpochsMismatch):
        check_bounds(replace(make_epochs(2), **change))  # type: ignore[arg-type]


def test_values_that_overflow_are_refused() -> None:
    with pytest.raises(EpochsMismatch, match="largest value"):
        check_bounds(replace(make_epochs(1), data=np.full((1, 11, 100), 1e30, np.float32)))
