"""FIF tags that lead round, out of the file or nowhere are refused before MNE sees them; true files pass."""

import gzip
from pathlib import Path

import hostile_headers
import pytest
from recording_samples import CANARY, samples

from encoders.epochs import EpochsMismatch
from encoders.fif_structure import blocks_of

ONLY_EMPTY = ("FIF: only the id", "FIF: no data")  # sound files, without a recording


def test_lies_are_refused(tmp_path: Path) -> None:
    path, passed = tmp_path / "x.fif", []
    for case in hostile_headers.fif(CANARY, samples()):
        path.write_bytes(case.content)
        try:
            blocks_of(path)
            passed.append(case.name)
        except EpochsMismatch as error:
            assert str(tmp_path) not in str(error)
    assert passed == [*ONLY_EMPTY]


@pytest.mark.parametrize("name", ["FIF", "FIF epochs"])
def test_true_files_pass_and_cut_ones_do_not(name: str, tmp_path: Path) -> None:
    path, content = tmp_path / "x.fif", samples()[name]
    path.write_bytes(content)
    assert {100, 101} <= blocks_of(path)
    for n_bytes in (20, 1000, len(content) - 30):
        path.write_bytes(content[:n_bytes])
        with pytest.raises(EpochsMismatch, match="damaged or cut short"):
            blocks_of(path)


def test_files_of_real_devices_pass(shared_data: Path, tmp_path: Path) -> None:
    files = [*(shared_data / "formats").rglob("*.fif"), *(shared_data / "formats").rglob("*.fif.gz")]
    assert len(files) >= 6
    for file in files:
        content = file.read_bytes()
        (tmp_path / "x.fif").write_bytes(gzip.decompress(content) if file.suffix == ".gz" else content)
        assert blocks_of(tmp_path / "x.fif")
