"""EDF and BDF headers whose numbers do not fit each other or the file are refused; true files pass."""

from pathlib import Path

import hostile_headers
import pytest
from recording_samples import CANARY, samples

from encoders.edf_header import check_edf
from encoders.epochs import EpochsMismatch

WIDTH = {"EDF": 2, "BDF": 3}


def test_lies_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    cases = [case for case in hostile_headers.edf(CANARY, samples()) if not case.may_pass]
    assert len(cases) > 50
    for case in cases:
        path.write_bytes(case.content)
        with pytest.raises(EpochsMismatch, match=r".{20}"):
            check_edf(path, WIDTH[case.name[:3]])


@pytest.mark.parametrize("name", WIDTH)
def test_true_files_pass_also_while_they_are_recorded(name: str, tmp_path: Path) -> None:
    path, content = tmp_path / "x", samples()[name]
    path.write_bytes(content)
    check_edf(path, WIDTH[name])
    path.write_bytes(hostile_headers.put(content, 236, b"-1      "))
    check_edf(path, WIDTH[name])
    path.write_bytes(content[:-1])
    with pytest.raises(EpochsMismatch, match="records of"):
        check_edf(path, WIDTH[name])


def test_files_of_real_devices_pass(shared_data: Path) -> None:
    for suffix, width in WIDTH.items():
        files = list((shared_data / "formats").rglob(f"*.{suffix.lower()}"))
        assert files
        for file in files:
            check_edf(file, width)
