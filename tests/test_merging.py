"""Weight merging: exact algebra, RegMean's optimum, and experts that survive it only if they share a seed."""

import copy

import pytest
import torch
from synth_things import CHANNELS, D, contrastive, make_world, top_1
from torch import nn

from encoders.build import SignalShape
from encoders.fusion import LateFusion, LateFusionConfig
from encoders.layer_inputs import collect_gram, reestimate_statistics
from encoders.merging import interpolate, modality_arithmetic, regmean, weight_distance
from encoders.networks.brain_module import BrainModule, BrainModuleConfig
from encoders.shared_trunk import BRAIN_MODULE_STEM, SharedTrunk
from encoders.weight_parts import outside, select


def _network(seed, n_in=6, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(n_in, width), nn.BatchNorm1d(width), nn.GELU(), nn.Linear(width, 4))


def _states(n=2):
    return [_network(seed).state_dict() for seed in range(n)]


def test_full_weight_gives_an_expert_back_bit_for_bit():
    a, b = _states()
    b["0.weight"][0, 0] = torch.nan
    assert all(torch.equal(value, a[name]) for name, value in interpolate(a, b, 1.0).items())
    a, b = b, a
    assert all(torch.equal(value, b[name]) for name, value in interpolate(a, b, 0.0).items())


def test_three_experts_have_the_published_weights():
    a, b, joint = _states(3)
    merged = interpolate(a, b, 0.25, joint)
    expected = a["0.weight"] / 6 + b["0.weight"] / 2 + joint["0.weight"] / 3
    torch.testing.assert_close(merged["0.weight"], expected)


def test_arithmetic_at_one_half_is_the_average_and_at_zero_the_seed():
    seed, a, b = _states(3)
    half = modality_arithmetic(seed, [a, b], 0.5)
    assert all(torch.equal(half[name], value) for name, value in interpolate(a, b).items())
    nothing = modality_arithmetic(seed, [a, b], 0.0)
    assert all(torch.equal(nothing[name], value) for name, value in seed.items())
    whole = modality_arithmetic(seed, [a, b])["3.weight"]
    torch.testing.assert_close(whole, a["3.weight"] + b["3.weight"] - seed["3.weight"])


def _objective(merged, experts, inputs, name):
    """Squared change of the layer's outputs, summed over experts, and its gradient."""
    weight = merged[name].double().requires_grad_()
    loss = sum(((x @ (weight - one[name].double()).T) ** 2).sum() for x, one in zip(inputs, experts, strict=True))
    loss.backward()
    return float(loss.detach()), weight.grad


def _correlated(n_in=6, n=200):
    return [torch.randn(n, n_in).double() @ torch.randn(n_in, n_in).double() for _ in range(2)]


def test_regmean_is_the_optimum_and_better_than_the_average():
    experts = [{name: value.double() for name, value in state.items()} for state in _states()]
    inputs = _correlated()
    grams = [{"0.weight": x.T @ x} for x in inputs]
    merged = regmean(experts, grams)
    loss, gradient = _objective(merged, experts, inputs, "0.weight")
    average, slope = _objective(interpolate(*experts), experts, inputs, "0.weight")
    assert gradient.norm() < 1e-12 * slope.norm()
    assert loss < average / 2
    for name in ("0.bias", "1.weight", "1.running_var", "3.weight"):
        assert torch.equal(merged[name], interpolate(*experts)[name]), name


def test_regmean_bears_inputs_without_full_rank():
    experts = [{name: value.double() for name, value in state.items()} for state in _states()]
    inputs = [x - x.mean(dim=1, keepdim=True) for x in _correlated()]
    for x in inputs:
        x[:, 2] = 0
    grams = [{"0.weight": x.T @ x} for x in inputs]
    merged = regmean(experts, grams)
    average = interpolate(*experts)["0.weight"]
    _, gradient = _objective(merged, experts, inputs, "0.weight")
    assert gradient.norm() < 1e-10 * _objective(interpolate(*experts), experts, inputs, "0.weight")[1].norm()
    torch.testing.assert_close(merged["0.weight"][:, 2], average[:, 2])
    strong = regmean(experts, grams, ridge=1e9)["0.weight"]
    torch.testing.assert_close(strong, average, atol=1e-6, rtol=0)


