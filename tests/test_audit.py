"""The audit log: every edit is found, parts are put aside, crashes are survived, processes share a file."""

import json
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from serving import audit
from serving.audit import AuditLog, verify

KEY = b"k" * 32


def write(path: Path, n: int, key: bytes | None = None, max_bytes: int = 1 << 20) -> AuditLog:
    log = AuditLog(path, key=key, max_bytes=max_bytes)
    for i in range(n):
        log.append({"who": f"lab/user-{i % 3}", "route": "/v1/generations", "status": 200, "consent": i % 2 == 0})
    return log


@pytest.mark.parametrize("key", [None, KEY])
def test_a_log_as_written_is_good(tmp_path: Path, key: bytes | None) -> None:
    write(tmp_path / "audit.jsonl", 5, key)
    write(tmp_path / "audit.jsonl", 5, key)  # as after a restart
    report = verify(tmp_path / "audit.jsonl", key)
    assert (report.first, report.last, report.fault) == (1, 10, "")
    record = json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[3])
    assert record["who"] == "lab/user-0" and record["status"] == 200 and record["at"].endswith("+00:00")


def edits(content: bytes, rng: random.Random) -> list[bytes]:
    """Every kind of single edit: a byte changed, put in, taken out; a line taken out, doubled, swapped, changed."""
    lines = content.splitlines(keepends=True)
    found = []
    for at in rng.sample(range(len(content)), 150):
        found.append(content[:at] + bytes([content[at] ^ (1 << rng.randrange(7))]) + content[at + 1 :])
        found.append(content[:at] + b" " + content[at:])
        found.append(content[:at] + content[at + 1 :])
    for i in range(len(lines)):
        found.append(b"".join(lines[:i] + lines[i + 1 :]))
        found.append(b"".join([*lines[: i + 1], *lines[i:]]))
        found.append(b"".join(lines[:i]))
        record = json.loads(lines[i])
        found.append(b"".join([*lines[:i], json.dumps(record | {"status": 404}).encode() + b"\n", *lines[i + 1 :]]))
        if i:
            found.append(b"".join([*lines[: i - 1], lines[i], lines[i - 1], *lines[i + 1 :]]))
    found += [content + b"\n", b"\n" + content, b""]
    return [one for one in found if one != content]


@pytest.mark.parametrize("key", [None, KEY])
def test_every_single_edit_is_found(tmp_path: Path, key: bytes | None) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 12, key)
    content = path.read_bytes()
    changed = edits(content, random.Random(0))
    assert len(changed) > 450
    missed = []
    for one in changed:
        path.write_bytes(one)
        if not verify(path, key).fault:
            missed.append(one)
    assert missed == []
    path.write_bytes(content)
    head = tmp_path / "audit.jsonl.head"
    was = head.read_bytes()
    for at in range(len(was)):
        head.write_bytes(was[:at] + bytes([was[at] ^ 1]) + was[at + 1 :])
        assert verify(path, key).fault
    head.unlink()
    for n_left in range(1, 13):
        path.write_bytes(b"".join(content.splitlines(keepends=True)[:n_left]))
        assert "head is gone" in verify(path, key).fault
        with pytest.raises(ValueError, match="head is gone"):
            AuditLog(path, key=key).append({"who": "anybody"})


@pytest.mark.parametrize("key", [KEY, None])
def test_an_older_copy_of_log_and_head_is_found_by_a_note(tmp_path: Path, key: bytes | None) -> None:
    path = tmp_path / "audit.jsonl"
    assert verify(path, key).note == ""
    write(path, 3, key)
    older = {file: file.read_bytes() for file in tmp_path.iterdir()}
    first = verify(path, key).note
    write(path, 4, key)
    second = verify(path, key, note=first).note
    assert verify(path, key, note=second).note == second != first
    for file, content in older.items():
        file.write_bytes(content)
    assert not verify(path, key).fault and not verify(path, key, note=first).fault
    assert "older copy" in verify(path, key, note=second).fault
    write(path, 4, key)  # as many records as there were
    assert not verify(path, key).fault and "older copy" in verify(path, key, note=second).fault
    for wrong in ("3", "3:", f"0:{'0' * 64}", f"3:{'g' * 64}", f"{first}x"):
        with pytest.raises(ValueError, match="no note"):
            verify(path, key, note=wrong)


def test_with_a_key_the_log_cannot_be_made_anew(tmp_path: Path) -> None:
    write(tmp_path / "audit.jsonl", 3, KEY)
    forged = tmp_path / "forged" / "audit.jsonl"
    write(forged, 3, b"x" * 32)
    assert verify(forged, KEY).fault and not verify(forged, b"x" * 32).fault
    assert verify(tmp_path / "audit.jsonl", None).fault


@pytest.mark.parametrize("name", ["audit.jsonl", "audit[1].jsonl"])
def test_large_files_are_put_aside_and_the_chain_goes_on(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path, 20, KEY, max_bytes=2000)
    parts = sorted(one for one in tmp_path.iterdir() if one.suffix[1:].isdigit())
    assert len(parts) >= 2 and all(one.stat().st_size <= 2000 for one in (*parts, path))
    assert (verify(path, KEY).last, verify(path, KEY).fault) == (20, "")
    content = parts[1].read_bytes()
    parts[1].unlink()
    assert verify(path, KEY).fault
    parts[1].write_bytes(content.replace(b"200", b"201", 1))
    assert verify(path, KEY).fault


def test_a_log_that_is_written_to_meanwhile_is_as_good_as_one_at_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 20, KEY, max_bytes=2000)
    list_parts = audit._parts
    with ThreadPoolExecutor(1) as writer:

        def parts(one: Path) -> list[Path]:
            found = list_parts(one)
            if threading.current_thread() is threading.main_thread():  # whoever writes may do so now, or waits
                wait([writer.submit(write, path, 20, KEY, 2000)], timeout=0.5)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(audit, "_parts", parts)
            assert verify(path, KEY).fault == ""
    assert (verify(path, KEY).last, verify(path, KEY).fault) == (40, "")


def test_a_record_that_a_crash_cut_short_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = write(path, 3)
    with path.open("ab") as file:
        file.write(b'{"at": "2026')
    log.append({"who": "after the crash"})
    report = verify(path)
    assert (report.last, report.fault) == (4, "")


def test_a_crash_between_a_record_and_the_head_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    write_head = AuditLog._write_head

    def crash(log: AuditLog, n: int, digest: str) -> None:
        if n:
            raise KeyboardInterrupt
        write_head(log, n, digest)

    for n in (1, 3):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(AuditLog, "_write_head", crash)
            write(path, 1, KEY)
        assert (verify(path, KEY).last, verify(path, KEY).fault) == (n, "")
        write(path, 1, KEY)
    assert (verify(path, KEY).last, verify(path, KEY).fault) == (4, "")


def test_missing_records_stop_the_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = write(path, 3)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(ValueError, match="head says 3"):
        log.append({"who": "anybody"})


def test_processes_share_a_file(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from serving.audit import AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]))\nfor i in range(20): log.append({'who': sys.argv[2], 'i': i})"
    )
    path = tmp_path / "audit.jsonl"
    root = Path(__file__).resolve().parents[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path), name], cwd=root, env=os.environ | {"PYTHONPATH": "."}
        )
        for name in ("a", "b")
    ]
    assert [one.wait(60) for one in started] == [0, 0]
    assert (verify(path).last, verify(path).fault) == (40, "")
