"""MATLAB 5 files that nest, lie or hold objects are refused before scipy sees them; true files pass."""

import io
from pathlib import Path

import hostile_matlab
import numpy as np
import pytest
from recording_samples import CANARY, samples
from scipy.io import savemat

from encoders.epochs import EpochsMismatch
from encoders.matlab_structure import check_matlab5


def test_lies_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.set"
    cases = [case for case in hostile_matlab.matlab5(CANARY, samples()) if case.name.startswith("MATLAB 5")]
    assert len(cases) >= 15
    for case in cases:
        path.write_bytes(case.content)
        with pytest.raises(EpochsMismatch, match="MATLAB file"):
            check_matlab5(path)


@pytest.mark.parametrize("packed", [False, True])
def test_everything_that_scipy_writes_passes(packed: bool, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    cells = np.empty((1, 3), dtype=object)
    cells[0] = ["a", np.eye(2), np.asarray([[1 + 2j]])]
    everything = {"EEG": hostile_matlab.structure(nested={"a": {"b": cells}}), "empty": [], "flag": True, "text": "abc"}
    savemat(buffer, everything | {"whole": np.arange(6, dtype=np.int16)}, do_compression=packed)
    (tmp_path / "x.mat").write_bytes(buffer.getvalue())
    check_matlab5(tmp_path / "x.mat")


def test_files_of_eeglab_pass(shared_data: Path, tmp_path: Path) -> None:
    files = list((shared_data / "formats" / "eeglab").glob("*.set"))
    assert len(files) >= 3
    for file in files:
        check_matlab5(file)
        (tmp_path / "cut.set").write_bytes(file.read_bytes()[:-100])
        with pytest.raises(EpochsMismatch, match="damaged"):
            check_matlab5(tmp_path / "cut.set")
