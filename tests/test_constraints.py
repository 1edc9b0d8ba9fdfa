"""Max-norm projections and penalties, and that the training loop applies them."""

import torch
from torch import nn

from alignment.fit import FitConfig, fit
from alignment.runtime import Runtime
from encoders.layers.constraints import MaxNormConv2d, MaxNormLinear, Penalised, apply_constraints, penalties


def test_long_filters_are_shortened_and_short_ones_left_alone():
    layer = MaxNormConv2d(2, 3, (4, 1), max_norm=1.0)
    with torch.no_grad():
        layer.weight[0].mul_(100)
        layer.weight[1].mul_(1e-3)
        layer.weight[2].zero_()
    before = layer.weight.detach().clone()
    apply_constraints(nn.Sequential(layer))
    length = layer.weight.flatten(1).norm(dim=1)
    assert abs(float(length[0].detach()) - 1) < 1e-6
    assert torch.equal(layer.weight[1:], before[1:])
    torch.testing.assert_close(layer.weight[0], before[0] / before[0].norm())


def test_every_step_of_training_ends_inside_the_limit(tmp_path):
    torch.manual_seed(0)
    module = MaxNormLinear(3, 4, max_norm=0.25)
    lengths = []

    def loss(module, batch):
        return (module(batch) - 10).square().mean()

    config = FitConfig(max_steps=5, lr=0.5)
    fit(
        module, loss, lambda step, rank, world: torch.ones(2, 3), config, Runtime(device="cpu"), tmp_path,
        on_step=lambda step, numbers: lengths.append(float(module.weight.norm(dim=1).max())), progress=False,
    )  # fmt: skip
    assert len(lengths) == 5 and max(lengths) <= 0.25 + 1e-6
    assert max(lengths) > 0.24  # the target lies far outside, so the limit is what stops the weights


def test_penalties_are_summed_over_parts():
    class Costly(Penalised):
        def __init__(self, value):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(value))

        def penalty(self):
            return self.weight.abs()

    assert penalties(nn.Linear(2, 2)) is None
    total = penalties(nn.Sequential(Costly(-2.0), nn.Linear(1, 1), Costly(0.5)))
    assert float(total) == 2.5
