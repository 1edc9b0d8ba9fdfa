import pytest
import torch
from torch.nn import functional

from encoders.build import PRESETS, SignalShape, build_encoder
from encoders.networks.brain_module import BrainModule, BrainModuleConfig

NARROW = BrainModuleConfig(n_virtual=16, fourier_width=128, width=24, n_convs=4, head_width=32)
DEMO = PRESETS["brain_module_demo"]


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("n_subjects", [1, 4])
def test_published_parameter_count(n_subjects):
    network = build_encoder(PRESETS["brain_module"], SignalShape(271, 361, 120.0, n_subjects), 1024)
    assert _count(network) == 7_596_754 + 72_900 * n_subjects


def test_published_receptive_field_is_135_samples():
    torch.manual_seed(0)
    config = BrainModuleConfig(n_virtual=8, fourier_width=32, width=8, head_width=8)
    network = BrainModule(config, SignalShape(8, 200, 120.0, 1), 4).double().eval()
    data, positions = torch.randn(1, 8, 200, dtype=torch.float64), torch.rand(8, 2, dtype=torch.float64)
    subject = torch.zeros(1, dtype=torch.int64)
    data.requires_grad_()
    network.features(data, positions, subject)[0, :, 100].sum().backward()
    reached = data.grad[0].abs().sum(0).nonzero()[:, 0]
    assert reached[0] == 100 - 67 and reached[-1] == 100 + 67


def test_causal_receptive_field_is_the_same_135_samples_all_of_them_past():
    torch.manual_seed(0)
    config = BrainModuleConfig(n_virtual=8, fourier_width=32, width=8, head_width=8, causal=True)
    network = BrainModule(config, SignalShape(8, 200, 120.0, 1), 4).double().eval()
    data, positions = torch.randn(1, 8, 200, dtype=torch.float64), torch.rand(8, 2, dtype=torch.float64)
    data.requires_grad_()
    network.features(data, positions, torch.zeros(1, dtype=torch.int64))[0, :, 150].sum().backward()
    reached = data.grad[0].abs().sum(0).nonzero()[:, 0]
    assert reached[0] == 150 - 134 and reached[-1] == 150


def test_a_causal_network_has_the_published_parameter_count():
    config = BrainModuleConfig(causal=True)
    network = build_encoder(config, SignalShape(271, 361, 120.0, 1), 1024)
    assert _count(network) == 7_596_754 + 72_900


def test_a_sample_more_than_67_steps_away_leaves_an_output_unchanged():
    torch.manual_seed(0)
    network = BrainModule(
        BrainModuleConfig(n_virtual=8, fourier_width=32, width=8, head_width=8), SignalShape(8, 200, 120.0, 1), 4
    ).eval()
    data, positions, subject = torch.randn(1, 8, 200), torch.rand(8, 2), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        expected = network.features(data, positions, subject)[0, :, 100]
        for sample, is_near in ((32, False), (90, True), (110, True), (168, False)):
            other = data.clone()
            other[:, :, sample] += 1000.0
            assert torch.equal(network.features(other, positions, subject)[0, :, 100], expected) != is_near


@pytest.mark.parametrize("config", [NARROW, DEMO], ids=["published", "demo"])
def test_the_same_weights_read_63_and_271_sensors(config):
    torch.manual_seed(0)
    network = build_encoder(config, SignalShape(63, 64, 100.0, 2), 32).eval()
    for n_channels in (63, 271):
        out = network(torch.randn(2, n_channels, 64), torch.rand(n_channels, 2), torch.tensor([0, 1]))
        assert out.shape == (2, 32) and out.isfinite().all()


@pytest.mark.parametrize("config", [NARROW, DEMO], ids=["published", "demo"])
def test_permuting_sensors_with_their_positions_changes_nothing(config):
    torch.manual_seed(0)
    network = build_encoder(config, SignalShape(63, 64, 100.0, 2), 32).eval()
    data, positions, subject = torch.randn(2, 63, 64), torch.rand(63, 2), torch.tensor([0, 1])
    order = torch.randperm(63)
    expected = network(data, positions, subject)
    torch.testing.assert_close(network(data[:, order], positions[order], subject), expected, atol=1e-5, rtol=0)


def test_people_differ_and_the_unknown_person_is_their_mean_layer():
    torch.manual_seed(0)
    network = BrainModule(NARROW, SignalShape(20, 64, 100.0, 2), 32).eval()
    data, positions = torch.randn(1, 20, 64), torch.rand(20, 2)
    first, second, unknown = (network(data, positions, torch.tensor([who])) for who in range(3))
    assert not torch.allclose(first, second)
    with torch.no_grad():
        network.people.weight.copy_(network.people.weight.mean(0, keepdim=True).expand(2, -1, -1))
    torch.testing.assert_close(network(data, positions, torch.tensor([0])), unknown)


