import os
import stat
import zipfile
from pathlib import Path

import pytest
from hostile_files import swollen

from encoders import zip_input
from encoders.epochs import EpochsMismatch
from encoders.zip_input import unpack


def zip_of(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_files_come_out_flat_and_clutter_is_left(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", ("sub/x.set", b"1"), ("sub/x.fdt", b"22"), ("__MACOSX/._x.set", b"no"))
    folder = tmp_path / "out"
    folder.mkdir()
    assert [file.name for file in unpack(path, folder)] == ["x.set", "x.fdt"]
    assert (folder / "x.fdt").read_bytes() == b"22"
    assert sorted(file.name for file in folder.rglob("*")) == ["x.fdt", "x.set"]


def test_what_is_left_out_is_not_counted(tmp_path: Path) -> None:
    names = [f"s.ds/{folder}{i}.cfg" for folder in ("", "hz.ds/", "hz2.ds/") for i in range(20)]
    clutter = [(f"__MACOSX/{name}", b"no") for name in names]
    (tmp_path / "out").mkdir()
    files = unpack(zip_of(tmp_path / "a.zip", *((name, b"1") for name in names), *clutter), tmp_path / "out")
    assert len(files) == 20
    with pytest.raises(EpochsMismatch, match="65 members that are files, at most 64"):
        unpack(zip_of(tmp_path / "b.zip", *((f"{i}", b"1") for i in range(65))), tmp_path / "none")


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../evil.set", b"x")], "not plain"),
        ([("/etc/evil.set", b"x")], "not plain"),
        ([("a\\..\\evil.set", b"x")], "not plain"),
        ([("-rf\n.set", b"x")], "not plain"),
        ([(link("x.set"), b"/etc/passwd")], "link"),
        ([("a/x.set", b"1"), ("b/x.set", b"2")], "twice"),
        ([], "empty"),
        ([(f"{i}.fdt", b"") for i in range(65)], "members"),
        ([("bomb.fdt", bytes(40 * 1024**2))], "times its size"),
    ],
)
def test_refusals_leave_nothing_behind(
    tmp_path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]], message: str
) -> None:
    path = zip_of(tmp_path / "a.zip", *members)
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(EpochsMismatch, match=message):
        unpack(path, folder)
    assert list(folder.iterdir()) == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.zip", "out"]


def test_a_false_packed_size_hides_no_bomb(tmp_path: Path) -> None:
    junk = [(f"{i}.txt", os.urandom(50_000)) for i in range(2)]
    path = zip_of(tmp_path / "a.zip", *((f"{i}.fdt", bytes(8 << 20)) for i in range(4)), *junk)
    path.write_bytes(swollen(path.read_bytes(), 60_000))
    with pytest.raises(EpochsMismatch, match="overlap"):
        unpack(path, tmp_path)


def test_total_size_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_input, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(EpochsMismatch, match="unpacks to 1001 bytes"):
        unpack(zip_of(tmp_path / "a.zip", ("x.fdt", bytes(1001))), tmp_path)


def test_damage_is_a_mismatch(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", ("x.fdt", bytes(range(256)) * 40))
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(EpochsMismatch, match="damaged"):
        unpack(path, tmp_path)
    path.write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(EpochsMismatch, match="damaged"):
        unpack(path, tmp_path)
