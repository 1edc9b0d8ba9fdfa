"""Gated merging: the student starts as the mean of its teachers, gates follow their formula, halving is exact."""

import math

import pytest
import torch
from torch import nn

from encoders.build import SignalShape
from encoders.channel_plan import FIXED, PlannedLayer, brain_module_plan, chain_plan
from encoders.gated_merging import HardConcrete, gated_merge, half_open_weight
from encoders.networks.brain_module import BrainModule, BrainModuleConfig
from encoders.shared_trunk import BRAIN_MODULE_STEM, SharedTrunk
from encoders.weight_parts import outside, select

STREAM = BrainModuleConfig(n_virtual=8, fourier_width=32, width=8, n_convs=4, head_width=12)
PUBLISHED = STREAM.model_copy(update={"width": 10})
LINEAR_START = STREAM.model_copy(update={"init": "linear"})


class _Residual(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv = nn.Conv1d(n, n, 3, padding=1)
        self.norm = nn.BatchNorm1d(n)

    def forward(self, data):
        return data + torch.relu(self.norm(self.conv(data)))


def _chain():
    return nn.Sequential(
        nn.Conv2d(1, 6, (1, 3)), nn.BatchNorm2d(6), nn.ELU(), nn.AvgPool2d((1, 2)), nn.Conv2d(6, 5, (4, 1), bias=False),
        nn.BatchNorm2d(5), nn.GELU(), nn.MaxPool2d((1, 2)), nn.Flatten(), nn.Dropout(0.5),
        nn.Sequential(nn.Linear(5 * 4, 7), nn.ReLU()), nn.Linear(7, 3),
    )  # fmt: skip


def _residual():
    return nn.Sequential(
        nn.Conv1d(4, 6, 3), _Residual(6), _Residual(6), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(12, 3)
    )


RESIDUAL_PLAN = [
    PlannedLayer("0", FIXED, "stream"),
    *(PlannedLayer(f"{i}.{name}", "stream", "stream") for i in (1, 2) for name in ("conv", "norm")),
    PlannedLayer("5", "stream", FIXED),
]


def _brain(config, n_subjects=2):
    return BrainModule(config, SignalShape(9, 30, 100.0, n_subjects), 6)


def _brain_inputs(n=5):
    return torch.randn(n, 9, 30).double(), torch.rand(9, 2).double(), torch.arange(n) % 3


CASES = {
    "chain": (_chain, chain_plan, lambda: (torch.randn(5, 1, 4, 20).double(),)),
    "residual": (_residual, lambda network: RESIDUAL_PLAN, lambda: (torch.randn(5, 4, 9).double(),)),
    "brain_module": (lambda: _brain(PUBLISHED), brain_module_plan, _brain_inputs),
    "brain_module_stream": (lambda: _brain(STREAM), brain_module_plan, _brain_inputs),
    "brain_module_linear_start": (lambda: _brain(LINEAR_START), brain_module_plan, _brain_inputs),
}
EVERY = pytest.mark.parametrize("name", CASES)


def _teacher(make, seed):
    """Return a network whose every weight and statistic is random: neutral starts would hide a lost one."""
    torch.manual_seed(seed)
    network = make().double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for key, value in network.named_buffers():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif key.endswith("running_mean"):
                value.normal_()
    return network


def _student(name):
    make, plan, inputs = CASES[name]
    a, b = _teacher(make, 0), _teacher(make, 1)
    return a, b, gated_merge(a, b, plan(a)).eval(), inputs()


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@EVERY
def test_student_with_open_gates_is_the_mean_of_both_networks(name):
    a, b, student, inputs = _student(name)
    for gate in student.gates.values():
        gate.set_location(20.0)
    expected = (a(*inputs) + b(*inputs)) / 2
    torch.testing.assert_close(student(*inputs), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(student.float()(*(x.float() if x.is_floating_point() else x for x in inputs)),
                               expected.float(), rtol=1e-4, atol=2e-5)  # fmt: skip


@EVERY
def test_halving_keeps_the_function_if_the_other_half_is_closed(name):
    a, b, student, inputs = _student(name)
    with torch.no_grad():
        for parameter in student.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # cross blocks are no longer 0
        for gate in student.gates.values():
            location = torch.full((len(gate.location),), -20.0)
            kept = torch.randperm(len(location))[: len(location) // 2]
            gate.set_location(location.index_fill(0, kept, 0.0) + 0.5 * torch.rand(len(location)))
    merged = student.compress()
    assert _count(merged) == _count(a)
    shapes = {key: value.shape for key, value in a.state_dict().items()}
    assert {key: value.shape for key, value in merged.state_dict().items()} == shapes
    torch.testing.assert_close(merged(*inputs), student(*inputs), rtol=0, atol=1e-12)
    fresh = CASES[name][0]().double().eval()
    fresh.load_state_dict(merged.state_dict())
    torch.testing.assert_close(fresh(*inputs), merged(*inputs), rtol=0, atol=1e-13)
    if hasattr(merged, "blocks"):
        assert merged.blocks[0].conv.out_channels == a.blocks[0].conv.out_channels


def test_teachers_are_not_changed():
    a, b, student, _ = _student("residual")
    before = [_teacher(_residual, seed).state_dict() for seed in (0, 1)]
    with torch.no_grad():
        for value in student.state_dict().values():
            value.zero_()
    for one, state in zip((a, b), before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("location", [0.0, 1.0, -1.5986])
def test_share_of_gates_that_are_not_zero_follows_the_formula(location):
    torch.manual_seed(0)
    gate = HardConcrete(20_000)
    gate.set_location(location)
    drawn = torch.stack([gate() for _ in range(10)])
    share = float((drawn != 0).float().mean())
    assert share == pytest.approx(float(gate.open_probability().detach().mean()), abs=0.005)
    expected = {0.0: 0.832, -1.5986: 0.5}.get(location, 0.931)
    assert share == pytest.approx(expected, abs=0.005)
    assert drawn.min() == 0 and drawn.max() == 1


def test_gates_are_quiet_in_eval_mode_and_start_nearly_open():
    gate = HardConcrete(50, speed=20.0).eval()
    assert torch.equal(gate(), gate()) and not torch.equal(gate.train()(), gate())
    location = gate.location.detach()
    assert location.mean() == pytest.approx(1, abs=0.01) and location.std() == pytest.approx(0.01, abs=0.004)
    gate.eval().set_location(0.0)
    torch.testing.assert_close(gate(), torch.full((50,), 0.5))


def test_gates_are_drawn_once_per_call_for_a_whole_residual_stream():
    _, _, student, (data,) = _student("residual")
    student.train().network.eval()
    drawn, seen = [], []
    student.gates["stream"].register_forward_hook(lambda module, args, out: drawn.append(out))
    for part in ("1.conv", "2.conv"):
        student.network.get_submodule(part).register_forward_hook(lambda m, args, out: seen.append(args[0] == 0))
    student(data)
    assert len(drawn) == 1 and len(seen) == 2
    for zero in seen:
        assert (zero.all(dim=2) == (drawn[0] == 0)).all()
    student(data)
    assert len(drawn) == 2 and not torch.equal(drawn[0], drawn[1])


def test_weight_of_the_half_open_loss_grows_as_published():
    assert half_open_weight(0) == 0.05
    assert half_open_weight(1) == pytest.approx(0.05 + 0.05 * math.sqrt(0.05))
    assert 7 < half_open_weight(100) < 8


def test_half_open_loss_is_zero_at_one_half():
    _, _, student, _ = _student("residual")
    student.gates["stream"].set_location(2 / 3 * math.log(0.1 / 1.1))
    assert float(student.half_open_loss().detach()) == pytest.approx(0, abs=1e-12)
    assert student.open_share() == {"stream": pytest.approx(0.5)}
    student.gates["stream"].set_location(20.0)
    assert float(student.half_open_loss().detach()) == pytest.approx(0.25, abs=1e-4)


def test_eeg_and_meg_brain_modules_merge_behind_their_own_stems():
    experts, inputs = {}, {}
    for number, (name, n_channels) in enumerate({"eeg": 9, "meg": 14}.items()):
        experts[name] = _teacher(lambda: _brain(PUBLISHED, n_subjects=2 + number), number)  # noqa: B023
        inputs[name] = (
            torch.randn(4, n_channels, 30).double(),
            torch.rand(n_channels, 2).double(),
            torch.arange(4) % 2,
        )
    trunk = outside(experts["eeg"].state_dict(), BRAIN_MODULE_STEM)
    both = [SharedTrunk(experts, trunk, select(one.state_dict(), trunk)) for one in experts.values()]
    plan = [one for name in experts for one in brain_module_plan(experts[name], f"networks.{name}.", own_stem=True)]
    student = gated_merge(*both, plan).eval()
    for gate in student.gates.values():
        gate.set_location(20.0)
    for name, batch in inputs.items():
        torch.testing.assert_close(both[list(experts).index(name)](name, *batch), experts[name](*batch))
        expected = (both[0](name, *batch) + both[1](name, *batch)) / 2
        torch.testing.assert_close(student(name, *batch), expected, rtol=0, atol=1e-13)
    merged = student.compress()
    assert _count(merged) == _count(both[0])
    for name, parameter in merged.networks["eeg"].named_parameters():
        assert (parameter is merged.networks["meg"].get_parameter(name)) == (name.split(".")[0] in trunk), name
    assert all(_count(merged.networks[name]) == _count(experts[name]) for name in experts)
    with pytest.raises(ValueError, match="networks.eeg.attention.queries"):
        gated_merge(both[0], SharedTrunk({**experts, "eeg": _teacher(lambda: _brain(PUBLISHED), 9)}, trunk,
                                         select(experts["meg"].state_dict(), trunk)), plan)  # fmt: skip


def _layers(*changes):
    plan = list(RESIDUAL_PLAN)
    for number, layer in changes:
        plan[number] = layer
    return [layer for layer in plan if layer is not None]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (_layers((0, PlannedLayer("9", FIXED, "stream"))), "expected a path below"),
        (_layers((2, PlannedLayer("1.norm", "stream", FIXED))), "BatchNorm1d"),
        (_layers((3, PlannedLayer("3", "stream", "stream"))), "AdaptiveAvgPool1d"),
        (_layers((5, PlannedLayer("5", FIXED, FIXED))), "neither reads nor writes"),
        (_layers((5, PlannedLayer("5", "strem", FIXED))), "reads 12 channels of 'strem'"),
        (_layers((5, None)), "writes the output"),
        (_layers((0, PlannedLayer("0", FIXED, "other"))), "nothing reads the spaces \\['other'\\]"),
        (_layers((5, PlannedLayer("5", "stream", "stream"))), "writes 3 channels to 'stream'"),
        (_layers((2, None)), "differ in .*1.norm.weight"),
    ],
)
def test_plans_that_do_not_fit_are_refused(plan, said):
    with pytest.raises(ValueError, match=said):
        gated_merge(_teacher(_residual, 0), _teacher(_residual, 1), plan)


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), "LayerNorm"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.ReLU()), "behind the last"),
        (nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.Linear(4, 2)), "BatchNorm1d"),
        (nn.Sequential(nn.Linear(3, 4)), "at least 2"),
    ],
)
def test_chains_whose_channels_do_not_stay_apart_are_refused(chain, said):
    with pytest.raises(ValueError, match=said):
        chain_plan(chain)