def test_linear_start_is_a_linear_function_of_the_signal():
    torch.manual_seed(0)
    network = build_encoder(DEMO, SignalShape(20, 64, 100.0, 2), 32).eval()
    positions, subject = torch.rand(20, 2), torch.tensor([0])
    first, second = torch.randn(2, 1, 20, 64)
    zero = network(torch.zeros(1, 20, 64), positions, subject)
    sum_of_outputs = network(first, positions, subject) + network(2 * second, positions, subject) - zero
    torch.testing.assert_close(network(first + 2 * second, positions, subject), sum_of_outputs, atol=1e-4, rtol=1e-4)


def test_time_courses_commute_with_mixing_sensors_when_all_is_linear():
    torch.manual_seed(0)
    network = build_encoder(DEMO, SignalShape(20, 64, 100.0, 2), 32).double().eval()
    assert network.commutes
    with torch.no_grad():
        network.people.weight.add_(0.1 * torch.randn_like(network.people.weight))
    data, positions, subject = torch.randn(2, 20, 64).double(), torch.rand(20, 2).double(), torch.tensor([0, 2])
    early = network(data, positions, subject)
    network.commutes = False
    torch.testing.assert_close(network(data, positions, subject), early)


def test_mean_aggregation_accepts_any_length():
    torch.manual_seed(0)
    network = BrainModule(NARROW, SignalShape(20, 64, 100.0, 2), 32).eval()
    assert network(torch.randn(1, 20, 90), torch.rand(20, 2), torch.tensor([0])).shape == (1, 32)


def test_one_linear_time_course_starts_as_the_mean():
    torch.manual_seed(0)
    shape = SignalShape(20, 64, 100.0, 2)
    linear = BrainModule(NARROW.model_copy(update={"time_agg": "linear"}), shape, 32).eval()
    mean = BrainModule(NARROW, shape, 32).eval()
    mean.load_state_dict({key: value for key, value in linear.state_dict().items() if "aggregate" not in key})
    data, positions, subject = torch.randn(2, 20, 64), torch.rand(20, 2), torch.tensor([0, 1])
    torch.testing.assert_close(linear(data, positions, subject), mean(data, positions, subject), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"n_time_weights": 3, "time_agg": "mean"}, "n_time_weights"),
        ({"init": "linear"}, "width"),
        ({"fourier_width": 100}, "twice a square"),
    ],
)
def test_settings_without_effect_or_sense_are_refused(wrong, named):
    with pytest.raises(ValueError, match=named):
        BrainModule(NARROW.model_copy(update=wrong), SignalShape(20, 64, 100.0, 2), 32)


def test_demo_size_beats_ridge_on_two_simulated_people():
    """Linear sources, smooth fields over the map, strong slow noise; 200 unseen images, one epoch each."""
    torch.manual_seed(0)
    n_train, n_test, n_sources, n_channels, n_times = 1000, 200, 16, 24, 64
    targets = torch.randn(n_train + n_test, n_sources)
    positions, times = torch.rand(n_channels, 2), torch.arange(n_times)
    places, latencies = torch.rand(n_sources, 2), torch.rand(n_sources) * 50 + 7
    courses = torch.exp(-0.5 * ((times - latencies[:, None]) / 4) ** 2) * torch.cos((times - latencies[:, None]) / 4)
    slow = torch.linalg.cholesky(torch.exp(-(times[:, None] - times).abs() / 15.0))

    def record(shift):
        fields = torch.exp(-torch.cdist(positions, places + shift).square() / 0.05) * torch.randn(n_sources).sign()
        signal = torch.einsum("ns,cs,st->nct", targets, fields, courses)
        return 0.5 * signal + torch.randn(len(targets), n_channels, n_times) @ slow.T

    data = torch.stack([record(0.05 * torch.randn(n_sources, 2)) for _ in range(2)])
    gallery = functional.normalize(targets[n_train:], dim=-1)

    def top_1(brain_embeds):
        return float(((brain_embeds @ gallery.T).argmax(-1) == torch.arange(n_test)).float().mean())

    ridge = []
    for person in data:
        flat = person.flatten(1).double()
        gram = flat[:n_train] @ flat[:n_train].T
        found = []
        for penalty in (0.03, 0.1, 0.3, 1.0):
            system = gram + penalty * gram.diagonal().mean() * torch.eye(n_train)
            dual = torch.linalg.solve(system, targets[:n_train].double())
            found.append(top_1((flat[n_train:] @ flat[:n_train].T @ dual).float()))
        ridge.append(max(found))  # chosen on the test set, to ridge's advantage
    network = build_encoder(DEMO, SignalShape(n_channels, n_times, 100.0, 2), n_sources).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(160):
        image, person = torch.randint(n_train, (128,)), torch.randint(2, (128,))
        embeds = functional.normalize(network(data[person, image], positions, person), dim=-1)
        logits = 5 * embeds @ functional.normalize(targets[image], dim=-1).T
        same = (image[:, None] == image).fill_diagonal_(False)
        optimizer.zero_grad()
        functional.cross_entropy(logits.masked_fill(same, -torch.inf), torch.arange(128)).backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        found = [top_1(network(data[i, n_train:], positions, torch.full((n_test,), i))) for i in range(2)]
    assert min(ridge) >= 0.05 and max(ridge) <= 0.8  # chance .005: neither trivial nor impossible
    assert sum(found) >= sum(ridge), (found, ridge)
