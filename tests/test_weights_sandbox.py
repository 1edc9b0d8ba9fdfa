"""Foreign weights are read by a process that can do nothing else, whatever the file makes it try."""

import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import published_files as published
import pytest
import torch

from serving import weights_sandbox
from serving.landlock import landlock_version
from serving.weights_sandbox import read_isolated

pytestmark = pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")


def test_a_checkpoint_of_70_megabytes_comes_back_whole(tmp_path):
    torch.manual_seed(0)
    state = published.eeg_project(15750, 1024, logit_scale=True)
    torch.save({"state_dict": state, "optimizer_states": [state]}, tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").stat().st_size > 68e6
    got = read_isolated(tmp_path / "last.ckpt")
    assert len(got) == 7
    for name, tensor in state.items():
        np.testing.assert_array_equal(got[f"state_dict/{name}"], tensor.numpy())


def test_a_hostile_file_runs_nothing_and_what_is_refused_is_named(tmp_path):
    mark = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    torch.save({"x": torch.ones(2), "evil": Payload()}, tmp_path / "evil.pth")
    assert read_isolated(tmp_path / "evil.pth").keys() == {"x"}
    torch.save({"evil": Payload()}, tmp_path / "only_evil.pth")
    with pytest.raises(ValueError, match=r"only_evil.pth: .*no dictionary of tensors.*posix system") as refused:
        read_isolated(tmp_path / "only_evil.pth")
    assert not mark.exists() and str(tmp_path) not in str(refused.value)
    with pytest.raises(FileNotFoundError):
        read_isolated(tmp_path / "none.pth")


def test_a_file_that_is_too_large_is_not_looked_at(tmp_path):
    with (tmp_path / "large.pth").open("wb") as file:
        file.truncate(weights_sandbox.MAX_FILE_BYTES + 1)
    started = time.monotonic()
    with pytest.raises(ValueError, match="it is no encoder"):
        read_isolated(tmp_path / "large.pth")
    assert time.monotonic() - started < 1.0


def test_without_isolation_nothing_is_read(tmp_path, monkeypatch):
    said = (0, {"code": "no_isolation", "detail": "this kernel has no Landlock"})
    monkeypatch.setattr(weights_sandbox, "_run_child", lambda *_, **__: said)
    (tmp_path / "x.pth").write_bytes(b"x")
    with pytest.raises(OSError, match="no Landlock"):
        read_isolated(tmp_path / "x.pth")


@pytest.mark.parametrize("answer", [b"", b"junk", (2**40).to_bytes(8, "little") + b"{}"])
def test_the_answer_of_a_taken_over_child_is_not_trusted(tmp_path, monkeypatch, answer):
    def lie(weights, sink, *, seconds):
        sink.write(answer)
        return 0, {"code": "ok"}

    monkeypatch.setattr(weights_sandbox, "_run_child", lie)
    (tmp_path / "x.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match="gave back no tensors"):
        read_isolated(tmp_path / "x.pth")


@pytest.mark.parametrize("ending", ["spin", "grow", "die"])
def test_a_child_that_does_not_answer_is_a_refusal(tmp_path, monkeypatch, ending):
    code = {
        "spin": "while True: pass",
        "grow": "x = bytearray(1 << 33)",
        "die": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    }[ending]
    limited = f"from serving.weights_sandbox import _limit; _limit(0, 1)\n{code}"
    plain = subprocess.Popen

    def start(command, **how):
        return plain([sys.executable, "-c", limited], **how)

    monkeypatch.setattr(weights_sandbox.subprocess, "Popen", start)
    (tmp_path / "x.pth").write_bytes(b"x")
    started = time.monotonic()
    with pytest.raises(ValueError, match="more time or memory"):
        read_isolated(tmp_path / "x.pth")
    assert time.monotonic() - started < 10.0


def test_the_limits_of_the_child():
    pid = os.fork()
    if pid == 0:
        try:
            weights_sandbox._limit(1000, 5)
            limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)]
            files, core = resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.getrlimit(resource.RLIMIT_CORE)[0]
            alarm = signal.getitimer(signal.ITIMER_REAL)[0]
            os._exit(int(not (limits == [5, (1 << 20) + 3000] and files == 16 and core == 0 and 0 < alarm <= 5)))
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_child_does_not_import_torch():
    modules = "sys, serving.weights_sandbox, encoders.foreign_weights, safetensors.numpy"
    code = f"import {modules}; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
