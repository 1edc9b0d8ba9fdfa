import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from alignment.checkpoint import flatten_optimizer, load_checkpoint, restore_optimizer, save_checkpoint


def test_round_trip_keeps_values_types_and_shared_tensors(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    tensors = {"a": shared, "tied": shared, "view": shared.T, "count": torch.tensor(3), "half": shared.bfloat16()}
    save_checkpoint(tmp_path, 7, tensors, {"note": "x"})
    found = load_checkpoint(tmp_path)
    assert found is not None and found.step == 7 and found.meta["note"] == "x"
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype and torch.equal(found.tensors[name], tensor)


def test_nothing_to_load(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "absent") is None


def test_oldest_are_removed_and_latest_names_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, step, {"a": torch.tensor(float(step))}, {}, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000010"]
    assert (tmp_path / "latest").read_text() == "step-00000010"


@pytest.mark.parametrize("name", ["state.safetensors", "meta.json", "manifest.json"])
def test_one_flipped_byte_falls_back_to_the_checkpoint_before(tmp_path: Path, name: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"a": torch.ones(4)}, {})
    path = tmp_path / "step-00000002" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = load_checkpoint(tmp_path)
    assert found is not None and found.step == 1


def test_no_sound_checkpoint_is_an_error_that_names_each_and_not_a_fresh_start(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"a": torch.ones(4)}, {})
        (tmp_path / f"step-{step:08d}" / "meta.json").write_text("{}")
    with pytest.raises(ValueError, match="step-00000002: meta.json does not match.*step-00000001: .*start over"):
        load_checkpoint(tmp_path)


def test_one_step_can_be_asked_for(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"a": torch.tensor(float(step))}, {})
    found = load_checkpoint(tmp_path, 1)
    assert found is not None and found.step == 1 and found.tensors["a"] == 1
    assert load_checkpoint(tmp_path, 3) is None


def test_half_written_folder_is_ignored(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"a": torch.ones(1)}, {})
    half = tmp_path / "step-00000009"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"\0" * 20)
    found = load_checkpoint(tmp_path)
    assert found is not None and found.step == 1


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, 5, {"a": torch.tensor(value)}, {})
    found = load_checkpoint(tmp_path)
    assert found is not None and found.tensors["a"] == 2.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_state_is_never_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(FloatingPointError, match="weight"):
        save_checkpoint(tmp_path, 1, {"weight": torch.tensor([1.0, value])}, {})
    assert load_checkpoint(tmp_path) is None


def test_optimizer_continues_as_if_never_stopped() -> None:
    def steps(module: nn.Module, optimizer: torch.optim.Optimizer, n: int) -> None:
        for i in range(n):
            (module(torch.full((1, 3), float(i))) ** 2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    first = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(first.parameters(), lr=0.1)
    steps(first, optimizer, 3)
    second = nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    restored = torch.optim.AdamW(second.parameters(), lr=0.1)
    state = flatten_optimizer(optimizer, list(first.parameters()))
    restore_optimizer(restored, {name: value.clone() for name, value in state.items()}, list(second.parameters()))
    steps(first, optimizer, 3)
    steps(second, restored, 3)
    assert torch.equal(first.weight, second.weight)


KILLED = """
import sys, torch
from pathlib import Path
from alignment.checkpoint import save_checkpoint
step = int(sys.argv[2])
while True:
    step += 1
    save_checkpoint(Path(sys.argv[1]), step, {"a": torch.full((50_000,), float(step))}, {})
    print(step, flush=True)
"""


def test_kill_during_saving_leaves_a_sound_checkpoint(tmp_path: Path, project_root: Path) -> None:
    step = 0
    for lines in (1, 3, 6):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(step)]
        with subprocess.Popen(command, cwd=project_root, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            done = [int(process.stdout.readline()) for _ in range(lines)][-1]
            process.send_signal(signal.SIGKILL)
        found = load_checkpoint(tmp_path)
        assert found is not None and found.step >= done
        assert (found.tensors["a"] == found.step).all()
        step = found.step
