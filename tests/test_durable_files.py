import hashlib
import os
from pathlib import Path

import pytest

from encoders.durable_files import file_sha256, write_atomic


def test_an_atomic_write_leaves_nothing_else(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        write_atomic(tmp_path / "a.json", content)
    assert (tmp_path / "a.json").read_bytes() == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_content_and_name_are_synced_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("rename"), replace(old, new))[1])
    write_atomic(tmp_path / "a", b"1")
    assert len(done) == 3 and done[0].startswith(str(tmp_path / ".a.")) and done[1:] == ["rename", str(tmp_path)]


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "a", b"old")

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_digest_is_that_of_hashlib(tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
