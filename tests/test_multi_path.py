import numpy as np
import pytest
import pywt
import torch
from scipy import signal
from torch.nn import functional

from encoders.build import SignalShape
from encoders.networks.multi_path import MultiPath, MultiPathConfig, WaveletPath, stft_power

PATHS = ("raw", "logpower", "wavegram", "wavelet")
SHAPE = SignalShape(9, 50, 100.0, 2)


def _network(shape=SHAPE, embed_dim=8, **settings):
    torch.manual_seed(0)
    return MultiPath(MultiPathConfig(**{"width": 8, **settings}), shape, embed_dim).eval()


def _inputs(shape=SHAPE, n=3):
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(n, shape.n_channels, shape.n_times, generator=generator)
    return data, torch.rand(shape.n_channels, 2, generator=generator), torch.zeros(n).long()


@pytest.mark.parametrize(("n_times", "n_window", "hop"), [(100, 25, 4), (250, 62, 8), (201, 50, 7), (1000, 250, 32)])
def test_power_equals_scipy(n_times, n_window, hop):
    data = torch.randn(5, n_times, generator=torch.Generator().manual_seed(0))
    _, _, spectrum = signal.stft(data.numpy(), nperseg=n_window, noverlap=n_window - hop, padded=False)
    found = stft_power(data, n_window, hop)
    assert found.shape == spectrum.shape
    np.testing.assert_allclose(found.numpy(), np.abs(spectrum) ** 2, atol=1e-4 * float(found.max()))
    np.testing.assert_allclose(stft_power(data.double(), n_window, hop), np.abs(spectrum) ** 2, atol=1e-6)


def test_power_of_a_sine_and_its_gradient_at_silence():
    times = torch.arange(500) / 100
    power = stft_power((3 * torch.sin(2 * torch.pi * 20 * times))[None], 50, 10)
    assert power[0, :, 25].argmax() == 10  # 20 Hz of bins 2 Hz apart
    torch.testing.assert_close(power[0, 10, 25], torch.tensor(9 / 4), rtol=1e-3, atol=0)
    silence = torch.zeros(1, 100, requires_grad=True)
    (stft_power(silence, 25, 4) + 1e-4).log().sum().backward()
    assert silence.grad.isfinite().all()


@pytest.mark.parametrize(
    ("n_times", "sfreq", "rows", "steps"),
    [(100, 100.0, 4, 25), (63, 100.0, 4, 16), (250, 250.0, 8, 32), (201, 200.0, 8, 26)],
)
def test_all_paths_share_one_grid(n_times, sfreq, rows, steps):
    shape = SignalShape(9, n_times, sfreq, 1)
    network = _network(shape)
    maps = network.path_maps(_inputs(shape)[0])
    assert list(maps) == list(PATHS)
    assert {tuple(one.shape) for one in maps.values()} == {(3, 8, rows, steps)}
    tokens = network.tokens(*_inputs(shape))
    assert tokens.shape == (3, steps, network.token_width) and network.token_width == 16 * rows


@pytest.mark.parametrize("name", PATHS)
def test_an_impulse_appears_at_its_own_time_on_every_path(name):
    """The strongest answer of each path lies within one step of the impulse (the window of the power is wider)."""
    network = _network(SignalShape(9, 200, 100.0, 1)).double()
    data = torch.zeros(1, 9, 200, dtype=torch.float64)
    silent = network.paths[name](data)
    data[..., 120] = 5.0
    answer = (network.paths[name](data) - silent).abs().sum(dim=(0, 1, 2))
    centre = (answer * torch.arange(len(answer))).sum() / answer.sum()
    assert abs(centre - 120 / 4) <= 1.0
    assert answer[:20].sum() == 0 and answer[40:].sum() == 0


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("merge", ["concat", "add"])
def test_zeroing_one_path_changes_the_output(name, merge):
    network = _network(merge=merge)
    maps = network.path_maps(_inputs()[0])
    before = network.join(maps)
    after = network.join({**maps, name: torch.zeros_like(maps[name])})
    assert (before - after).abs().max() > 1e-3


def test_concatenation_gives_each_path_weights_of_its_own():
    network = _network()
    assert network.stem[0].weight.shape == (16, 32, 3, 3)
    assert _network(merge="add").stem[0].weight.shape == (16, 8, 3, 3)
    assert _network(paths=("raw", "wavelet")).stem[0].weight.shape == (16, 16, 3, 3)