def test_brain_modules_whose_channels_do_not_stay_apart_are_refused():
    with pytest.raises(ValueError, match="attention' mixes"):
        brain_module_plan(_brain(PUBLISHED.model_copy(update={"time_agg": "attention"})))
    with pytest.raises(ValueError, match="merge the stem too"):
        brain_module_plan(_brain(STREAM), own_stem=True)
    linear = [_brain(PUBLISHED.model_copy(update={"time_agg": "linear"})) for _ in range(2)]
    assert gated_merge(*linear, brain_module_plan(linear[0])) is not None
    with torch.no_grad():
        linear[1].aggregate.course.add_(1)
    with pytest.raises(ValueError, match="aggregate.course"):
        gated_merge(*linear, brain_module_plan(linear[0]))


def test_networks_of_other_sizes_and_grouped_convolutions_are_refused():
    a, b = (nn.Sequential(nn.Linear(3, n), nn.Linear(n, 2)) for n in (4, 5))
    with pytest.raises(ValueError, match="differs between the networks"):
        gated_merge(a, b, chain_plan(a))
    a = nn.Sequential(nn.Conv1d(4, 4, 3, groups=2), nn.Conv1d(4, 2, 1))
    with pytest.raises(ValueError, match="without groups"):
        gated_merge(a, a, chain_plan(a))
