"""People are found by what their folders hold."""

from pathlib import Path

import pytest

from encoders.datasets.subject_folders import subject_folders


def test_folders_are_found_chosen_and_missed(tmp_path: Path) -> None:
    for name in ("sub-02", "sub-01", "sub-10", "derivatives"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.pt").write_bytes(b"")
    (tmp_path / "sub-03").mkdir()
    assert [f.name for f in subject_folders(tmp_path, (), "train.pt")] == ["sub-01", "sub-02", "sub-10"]
    assert [f.name for f in subject_folders(tmp_path, ("10", "sub-01"), "train.pt")] == ["sub-10", "sub-01"]
    with pytest.raises(ValueError, match=r"people \['sub-03'\] are not in"):
        subject_folders(tmp_path, ("03",), "train.pt")
    with pytest.raises(ValueError, match="has no folders sub-XX with test.pt"):
        subject_folders(tmp_path, (), "test.pt")
    with pytest.raises(ValueError, match="is no folder"):
        subject_folders(tmp_path / "none", (), "x")
