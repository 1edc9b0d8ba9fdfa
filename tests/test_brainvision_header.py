"""BrainVision headers that name other files or announce what is not there are refused before MNE sees them."""

import io
import zipfile
from pathlib import Path

import hostile_headers
import pytest
from recording_samples import CANARY, samples

from encoders.brainvision_header import check_brainvision, check_companion
from encoders.epochs import EpochsMismatch

# Sound headers whose values or text are refused when they are read.
READ_FIRST = ("data as text", "samples that are NaN", "resolution")


def unpacked(content: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
    return folder / "x.vhdr"


def test_lies_are_refused(tmp_path: Path) -> None:
    cases = [case for case in hostile_headers.brainvision(CANARY, samples()) if case.content.startswith(b"PK")]
    for number, case in enumerate(cases):
        name = case.name.removeprefix("BrainVision: ")
        if case.may_pass or name.startswith(READ_FIRST):
            continue
        with pytest.raises(EpochsMismatch, match=r".{25}"):
            check_brainvision(unpacked(case.content, tmp_path / str(number)))
            pytest.fail(case.name)


def test_a_true_header_passes(tmp_path: Path) -> None:
    check_brainvision(unpacked(samples()["BrainVision"], tmp_path))


def test_headers_of_real_devices_pass(shared_data: Path) -> None:
    for name in ("bv", "faces_seg", "latin1_old"):
        check_brainvision(shared_data / "formats" / "brainvision" / f"{name}.vhdr")


def test_a_companion_is_a_plain_name_beside_the_header(tmp_path: Path) -> None:
    (tmp_path / "x.vhdr").touch()
    (tmp_path / "x.eeg").touch()
    assert check_companion(tmp_path / "x.vhdr", "x.eeg", "data file") == tmp_path / "x.eeg"
    for name in ("../x.eeg", "/etc/passwd", "..", "", "C:x.eeg", "a\\x.eeg", "x.vhdr", "absent.eeg"):
        with pytest.raises(EpochsMismatch):
            check_companion(tmp_path / "x.vhdr", name, "data file")
