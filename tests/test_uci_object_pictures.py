"""Trials of the UCI set: scalp channels in volt, and no trial twice."""

from pathlib import Path

import numpy as np
import pytest

from encoders.datasets.uci_object_pictures import FILE, read_object_pictures


def write(folder: Path, **changes: object) -> None:
    data = np.random.default_rng(0).standard_normal((4, 4, 16)).astype("f")
    arrays = {
        "data_uV": data, "condition": np.array(["S1 obj", "S2 match", "S1 obj", "S2 nomatch"]),
        "subject": np.array(["a", "a", "b", "b"]), "trial": np.arange(4), "ch_names": np.array(["OZ", "X", "CZ", "nd"]),
        "sfreq": np.float32(256.0),
    }  # fmt: skip
    (folder / FILE).parent.mkdir(exist_ok=True)
    np.savez(folder / FILE, **(arrays | changes))  # type: ignore[arg-type]


def test_the_layout_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    found = read_object_pictures(tmp_path)
    assert found.data.shape == (4, 2, 16) and found.ch_names == ("OZ", "CZ")
    assert found.condition.tolist()[1] == "S2 match" and found.sfreq == 256.0 and found.tmin == 0.0


def test_copies_and_unknown_conditions_are_refused(tmp_path: Path) -> None:
    write(tmp_path, data_uV=np.zeros((4, 4, 16), "f"))
    with pytest.raises(ValueError, match="3 trials twice"):
        read_object_pictures(tmp_path)
    write(tmp_path, condition=np.array(["S1 obj", "S2 match", "S1 obj", "S3"]))
    with pytest.raises(ValueError, match="S3.* unknown"):
        read_object_pictures(tmp_path)


def test_real_trials(shared_data: Path) -> None:
    found = read_object_pictures(shared_data)
    assert found.data.shape == (300, 61, 256) and len(set(found.subject.tolist())) == 10
