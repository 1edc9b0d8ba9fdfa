"""4D BTi headers whose counts lead beyond the file or back are refused in a moment; true files pass."""

import struct
from pathlib import Path

import pytest

from encoders.bti_header import check_bti
from encoders.epochs import EpochsMismatch

FOLDER = Path("formats") / "bti" / "linux"


def test_files_of_a_real_device_pass(shared_data: Path) -> None:
    folder = shared_data / FOLDER
    for head_shape in (folder / "hs_linux", None):
        check_bti(folder / "pdf_linux", folder / "config_linux", head_shape)


@pytest.mark.parametrize(("at", "how"), [(12, ">i"), (20, ">i"), (48, ">i"), (52, ">h"), (60, ">i"), (64, ">h")])
@pytest.mark.parametrize("value", [-1, 2**15 - 1, 2**31 - 1])
def test_impossible_counts_of_the_data_file(shared_data: Path, tmp_path: Path, at: int, how: str, value: int) -> None:
    content = bytearray((shared_data / FOLDER / "pdf_linux").read_bytes())
    (start,) = struct.unpack(">q", content[-8:])
    header = -(-(start & 0x7FFFFFFF) // 8) * 8
    struct.pack_into(how, content, header + at, value if how == ">i" else min(value, 2**15 - 1))
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(EpochsMismatch, match="4D BTi"):
        check_bti(tmp_path / "data", shared_data / FOLDER / "config_linux", None)


@pytest.mark.parametrize("at", [58, 68, 70])
@pytest.mark.parametrize("value", [-1, 2**15 - 1])
def test_impossible_counts_of_the_configuration(shared_data: Path, tmp_path: Path, at: int, value: int) -> None:
    content = bytearray((shared_data / FOLDER / "config_linux").read_bytes())
    struct.pack_into(">h", content, at, value)
    (tmp_path / "config").write_bytes(content)
    with pytest.raises(EpochsMismatch, match="4D BTi"):
        check_bti(shared_data / FOLDER / "pdf_linux", tmp_path / "config", None)


def test_files_cut_short_and_far_too_large_ones_are_refused(shared_data: Path, tmp_path: Path) -> None:
    data, config = shared_data / FOLDER / "pdf_linux", shared_data / FOLDER / "config_linux"
    for number, content in enumerate((b"", config.read_bytes()[:100], config.read_bytes() + bytes(3 << 20))):
        (tmp_path / f"config{number}").write_bytes(content)
        with pytest.raises(EpochsMismatch, match="4D BTi"):
            check_bti(data, tmp_path / f"config{number}", None)
    (tmp_path / "data").write_bytes(data.read_bytes()[-8:])
    with pytest.raises(EpochsMismatch, match="4D BTi"):
        check_bti(tmp_path / "data", config, None)