def test_without_off_diagonals_regmean_weighs_input_by_input():
    a, b = _states()
    x, y = _correlated()
    power = [x.square().sum(0), y.square().sum(0)]
    merged = regmean([a, b], [{"0.weight": x.T @ x}, {"0.weight": y.T @ y}], off_diagonal=0.0)
    expected = (a["0.weight"] * power[0] + b["0.weight"] * power[1]) / (power[0] + power[1])
    torch.testing.assert_close(merged["0.weight"], expected.float())


class _Layers(nn.Module):
    """One of each kind of linear layer."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(1, 3, (2, 3), stride=(1, 2), padding=(0, 1))
        self.time = nn.Conv1d(9, 4, 3, padding=2, dilation=2)
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, 0.5, batch_first=True)
        self.dense = nn.Linear(4, 2)

    def forward(self, data):
        data = self.time(self.wide(data).flatten(1, 2))
        return self.dense(self.attention(data.transpose(1, 2)))


def test_grams_reproduce_the_energy_of_every_layers_output():
    torch.manual_seed(0)
    model = _Layers().train()
    seen = {}
    for name in ("wide", "time", "attention.linear1", "dense"):
        model.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: seen.setdefault(name, []).append(o))
    batches = [(torch.randn(3, 1, 4, 11),) for _ in range(2)]
    grams = collect_gram(model, batches)
    assert model.training and model.attention.dropout.training
    assert set(grams) == {
        "wide.weight", "time.weight", "dense.weight", "attention.linear1.weight", "attention.linear2.weight",
        "attention.self_attn.in_proj_weight",
    }  # fmt: skip
    for name, outputs in seen.items():
        layer = model.get_submodule(name)
        axis = 1 if isinstance(layer, nn.Conv1d | nn.Conv2d) else -1
        rows = torch.cat([(out.movedim(axis, -1) - layer.bias).reshape(-1, len(layer.bias)) for out in outputs])
        weight = layer.weight.flatten(1).double()
        energy = weight @ grams[f"{name}.weight"] @ weight.T
        torch.testing.assert_close(energy, (rows.T @ rows).double(), rtol=1e-4, atol=1e-4)
    only = collect_gram(model, batches, ("dense",))
    assert set(only) == {"dense.weight"} and only["dense.weight"].dtype == torch.float64


def test_reestimated_statistics_are_those_of_the_data():
    model = _network(0).train()
    model[1].running_mean.fill_(7.0)
    data = 3 + 2 * torch.randn(400, 6)
    assert reestimate_statistics(model, [(data[:200],), (data[200:],)]) == 1
    hidden = model[0](data)
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0))
    torch.testing.assert_close(model[1].running_var, hidden.var(0), rtol=0.05, atol=0)
    assert model.training and model[1].momentum == 0.1


def test_weight_distance():
    a, b = _states()
    same = weight_distance(a, a)
    assert same.relative == 0 and same.cosine == pytest.approx(1)
    assert weight_distance(a, b).relative > 0.3
    near = interpolate(a, b, 0.9)
    assert weight_distance(a, near, ("0", "3")).relative < weight_distance(a, b, ("0", "3")).relative / 5


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda a, b: interpolate(a, {**b, "5.bias": b["0.bias"]}), "differ in the weights"),
        (lambda a, b: interpolate(a, {**b, "0.weight": torch.zeros(8, 5)}), "expected one shape"),
        (lambda a, b: interpolate({**a, "i": torch.arange(2)}, {**b, "i": torch.ones(2).long()}), "equal indices"),
        (lambda a, b: interpolate(a, b, 1.5), "in \\[0, 1\\]"),
        (lambda a, b: interpolate(a, b, parts=("4",)), "matches no weight"),
        (lambda a, b: modality_arithmetic(a, []), "at least one"),
        (lambda a, b: regmean([a, b], [{}]), "one set per expert"),
        (lambda a, b: regmean([a, b], [{"0.weight": torch.eye(6)}, {}]), "only some experts"),
        (lambda a, b: regmean([a, b], [{"0.weight": torch.eye(5)}] * 2), "inputs squared"),
        (lambda a, b: regmean([a, b], [{}, {}], off_diagonal=2.0), "off_diagonal"),
        (lambda a, b: collect_gram(_network(0), []), "no batches"),
        (lambda a, b: reestimate_statistics(_network(0), []), "no batches"),
        (lambda a, b: outside(a, ("0", "1", "3")), "list the rest"),
        (lambda a, b: outside(a, ("0.weight",)), "list the rest"),
        (lambda a, b: SharedTrunk({}, ("0",), a), "at least one"),
        (lambda a, b: SharedTrunk({"eeg": _network(0), "meg": _network(0, 6, 9)}, ("0",), a), "expected one shape"),
        (lambda a, b: SharedTrunk({"eeg": _network(0)}, ("0",), a)("meg", torch.zeros(2, 6)), "expected one of"),
    ],
)
def test_mistakes_are_named(call, said):
    with pytest.raises(ValueError, match=said):
        call(*_states())


def test_parts_follow_whole_names():
    state = {"blocks.1.weight": torch.zeros(1), "blocks.10.weight": torch.zeros(1), "head": torch.zeros(1)}
    assert set(select(state, ("blocks.1", "head"))) == {"blocks.1.weight", "head"}
    assert outside(state, ("head",)) == ("blocks",)


def test_brain_modules_of_eeg_and_meg_get_one_trunk():
    torch.manual_seed(0)
    config = BrainModuleConfig(n_virtual=12, fourier_width=32, width=16, n_convs=4, head_width=24)
    people = {"eeg": 2, "meg": 3}
    networks = {name: BrainModule(config, SignalShape(CHANNELS[name], 40, 100.0, n), D) for name, n in people.items()}
    places = {name: torch.rand(n, 2) for name, n in CHANNELS.items()}
    batches = {
        name: (n * torch.randn(30, n, 40), places[name], torch.arange(30) % people[name])
        for name, n in CHANNELS.items()
    }
    states = {name: network.state_dict() for name, network in networks.items()}
    trunk = outside(states["eeg"], BRAIN_MODULE_STEM)
    assert trunk == ("blocks", "hidden", "head")
    grams = [collect_gram(networks[name], [batches[name]], trunk) for name in CHANNELS]
    assert all(f"blocks.{i}.conv.weight" in grams[0] for i in range(4)) and "hidden.weight" in grams[0]
    merged = regmean([states["eeg"], states["meg"]], grams, parts=trunk)
    shared = SharedTrunk(networks, trunk, merged)
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    assert reestimate_statistics(shared, [(name, *batch) for name, batch in batches.items()]) == 8
    n_trunk = sum(p.numel() for name, p in networks["eeg"].named_parameters() if name.split(".")[0] in trunk)
    n_each = [sum(p.numel() for p in network.parameters()) for network in networks.values()]
    assert sum(p.numel() for p in shared.parameters()) == sum(n_each) - n_trunk
    for name, batch in batches.items():
        assert shared(name, *batch).shape == (30, D)
        for key, value in select(states[name], BRAIN_MODULE_STEM).items():
            assert torch.equal(value, before[f"networks.{name}.{key}"])
    eeg, meg = (shared.networks[name] for name in CHANNELS)
    assert all((p is meg.get_parameter(name)) == (name.split(".")[0] in trunk) for name, p in eeg.named_parameters())
    assert not torch.equal(eeg.blocks[1].norm.running_mean, meg.blocks[1].norm.running_mean)
    with pytest.raises(ValueError, match="4 of 8 batch norms saw none of 1"):
        reestimate_statistics(shared, [("eeg", *batches["eeg"])])
    fusion = LateFusion(dict(shared.networks.items()), D, LateFusionConfig()).eval()
    data = {name: batch[0] for name, batch in batches.items()}
    assert fusion(data, places, torch.arange(30) % 2).shape == (30, D)
    assert torch.equal(fusion({"eeg": data["eeg"]}, places, batches["eeg"][2]), shared.eval()("eeg", *batches["eeg"]))
    assert {id(p) for p in shared.parameters()} <= {id(p) for p in fusion.parameters()}
    shared("eeg", *batches["eeg"]).sum().backward()
    assert shared.networks["meg"].hidden.weight.grad is not None
    assert shared.networks["meg"].mix.weight.grad is None


class _Tokens(nn.Module):
    """Own patch stem and head, layers of common shape, a read-out token: nothing reaches the head but through them."""

    def __init__(self, n_channels, width=48):
        super().__init__()
        self.stem = nn.Conv1d(n_channels, width, 8, stride=4)
        self.position = nn.Parameter(0.02 * torch.randn(9, width))
        self.read = nn.Parameter(0.5 * torch.randn(1, 1, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(width, D)

    def forward(self, data):
        tokens = self.stem(data).transpose(1, 2) + self.position
        tokens = torch.cat([self.read.expand(len(data), -1, -1), tokens], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens[:, 0])


def _train(networks, world, n_steps, lr, seed):
    generator = torch.Generator().manual_seed(seed)
    parameters = {id(p): p for network in networks.values() for p in network.train().parameters()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=n_steps)
    for _ in range(n_steps):
        rows = torch.randint(len(world.train_embeds), (200,), generator=generator)
        optimizer.zero_grad()
        losses = [contrastive(one(world.train[name][rows]), world.train_embeds[rows]) for name, one in networks.items()]
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()


def _scores(networks, world):
    return torch.tensor([top_1(networks[name], world.test[name], world.test_embeds) for name in CHANNELS])


LAYERS = ("layers",)


def _merged(experts, world, seed=None):
    """Top-1 of 200 on both modalities after each way of merging."""
    states = [experts[name].state_dict() for name in CHANNELS]
    grams = [collect_gram(experts[name], [(world.train[name][:500],)], LAYERS) for name in CHANNELS]
    merged = {"interpolation": interpolate(*states, parts=LAYERS), "regmean": regmean(states, grams, parts=LAYERS)}
    if seed is not None:
        merged["arithmetic"] = modality_arithmetic(seed, states, 0.75, LAYERS)
    return {how: _scores(SharedTrunk(experts, LAYERS, state).networks, world) for how, state in merged.items()}


@pytest.mark.slow
def test_experts_keep_their_score_only_if_they_share_a_seed():
    world = make_world(noise=1.5)
    torch.manual_seed(0)
    fresh = {name: _Tokens(n) for name, n in CHANNELS.items()}
    start = SharedTrunk(fresh, LAYERS, select(fresh["eeg"].state_dict(), LAYERS))
    _train(dict(start.networks.items()), world, 200, 3e-3, seed=0)
    seed = select(start.networks["eeg"].state_dict(), LAYERS)
    experts = {name: copy.deepcopy(network) for name, network in start.networks.items()}
    for name in experts:
        _train({name: experts[name]}, world, 60, 1e-3, seed=1)
    alone = _scores(experts, world)
    related = _merged(experts, world, seed)
    near = weight_distance(*(experts[name].state_dict() for name in CHANNELS), LAYERS)

    strangers = {}
    for number, (name, n_channels) in enumerate(CHANNELS.items()):
        torch.manual_seed(10 + number)
        strangers[name] = _Tokens(n_channels)
        _train({name: strangers[name]}, world, 200, 3e-3, seed=2)
    strangers_alone = _scores(strangers, world)
    unrelated = _merged(strangers, world)
    far = weight_distance(*(strangers[name].state_dict() for name in CHANNELS), LAYERS)

    print("\nshared seed", alone, related, near, "\nunrelated", strangers_alone, unrelated, far)
    assert (alone > 0.4).all() and (strangers_alone > 0.4).all()  # chance 0.005
    for how, scores in related.items():
        assert (scores >= 0.8 * alone).all(), (how, scores, alone)
    for how, scores in unrelated.items():
        assert (scores < 0.4 * strangers_alone).all(), (how, scores, strangers_alone)
    assert near.relative < 0.2 < 0.8 < far.relative
