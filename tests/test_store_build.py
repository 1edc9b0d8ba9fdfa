"""Parts become a store: the same bytes for any number of workers and interruptions, and never half of one."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_recordings import ToySource, changed, toy_source, tree

from encoders import store_build, store_manifest
from encoders.store import EpochStore, verify_store
from encoders.store_build import build_store

SHARD_BYTES = 2000  # 12 epochs of the toy


def reads(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def test_rows_follow_the_parts_and_shards_are_bounded(tmp_path: Path) -> None:
    source = toy_source(tmp_path / "in")
    store = build_store(source, tmp_path / "out", shard_bytes=SHARD_BYTES)
    counts = [shard.n_epochs for shard in store.manifest.shards]
    assert counts == [12, 12, 6, 12, 5, 12, 12, 6]
    assert all(shard.n_bytes == shard.n_epochs * 4 * 20 * 2 + 128 for shard in store.manifest.shards)
    table = store.metadata.to_pydict()
    assert table["row"] == list(range(77))
    assert table["part"] == [part.name for part in source.toy_parts for _ in range(part.n_epochs)]
    assert table["subject"] == [name[:6] for name in table["part"]]
    assert table["repetition"][:30] == [0] * 10 + [1] * 10 + [2] * 10
    assert table["split"][:5] == ["train"] * 4 + ["test"]
    assert set(table["n_averaged"]) == {2}
    assert np.allclose(store.read(slice(None)), source.signal(), rtol=2e-3, atol=1e-21)
    assert verify_store(tmp_path / "out") == []


def test_bytes_do_not_depend_on_workers_or_blocks(tmp_path: Path) -> None:
    source = toy_source(tmp_path / "in", 4)
    build_store(source, tmp_path / "one", shard_bytes=SHARD_BYTES)
    build_store(source, tmp_path / "two", n_workers=2, shard_bytes=SHARD_BYTES)
    small = ToySource(tuple(replace(part, block=7) for part in source.toy_parts))
    build_store(small, tmp_path / "blocks", shard_bytes=SHARD_BYTES)
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == tree(tmp_path / "blocks")
    assert sorted(os.listdir(tmp_path / "one")) == ["epochs.parquet", "shards", "store.json"]


def test_finished_parts_are_not_read_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    source = toy_source(tmp_path / "in", log=log)
    broken = changed(source, 2, spoil=(20, 2, 1e-9))
    with pytest.raises(ValueError, match=r"part sub-03_ses-01: epoch 20, channel MLC11: 1e\+06 fT cannot be stored"):
        build_store(broken, tmp_path / "out", shard_bytes=SHARD_BYTES)
    assert reads(log) == [part.name for part in source.toy_parts]
    assert sorted(os.listdir(tmp_path / "out" / "building")) == [
        "lock", "plan.json", "sub-01_ses-01", "sub-02_ses-01",
    ]  # fmt: skip
    with pytest.raises(FileNotFoundError, match="run the same build again to finish it"):
        EpochStore.open(tmp_path / "out")
    build_store(source, tmp_path / "out", shard_bytes=SHARD_BYTES)
    assert reads(log)[3:] == ["sub-03_ses-01"]
    build_store(source, tmp_path / "out", shard_bytes=SHARD_BYTES)
    assert len(reads(log)) == 4
    build_store(toy_source(tmp_path / "in"), tmp_path / "plain", shard_bytes=SHARD_BYTES)
    assert tree(tmp_path / "out") == tree(tmp_path / "plain")


BUILD_SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from toy_recordings import ToySource, toy_source
from encoders.store_build import build_store

if __name__ == "__main__":
    source = toy_source(Path({folder!r}), 5, seconds={seconds})
    build_store(source, {out!r}, shard_bytes=2000, n_workers={n_workers})
"""


def killed_build(tmp_path: Path, out: Path, n_workers: int, seconds: float, when: Callable[[], bool]) -> int:
    """Start a slow build in another process, kill it with -9 once ``when`` says so, and return its session."""
    script = tmp_path / f"build{n_workers}.py"
    tests = Path(__file__).parent
    names = {"root": str(tests.parent), "tests": str(tests), "folder": str(tmp_path / "in"), "out": str(out)}
    script.write_text(BUILD_SCRIPT.format(**names, n_workers=n_workers, seconds=seconds))
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    deadline = time.monotonic() + 60
    while not when() and time.monotonic() < deadline:
        assert process.poll() is None, "the build ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert when() and not (out / "store.json").exists()
    return process.pid


