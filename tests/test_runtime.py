import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from alignment.runtime import Runtime, full_precision

# One alignment step on this process's share of a batch; the gradients of the first process are written.
STEP = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from torch import nn
from alignment.losses import LogitScale, info_nce
from alignment.runtime import Runtime

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 5))
        self.scale = LogitScale()
        self.unused = nn.Linear(2, 2)
    def forward(self, data):
        return self.layers(data), self.scale()

def gradients(runtime, n=16):
    torch.manual_seed(0)
    encoder = Encoder()
    generator = torch.Generator().manual_seed(1)
    data, image = torch.randn(n, 6, generator=generator), torch.randn(n, 5, generator=generator)
    stimulus = torch.arange(n) % (n - 3)
    share = slice(runtime.rank * n // runtime.world, (runtime.rank + 1) * n // runtime.world)
    prepared = runtime.prepare(encoder)
    brain, scale = prepared(data[share])
    brain, image, stimulus = map(runtime.gather_with_grad, (brain, image[share], stimulus[share]))
    loss = info_nce(brain, image, scale, stimulus)
    loss.backward()
    found = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    return found | {"loss": loss.detach(), "world": torch.tensor(runtime.world)}
"""
SCRIPT = STEP + """
runtime = Runtime(device="cpu", threads=1)
flags = runtime.any_of(runtime.rank == 1, False)
found = gradients(runtime)
if runtime.is_main:
    save_file({**found, "flags": torch.tensor(flags)}, sys.argv[1])
runtime.close()
"""


def run_on_processes(script: str, n: int, root: Path, *arguments: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = os.environ | {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ending = "\nfrom alignment.runtime import end_program\nend_program()\n"
    command = [sys.executable, "-c", script + ending, *arguments]
    started = [
        subprocess.Popen(command, cwd=root, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(n)
    ]
    assert [process.wait(timeout=300) for process in started] == [0] * n


def test_two_processes_on_half_batches_give_the_one_process_gradients(tmp_path: Path, project_root: Path) -> None:
    path = tmp_path / "two.safetensors"
    run_on_processes(SCRIPT, 2, project_root, str(path))
    two = load_file(path)
    names: dict[str, object] = {}
    exec(STEP, names)
    one = names["gradients"](Runtime(device="cpu"))  # type: ignore[operator]
    assert two["world"] == 2 and one["world"] == 1
    assert two["flags"].tolist() == [True, False]
    for name, value in one.items():
        if name != "world":
            assert torch.allclose(value, two[name], atol=1e-5), name
    assert set(two) - {"flags"} >= set(one) and one["layers.0.weight"].abs().max() > 1e-3


def test_random_numbers_follow_from_seed_and_step_alone() -> None:
    def draws(seed: int, step: int) -> list[float]:
        runtime = Runtime(device="cpu", seed=seed)
        runtime.seed_step(step)
        return [torch.rand(1).item(), float(np.random.rand())]

    assert draws(1, 5) == draws(1, 5)
    assert draws(1, 5) != draws(1, 6) and draws(1, 5) != draws(2, 5)


def test_generators_differ_by_key() -> None:
    runtime = Runtime(device="cpu", seed=1)
    first = torch.rand(3, generator=runtime.generator(1, 2))
    assert torch.equal(first, torch.rand(3, generator=runtime.generator(1, 2)))
    assert not torch.equal(first, torch.rand(3, generator=runtime.generator(2, 1)))


def test_precision() -> None:
    runtime = Runtime(device="cpu", mixed_precision="bf16")
    assert runtime.dtype == torch.bfloat16 and Runtime(device="cpu").dtype == torch.float32
    assert Runtime(device="cpu", mixed_precision="fast").mixed_precision in ("no", "bf16")
    a = torch.randn(4, 4)
    with runtime.autocast():
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(runtime.device):
            assert (a @ a).dtype == torch.float32
    half = Runtime(device="cpu", mixed_precision="fp16")
    assert half.dtype == torch.float16 and half.loss_scale == 2**16 and runtime.loss_scale == 1
    with pytest.raises(ValueError, match="'fp8', expected one of .*'bf16'"):
        Runtime(device="cpu", mixed_precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_workers is -1"):
        Runtime(device="cpu", n_workers=-1)


def test_one_process_gathers_nothing_and_moves_nested_batches() -> None:
    runtime = Runtime(device="cpu")
    tensor = torch.ones(2, requires_grad=True)
    assert runtime.gather_with_grad(tensor) is tensor and runtime.any_of(True, False) == (True, False)
    batch = runtime.to_device({"a": [torch.ones(1)], "b": ("text", 3)})
    assert torch.equal(batch["a"][0], torch.ones(1)) and batch["b"] == ("text", 3)


def test_frozen_module_is_prepared_without_wrapping() -> None:
    module = nn.Linear(2, 2).requires_grad_(False)
    assert Runtime(device="cpu").prepare(module) is module