def test_rows_of_the_wavelet_path_rise_in_frequency():
    path = WaveletPath(1, 1, 3, "db4").double()
    torch.nn.init.ones_(path.spatial.weight)
    line = torch.randn(96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tree = pywt.WaveletPacket(line.numpy(), "db4", mode="periodization", maxlevel=3)
    expected = np.stack([node.data for node in tree.get_level(3, order="freq")])
    np.testing.assert_allclose(path(line[None, None])[0, 0].detach().numpy(), expected, atol=1e-10)


def test_one_path_alone_works_and_holds_no_weights_of_the_others():
    for name in PATHS:
        network = _network(paths=(name,))
        assert network(*_inputs()).shape == (3, 8)
        assert list(network.paths) == [name]


def test_people_matter_only_with_subject_layers():
    data, positions, subject = _inputs()
    plain, people = _network(), _network(subject_layers=True)
    assert torch.equal(plain(data, positions, subject), plain(data, positions + 1, subject + 1))
    with torch.no_grad():
        people.people.weight[1] *= -2
    assert not torch.allclose(people(data, positions, subject), people(data, positions, subject + 1))


def test_wrong_settings_and_short_epochs_are_refused():
    with pytest.raises(ValueError, match="each path once"):
        _network(paths=("raw", "raw"))
    with pytest.raises(ValueError, match="at least 25 samples at 100 Hz, got 20"):
        _network(SignalShape(9, 20, 100.0, 1))
    assert _network(SignalShape(9, 20, 100.0, 1), paths=("raw",)) is not None
    with pytest.raises(ValueError, match="max_frequency is 40 Hz, expected at most 30"):
        _network(SignalShape(9, 50, 60.0, 1))
    with pytest.raises(ValueError, match="at least 1 item"):
        MultiPathConfig(paths=())


def _two_codes(n, generator):
    """Epochs that tell half of 16 numbers by evoked waves and half by the power of rhythms of random phase."""
    mixing = torch.randn(16, 12, generator=torch.Generator().manual_seed(7))
    times = torch.arange(64) / 100
    targets = torch.randn(n, 16, generator=generator)
    latency = torch.linspace(0.1, 0.5, 8)[:, None]
    waves = torch.exp(-0.5 * ((times - latency) / 0.03) ** 2) * torch.cos(40 * (times - latency))
    evoked = targets[:, :8, None] * waves
    phase = 2 * torch.pi * torch.rand(n, 8, 1, generator=generator)
    frequency = torch.linspace(10, 35, 8)[:, None]
    rhythm = torch.exp(0.5 * targets[:, 8:, None]) * torch.cos(2 * torch.pi * frequency * times + phase)
    sources = torch.cat((2 * evoked, 2 * rhythm), dim=1)
    data = torch.einsum("nst,sc->nct", sources, mixing) + 6 * torch.randn(n, 12, 64, generator=generator)
    return data / data.std(), functional.normalize(targets, dim=1)


def _top_5(paths):
    """Train on 1200 epochs, return the top-5 accuracy among 200 new ones (chance 2.5 %)."""
    shape, generator = SignalShape(12, 64, 100.0, 1), torch.Generator().manual_seed(3)
    data, targets = _two_codes(1400, generator)
    torch.manual_seed(0)
    network = MultiPath(MultiPathConfig(paths=paths, width=16, n_maps=8), shape, 16).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.1)
    positions, subject = torch.zeros(12, 2), torch.zeros(200).long()
    for _ in range(8):
        for batch in torch.randperm(1200).split(100):
            logits = 10 * functional.normalize(network(data[batch], positions, subject[:100]), dim=1) @ targets[batch].T
            optimizer.zero_grad()
            functional.cross_entropy(logits, torch.arange(100)).backward()
            optimizer.step()
    with torch.no_grad():
        scores = network.eval()(data[1200:], positions, subject) @ targets[1200:].T
    return float((scores > scores.diag()[:, None]).sum(1).lt(5).float().mean())


@pytest.mark.slow
def test_all_paths_together_are_at_least_as_good_as_the_best_alone():
    alone = {name: _top_5((name,)) for name in PATHS}
    together = _top_5(PATHS)
    assert together >= max(alone.values()) - 0.01, (alone, together)
    assert 0.3 <= max(alone.values()) <= 0.95
