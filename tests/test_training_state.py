"""Weights that are cut over two processes give the results, checkpoints and averages of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from alignment.runtime import Runtime, own_part, sharded_as, whole
from tests.test_runtime import run_on_processes

# A module with everything that is awkward to cut: a single number, tied and frozen weights, a max-norm, odd sizes.
TASK = """
import math, os, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from torch import nn
from alignment.fit import FitConfig, fit
from alignment.runtime import Runtime
from encoders.layers.constraints import MaxNormLinear

class Awkward(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = MaxNormLinear(4, 5, 0.5), nn.Linear(5, 1)
        self.tied, self.gain = self.last, nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Parameter(torch.tensor(2.0))
    def forward(self, data):
        return self.gain * self.last(torch.tanh(self.first(data + self.frozen(data))))

def run(folder, broken=-1, max_steps=25, **settings):
    runtime = Runtime(device="cpu", threads=1, seed=3)
    torch.manual_seed(0)
    module = Awkward()
    def batch_at(step, rank, world):
        data = torch.randn(32, 4, generator=torch.Generator().manual_seed(step))
        share = data[rank * 32 // world : (rank + 1) * 32 // world]
        spoilt = step == broken and rank == world - 1
        return {"data": share, "poison": torch.tensor(math.nan if spoilt else 0.0)}
    def loss_fn(module, batch):
        # the poison leaves gradients finite, so only the processes' agreement keeps their weights equal
        return (module(batch["data"]) - batch["data"].sum(dim=1, keepdim=True)).square().mean() + batch["poison"]
    def validate(module):
        return {"score": -float(module(torch.ones(3, 4)).square().mean())}
    config = FitConfig(max_steps=max_steps, lr=0.02, ema_decay=0.9, validate_every=10, checkpoint_every=5,
                       schedule="constant", **settings)
    result = fit(module, loss_fn, batch_at, config, runtime, Path(folder), validate, progress=False)
    return runtime, module, result
"""
SCRIPT = (
    TASK
    + """
os.environ["ACCELERATE_USE_FSDP"], os.environ["FSDP_VERSION"] = sys.argv[2], "2"
runtime, module, result = run(sys.argv[1], int(sys.argv[3]))
if runtime.is_main:
    numbers = torch.tensor([result.best_score, result.best_step, result.n_skipped, runtime.sharded])
    tensors = {f"module.{name}": value for name, value in module.state_dict().items() if "tied" not in name}
    tensors |= {f"average.{name}": value for name, value in result.average.items() if "tied" not in name}
    tensors |= {f"best.{name}": value.clone() for name, value in result.weights.items()}
    save_file({**tensors, "numbers": numbers}, sys.argv[1] + "/result.safetensors")
runtime.close()
os._exit(0)
"""
)
NAMES: dict[str, Any] = {}
exec(TASK, NAMES)


def results(module: nn.Module, result: Any) -> dict[str, torch.Tensor]:
    parts = {"module": module.state_dict(), "average": result.average, "best": result.weights}
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


@pytest.mark.parametrize(("sharded", "broken"), [("true", -1), ("true", 7), ("false", 7)])
def test_two_processes_give_what_one_gives_also_after_a_broken_batch_on_one_of_them(
    sharded: str, broken: int, tmp_path: Path, project_root: Path
) -> None:
    (tmp_path / "two").mkdir()
    run_on_processes(SCRIPT, 2, project_root, str(tmp_path / "two"), sharded, str(broken))
    two = load_file(tmp_path / "two" / "result.safetensors")
    _, module, result = NAMES["run"](tmp_path / "one", broken)
    numbers = two.pop("numbers").tolist()
    assert numbers == [pytest.approx(result.best_score, abs=1e-5), result.best_step, broken >= 0, sharded == "true"]
    assert result.n_skipped == (broken >= 0)
    one = results(module, result)
    assert set(two) <= set(one) and len(two) > 20
    for name, value in two.items():
        assert torch.allclose(value, one[name], rtol=0, atol=1e-5), name
        assert value.isfinite().all()
    length = two["module.first.weight"].norm(dim=1)
    assert (length < 0.5 + 1e-5).all() and (length > 0.49).any()
    # and the checkpoint of two continues on one
    _, again, longer = NAMES["run"](tmp_path / "two", broken, max_steps=30)
    _, module, whole_run = NAMES["run"](tmp_path / "one", broken, max_steps=30)
    assert longer.step == 30
    for name, value in results(module, whole_run).items():
        assert torch.allclose(value, results(again, longer)[name], rtol=0, atol=1e-5), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FSDP_VERSION", "1"),
        ("FSDP_OFFLOAD_PARAMS", "true"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true"),
    ],
)
def test_settings_of_the_launcher_that_would_be_ignored_are_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, one in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", name: value}.items():
        monkeypatch.setenv(key, one)
    with pytest.raises(ValueError, match=f"{name} is '{value}', expected"):
        Runtime(device="cpu")


def test_plain_tensors_pass_through() -> None:
    tensor = torch.ones(3)
    assert whole(tensor) is tensor and own_part(tensor) is tensor and sharded_as(tensor, torch.zeros(3)) is tensor
