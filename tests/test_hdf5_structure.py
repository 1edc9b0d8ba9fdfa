"""HDF5 files that lead out of themselves or round in themselves are refused before their values are read."""

from pathlib import Path

import hostile_matlab
import pytest
from recording_samples import CANARY, samples

from encoders.epochs import EpochsMismatch
from encoders.hdf5_structure import check_hdf5

# Sound HDF5 without a usable recording in it: `encoders.companion_input` refuses these.
NO_RECORDING = {
    "samples a structure", "no samples", "no structure", "channels of a billion", "rate NaN", "rate zero",
    "samples in another file", "NaN in a channel named by half a letter",
}  # fmt: skip


def test_what_leads_out_or_round_is_refused(tmp_path: Path) -> None:
    path, passed = tmp_path / "x.set", set()
    for case in hostile_matlab.hdf5(CANARY, samples()):
        path.write_bytes(case.content)
        try:
            check_hdf5(path)
            passed.add(case.name.removeprefix("HDF5: ")) if not case.may_pass else None
        except EpochsMismatch as error:
            assert str(tmp_path) not in str(error)
    assert passed == NO_RECORDING


def test_a_true_file_passes(tmp_path: Path) -> None:
    path = tmp_path / "x.set"
    path.write_bytes(samples()["EEGLAB 7.3"])
    check_hdf5(path)
    path.write_bytes(samples()["EEGLAB 7.3"][:-5000])
    with pytest.raises(EpochsMismatch, match="damaged"):
        check_hdf5(path)
