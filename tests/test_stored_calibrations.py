"""Calibrations of a bundle: each row by one with as many presentations or fewer, and saved as they are."""

import numpy as np
import pytest
from pydantic import ValidationError

from alignment.stored_calibrations import Calibrations, StoredCalibration


def stored(n_averaged: int, slope: float, modalities: str = "eeg") -> StoredCalibration:
    return StoredCalibration(
        modalities=modalities, n_averaged=n_averaged, temperature=0.1, slope=slope, offset=0.0, gallery_size=3, n=9,
        n_right=4, split="val",
    )  # fmt: skip


CALIBRATIONS = Calibrations(entries=(stored(2, 1.0), stored(8, 2.0), stored(1, 1.5, "meg")))


def test_a_row_is_calibrated_with_no_more_presentations_than_it_has() -> None:
    similarity = np.tile(np.array([[0.5, 0.1, 0.0]], dtype=np.float32), (5, 1))
    found = CALIBRATIONS.chance_right(similarity, ["eeg"], [1, 2, 7, 8, 100])
    few, many = (one.calibration().confidence(similarity[:1])[0] for one in (stored(2, 1.0), stored(8, 2.0)))
    assert np.isnan(found[0]) and found[1:].tolist() == [few, few, many, many] and many > few
    assert np.isnan(CALIBRATIONS.chance_right(similarity, ["eeg", "meg"], [5] * 5)).all()


def test_it_survives_its_file_and_another_gallery_is_refused() -> None:
    assert Calibrations.model_validate_json(CALIBRATIONS.model_dump_json()) == CALIBRATIONS
    with pytest.raises(ValueError, match="calibrated for 3 pictures, got 4"):
        CALIBRATIONS.chance_right(np.zeros((1, 4), dtype=np.float32), ["eeg"], [2])
    with pytest.raises(ValidationError):
        stored(2, -1.0)