def members(session: int) -> list[int]:
    """Processes of a session that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own_session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has just ended
        if int(own_session) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("n_workers", [1, 2])
def test_killed_in_the_middle_and_started_again_gives_the_same_bytes(tmp_path: Path, n_workers: int) -> None:
    source, out = toy_source(tmp_path / "in", 5), tmp_path / "out"
    build_store(source, tmp_path / "whole", shard_bytes=SHARD_BYTES)

    def finished() -> list[Path]:
        return list(out.glob("building/sub-*"))

    def half_written() -> bool:
        return len(finished()) >= 2 and any(out.glob("building/.sub-*/*.npy"))

    killed_build(tmp_path, out, n_workers, 0.15, half_written)
    assert 2 <= len(finished()) < 5
    build_store(source, out, shard_bytes=SHARD_BYTES)
    assert tree(out) == tree(tmp_path / "whole")


def test_workers_end_when_the_build_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    session = killed_build(tmp_path, out, 2, 60.0, lambda: len(list(out.glob("building/.sub-*"))) == 2)
    deadline = time.monotonic() + 10
    while members(session) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = members(session)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert left == []


class Stop(BaseException):
    """What a kill looks like from inside."""


class Stopper:
    """Raises `Stop` instead of the n-th call of what it wraps."""

    def __init__(self, stop_at: int) -> None:
        self.left = stop_at

    def wrap(self, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **more: object) -> object:
            self.left -= 1
            if self.left == 0:
                raise Stop
            return function(*arguments, **more)

        return call


def test_stopped_at_every_step_on_disk_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = toy_source(tmp_path / "in", 2, n_epochs=13), tmp_path / "out"
    build_store(source, tmp_path / "whole", shard_bytes=SHARD_BYTES)
    whole = tree(tmp_path / "whole")
    for stop_at in range(1, 200):
        stopper = Stopper(stop_at)
        with monkeypatch.context() as patch:
            for name in ("replace", "rename", "fsync"):
                patch.setattr(os, name, stopper.wrap(getattr(os, name)))
            patch.setattr(shutil, "rmtree", stopper.wrap(shutil.rmtree))
            try:
                build_store(source, out, shard_bytes=SHARD_BYTES)
                break
            except Stop:
                pass
        if (out / "store.json").exists():
            assert verify_store(out) == []
        build_store(source, out, shard_bytes=SHARD_BYTES)
        assert tree(out) == whole, stop_at
        shutil.rmtree(out)
    assert 20 < stop_at < 199


def test_a_half_written_part_is_done_again(tmp_path: Path) -> None:
    source, out = toy_source(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(ValueError, match="sub-02"):
        build_store(changed(source, 1, spoil=(0, 0, np.inf)), out)
    (out / "building" / ".sub-02_ses-01.99999").mkdir()
    (out / "building" / ".sub-02_ses-01.99999" / "sub-02_ses-01-0000.npy").write_bytes(b"half")
    with pytest.raises(ValueError, match="sub-02"):
        build_store(changed(source, 1, spoil=(0, 0, np.inf)), out)
    assert not list(out.glob("building/.*"))  # its room on the disk is free again
    build_store(source, out)
    build_store(source, tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_full_disk_is_said_and_nothing_half_is_left(tmp_path: Path, n_workers: int) -> None:
    source, out = toy_source(tmp_path / "in"), tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4500, hard))  # shards of 30 epochs are larger, of 17 smaller
    try:
        with pytest.raises(OSError, match=r"part sub-0[13]_ses-01 could not be converted .* free space") as caught:
            build_store(source, out, n_workers=n_workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert not (out / "store.json").exists() and not (out / "shards").exists()
    assert not list(out.glob("building/.*"))
    build_store(source, out)
    build_store(source, tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


def test_a_disk_that_gets_full_while_publishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = toy_source(tmp_path / "in"), tmp_path / "out"
    real = store_manifest.write_durably

    def full(path: Path, pieces: object, **more: object) -> object:
        if "epochs.parquet" in path.name and path.parent.name == "building":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, pieces, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(store_manifest, "write_durably", full)
        with pytest.raises(OSError, match="No space left"):
            build_store(source, out)
    assert not (out / "store.json").exists() and not (out / "epochs.parquet").exists()
    build_store(source, out)
    build_store(source, tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("finish_first", [False, True])
def test_changed_inputs_and_settings_are_refused(tmp_path: Path, finish_first: bool) -> None:
    source, out = toy_source(tmp_path / "in"), tmp_path / "out"
    begun = source if finish_first else changed(source, 2, spoil=(0, 0, np.inf))
    try:
        build_store(begun, out, settings="cut 40 Hz")
    except ValueError:
        assert not finish_first
    more = {"settings": "cut 40 Hz"}
    with pytest.raises(ValueError, match=r"settings was 'cut 40 Hz' and is 'cut 30 Hz'; delete .* or choose another"):
        build_store(source, out, settings="cut 30 Hz")
    with pytest.raises(ValueError, match="dtype was 'float16' and is 'float32'"):
        build_store(source, out, dtype="float32", **more)
    with pytest.raises(ValueError, match="part sub-04_ses-01 is new"):
        build_store(toy_source(tmp_path / "in", 4), out, **more)
    with pytest.raises(ValueError, match="the parts come in another order"):
        build_store(replace(source, toy_parts=source.toy_parts[::-1]), out, **more)
    before = source.toy_parts[0].file.stat()
    source.toy_parts[0].file.write_bytes(b"x" * 100)
    os.utime(source.toy_parts[0].file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(ValueError, match=r"inputs of part sub-01_ses-01 changed: \['part0.raw'\]; delete"):
        build_store(source, out, **more)


def test_missing_inputs_repeated_names_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    source = toy_source(tmp_path / "in")
    with pytest.raises(ValueError, match=r"input .*nothing\.raw does not exist"):
        build_store(changed(source, 1, file=tmp_path / "nothing.raw"), tmp_path / "out")
    with pytest.raises(ValueError, match=r"parts \['sub-01_ses-01'\] appear more than once"):
        build_store(changed(source, 1, name="sub-01_ses-01"), tmp_path / "out")
    with pytest.raises(ValueError, match=r"'\.\./sub'"):
        build_store(changed(source, 1, name="../sub"), tmp_path / "out")
    with pytest.raises(ValueError, match="neither empty nor a store"):
        build_store(source, tmp_path / "in")
    with pytest.raises(ValueError, match="n_workers is 0"):
        build_store(source, tmp_path / "out", n_workers=0)
    assert not (tmp_path / "out").exists()


def test_two_builders_of_one_store_keep_out_of_each_others_way(tmp_path: Path) -> None:
    source, out = toy_source(tmp_path / "in"), tmp_path / "out"
    (out / "building").mkdir(parents=True)
    with store_build._lock(out / "building" / "lock"):
        with pytest.raises(OSError, match="another process builds"):
            build_store(source, out)
    build_store(source, out)


def test_environment_is_as_before_and_workers_have_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with store_build._one_thread_each():
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ
