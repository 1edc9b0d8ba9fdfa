import numpy as np
import pytest
import torch
from torch.nn import functional

from alignment.early_window import early_window_curve
from encoders.build import PRESETS, SignalShape, build_encoder
from encoders.networks.ts_conv import TSConvConfig

N_TRAIN, N_TEST, N_CHANNELS, N_TIMES, WIDTH = 600, 100, 24, 80, 16
SFREQ, TMIN = 100.0, -0.1
SHAPE = SignalShape(N_CHANNELS, N_TIMES, SFREQ, 1)
CAUSAL = PRESETS["brain_module_demo"].model_copy(update={"causal": True})


@pytest.fixture(scope="module")
def trained():
    """A causal linear network, and unseen epochs whose sources answer one after the other, 0.05 to 0.6 s late."""
    torch.manual_seed(0)
    targets = torch.randn(N_TRAIN + N_TEST, WIDTH)
    positions, times = torch.rand(N_CHANNELS, 2), TMIN + torch.arange(N_TIMES) / SFREQ
    latencies = torch.linspace(0.1, 0.55, WIDTH)
    courses = torch.exp(-0.5 * ((times - latencies[:, None]) / 0.02) ** 2)
    fields = torch.randn(N_CHANNELS, WIDTH)
    data = torch.einsum("ns,cs,st->nct", targets, fields, courses) + torch.randn(len(targets), N_CHANNELS, N_TIMES)
    network = build_encoder(CAUSAL, SHAPE, WIDTH).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(120):
        image = torch.randint(N_TRAIN, (128,))
        embeds = functional.normalize(network(data[image], positions, torch.zeros(128).long()), dim=-1)
        logits = 5 * embeds @ functional.normalize(targets[image], dim=-1).T
        same = (image[:, None] == image).fill_diagonal_(False)
        optimizer.zero_grad()
        functional.cross_entropy(logits.masked_fill(same, -torch.inf), torch.arange(128)).backward()
        optimizer.step()
    return network.eval(), data[N_TRAIN:], positions, torch.zeros(N_TEST).long(), targets[N_TRAIN:].numpy()


def _looking_ahead(network):
    other = build_encoder(PRESETS["brain_module_demo"], SHAPE, WIDTH).eval()
    other.load_state_dict(network.state_dict())
    return other


@pytest.mark.parametrize("is_causal", [True, False])
def test_accuracy_grows_with_the_window_from_chance_before_the_stimulus(trained, is_causal):
    network, *inputs = trained
    if not is_causal:
        network = _looking_ahead(network)
    until = (-0.01, 0.1, 0.3, 0.6)
    curve = early_window_curve(network, *inputs, sfreq=SFREQ, tmin=TMIN, until=until)
    before, early, middle, late = (one.scores for one in curve)
    assert [one.until for one in curve] == list(until) and late.n == N_TEST and late.chance_top_1 == 1 / N_TEST
    assert before.top_1 <= 0.05 and abs(before.two_way - 0.5) < 0.1
    assert late.top_1 > middle.top_1 > early.top_1, [one.scores.top_1 for one in curve]
    assert late.top_1 > 0.5 and late.two_way > early.two_way > 0.5


def test_a_causal_curve_is_that_of_over_time_and_knows_nothing_of_later_samples(trained):
    network, data, positions, subject, gallery = trained
    times = {"sfreq": SFREQ, "tmin": TMIN, "until": (0.1, 0.3)}
    expected = early_window_curve(network, data, positions, subject, gallery, **times)
    later = data.clone()
    later[:, :, 41:] = 100 * torch.randn(N_TEST, N_CHANNELS, 39)
    assert early_window_curve(network, later, positions, subject, gallery, **times) == expected
    with torch.no_grad():
        embeds = network.over_time(data, positions, subject)[:, 40]
    similarity = functional.normalize(embeds, dim=-1) @ functional.normalize(torch.from_numpy(gallery), dim=-1).T
    assert float((similarity.argmax(-1) == torch.arange(N_TEST)).float().mean()) == pytest.approx(
        expected[1].scores.top_1
    )


def test_a_network_that_looks_ahead_gets_zeros_for_later_samples(trained):
    network, data, positions, subject, gallery = trained
    other = _looking_ahead(network)
    times = {"sfreq": SFREQ, "tmin": TMIN, "until": (0.3,)}
    later = data.clone()
    later[:, :, 41:] = 100 * torch.randn(N_TEST, N_CHANNELS, 39)
    curves = [early_window_curve(other, one, positions, subject, gallery, **times) for one in (data, later)]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("until", [(), (-0.2,), (0.8,), (0.3, 0.1), (0.1, 0.1)])
def test_impossible_windows_are_refused(trained, until):
    network, *inputs = trained
    with pytest.raises(ValueError, match="ascending"):
        early_window_curve(network, *inputs, sfreq=SFREQ, tmin=TMIN, until=until)


def test_training_mode_and_a_window_without_a_step_are_refused():
    network = build_encoder(TSConvConfig(causal=True), SHAPE, WIDTH)
    inputs = (torch.randn(5, N_CHANNELS, N_TIMES), torch.rand(N_CHANNELS, 2), torch.zeros(5).long())
    gallery = np.random.default_rng(0).standard_normal((5, WIDTH)).astype(np.float32)
    with pytest.raises(ValueError, match="eval"):
        early_window_curve(network.train(), *inputs, gallery, sfreq=SFREQ, tmin=TMIN, until=(0.1,))
    with pytest.raises(ValueError, match="no output after 1 samples"):
        early_window_curve(network.eval(), *inputs, gallery, sfreq=SFREQ, tmin=TMIN, until=(-0.1, 0.1))
