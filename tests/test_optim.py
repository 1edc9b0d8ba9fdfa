import pytest
import torch
from torch import nn

from alignment.optim import Schedule, clipped_together, lr_factor, parameter_groups, update_average


def test_onecycle_is_torchs() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=50, cycle_momentum=False)
    for step in range(50):
        assert lr_factor(step, "onecycle", 0, 50) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        if step < 49:
            scheduler.step()


@pytest.mark.parametrize(("warmup_steps", "peak"), [(0, 29), (10, 9)])
def test_onecycle_has_its_exact_start_peak_and_end(warmup_steps: int, peak: int) -> None:
    factors = [lr_factor(step, "onecycle", warmup_steps, 100) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 25, abs=1e-15) and factors[-1] == pytest.approx(1 / 250_000, abs=1e-15)
    assert factors[peak] == max(factors) == 1.0
    assert factors[: peak + 1] == sorted(factors[: peak + 1]) and factors[peak:] == sorted(factors[peak:], reverse=True)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_warmup_rises_to_the_peak(schedule: Schedule) -> None:
    factors = [lr_factor(step, schedule, 10, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(factors) == 1.0 and factors[10] == 1.0


def test_cosine_is_half_way_in_the_middle_and_ends_near_zero() -> None:
    assert lr_factor(50, "cosine", 0, 100) == pytest.approx(0.5)
    assert lr_factor(99, "cosine", 0, 100) < 1e-3


def test_groups_spare_biases_norms_scales_and_positions() -> None:
    module = nn.ModuleDict({"linear": nn.Linear(3, 4), "norm": nn.LayerNorm(4)})
    module.positional_embedding = nn.Parameter(torch.zeros(5, 4))
    module.logit_scale = nn.Parameter(torch.zeros(1, 1))
    module["linear"].bias.requires_grad_(False)
    names, (decayed, spared) = parameter_groups(module, 0.1)
    assert names[0] == "linear.weight" and decayed["weight_decay"] == 0.1 and len(decayed["params"]) == 1
    assert set(names[1:]) == {"norm.weight", "norm.bias", "positional_embedding", "logit_scale"}
    assert spared["weight_decay"] == 0.0


def test_branches_are_clipped_apart_and_other_modules_as_a_whole() -> None:
    class Branches(nn.ModuleDict):
        def branch_of(self, name: str) -> str:
            return name.split(".")[0]

    parts = {"eeg": nn.Linear(2, 1), "meg": nn.Linear(2, 1)}
    whole, apart = nn.ModuleDict(parts), Branches(parts)
    named = dict(whole.named_parameters())
    assert clipped_together(whole, named) == [list(named.values())]
    assert [len(some) for some in clipped_together(apart, named)] == [2, 2]
    assert clipped_together(apart, named)[1][0] is parts["meg"].weight


def test_decay_is_decoupled_from_the_gradient() -> None:
    parameter = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer = torch.optim.AdamW([{"params": [parameter], "weight_decay": 0.1}], lr=0.1)
    for _ in range(10):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert parameter[0, 0].item() == pytest.approx((1 - 0.01) ** 10)


def test_average_follows_with_a_decay_that_starts_small() -> None:
    module = nn.BatchNorm1d(2)
    average = {name: torch.zeros_like(value) for name, value in module.state_dict().items()}
    update_average(average, module, 0.999, step=0)
    assert torch.allclose(average["weight"], torch.full((2,), 0.9))
    assert torch.equal(average["running_var"], module.running_var)
    update_average(average, module, 0.5, step=10**6)
    assert torch.allclose(average["weight"], torch.full((2,), 0.95))


def test_tied_weights_are_averaged_under_each_of_their_names() -> None:
    module = nn.ModuleDict({"eeg": nn.Linear(2, 1)})
    module["meg"] = module["eeg"]
    average = {name: torch.zeros_like(value) for name, value in module.state_dict().items()}
    update_average(average, module, 0.5, step=10**6)
    for name in ("eeg.weight", "meg.weight"):
        assert torch.allclose(average[name], module["eeg"].weight / 2), name
