"""LF-CNN and VAR-CNN: published counts, what only VAR sees, patterns of trained filters, learning trial by trial."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from alignment.fit import FitConfig, fit
from alignment.runtime import Runtime
from encoders.build import PRESETS, SignalShape
from encoders.interpret import patterns
from encoders.layers.constraints import penalties
from encoders.networks.lf_cnn import LFCNN, LFCNNConfig

PLACES = torch.zeros(1, 2)


def nobody(n):
    return torch.zeros(n, dtype=torch.int64)


@pytest.mark.parametrize(
    ("name", "shape", "n_outputs", "expected"),
    [
        ("lf_cnn", (271, 201), 10, 41_290),
        ("var_cnn", (271, 201), 10, 48_234),
        ("lf_cnn", (63, 100), 10, 18_314),
        ("var_cnn", (63, 100), 10, 25_258),
    ],
)
def test_published_parameter_counts(name, shape, n_outputs, expected):
    network = LFCNN(PRESETS[name], SignalShape(*shape, 125.0, 1), n_outputs)
    assert network.temporal.kernel_size == (7,) and network.pool == 2
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == expected


@pytest.mark.parametrize("name", ["lf_cnn", "var_cnn"])
def test_equals_the_layers_in_published_order(name):
    torch.manual_seed(0)
    network = LFCNN(LFCNNConfig(name=name), SignalShape(5, 41, 125.0, 1), 3).double().eval()
    data = torch.randn(2, 5, 41, dtype=torch.float64)
    maps = functional.relu(functional.conv1d(
        network.demix(data), network.temporal.weight, network.temporal.bias, padding=3,
        groups=32 if name == "lf_cnn" else 1,
    ))  # fmt: skip
    torch.testing.assert_close(network.latents(data, nobody(2)), maps)
    maps = functional.max_pool1d(functional.pad(maps, (0, 1), value=-torch.inf), 2)
    torch.testing.assert_close(network.tokens(data, PLACES, nobody(2)), maps.transpose(1, 2))
    torch.testing.assert_close(network(data, PLACES, nobody(2)), network.dense(maps.flatten(1)))


def test_starts_as_published():
    torch.manual_seed(0)
    network = LFCNN(LFCNNConfig(), SignalShape(60, 100, 125.0, 1), 10)
    for part, fan_in in ((network.demix, 60), (network.temporal, 7), (network.dense, 1600)):
        limit = (6 / fan_in) ** 0.5
        assert 0.9 * limit < float(part.weight.detach().abs().max()) <= limit
        assert torch.equal(part.bias, torch.full_like(part.bias, 0.1))


def test_penalty_is_the_l1_norm_of_weights_without_biases():
    network = LFCNN(LFCNNConfig(l1=0.5), SignalShape(5, 40, 125.0, 1), 3)
    weights = [network.demix.weight, network.temporal.weight, network.dense.weight]
    assert penalties(network).item() == pytest.approx(0.5 * sum(float(w.detach().abs().sum()) for w in weights))


@pytest.mark.parametrize(("sfreq", "expected"), [(125.0, (7, 2)), (200.0, (11, 3)), (100.0, (6, 2))])
def test_kernels_keep_their_duration(sfreq, expected):
    network = LFCNN(LFCNNConfig(), SignalShape(5, 40, sfreq, 1), 3)
    assert (network.temporal.kernel_size[0], network.pool) == expected


def test_too_short_epochs_are_refused_with_the_length_needed():
    with pytest.raises(ValueError, match="var_cnn needs epochs of at least 7 samples at 125 Hz, got 6"):
        LFCNN(LFCNNConfig(name="var_cnn"), SignalShape(5, 6, 125.0, 1), 3)


def trained(network, data, labels, n_steps, tmp_path, lr=3e-3, batch_size=64):
    """Train by cross-entropy and the network's own penalty, in the project's loop."""

    def batch_at(step, rank, world):
        rows = torch.from_numpy(np.random.default_rng(step).integers(len(data), size=batch_size))
        return data[rows], labels[rows]

    def loss(module, batch):
        logits = module(batch[0], PLACES, nobody(len(batch[0])))
        return functional.cross_entropy(logits, batch[1]) + penalties(module)

    config = FitConfig(max_steps=n_steps, lr=lr)
    fit(network, loss, batch_at, config, Runtime(device="cpu"), tmp_path, progress=False)
    return network.eval()


@torch.no_grad()
def accuracy(network, data, labels):
    return float((network(data, PLACES, nobody(len(data))).argmax(1) == labels).float().mean())


def phase_lag(n, seed):
    """Two sources oscillate at 10 Hz with a random phase; the class is which of them leads by a quarter cycle."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(2, size=n)
    times = np.arange(64) / 125
    phase = generator.uniform(0, 2 * np.pi, size=(n, 1))
    lag = np.where(labels == 0, 1, -1)[:, None] * np.pi / 2
    sources = np.stack([np.cos(2 * np.pi * 10 * times + phase), np.cos(2 * np.pi * 10 * times + phase + lag)], axis=1)
    mixing = np.random.default_rng(0).standard_normal((8, 2))
    data = mixing @ sources + 0.5 * generator.standard_normal((n, 8, 64))
    return torch.from_numpy(data.astype(np.float32)), torch.from_numpy(labels)


def test_var_sees_which_source_leads_and_lf_does_not(tmp_path):
    data, labels = phase_lag(1024, seed=1)
    held_out = phase_lag(400, seed=2)
    found = {}
    for name in ("lf_cnn", "var_cnn"):
        torch.manual_seed(0)
        network = LFCNN(LFCNNConfig(name=name, n_latents=8, kernel=0.104, dropout=0.2), SignalShape(8, 64, 125.0, 1), 2)
        found[name] = accuracy(trained(network, data, labels, 250, tmp_path / name), *held_out)
    assert found["var_cnn"] - found["lf_cnn"] >= 0.15, found
    assert found["lf_cnn"] < 0.65 and found["var_cnn"] > 0.8, found


def evoked(n, seed, shift=0.0, strength=2.0):
    """One source answers early or late by class; three louder sources and sensor noise do not care."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(2, size=n)
    world = np.random.default_rng(7)
    topography, others = world.standard_normal(16), 2 * world.standard_normal((16, 3))
    times = np.arange(40) / 125
    response = np.exp(-0.5 * ((times - 0.1 - 0.1 * labels[:, None] - shift) / 0.025) ** 2)
    noise = others @ generator.standard_normal((n, 3, 40)) + 0.7 * generator.standard_normal((n, 16, 40))
    data = (strength * topography[:, None] * response[:, None, :] + noise) / 4
    return torch.from_numpy(data.astype(np.float32)), torch.from_numpy(labels), topography


def test_patterns_of_a_trained_network_are_the_sources_topography(tmp_path):
    data, labels, topography = evoked(800, seed=1)
    torch.manual_seed(0)
    network = LFCNN(LFCNNConfig(n_latents=4), SignalShape(16, 40, 125.0, 1), 2)
    network = trained(network, data, labels, 250, tmp_path)
    filters = network.spatial_filters.detach().numpy()
    found = patterns(filters, data.numpy())
    with torch.no_grad():  # the latent whose features separate the classes most
        effect = network.dense.weight[1] - network.dense.weight[0]
        features = network.tokens(data, PLACES, nobody(len(data))).transpose(1, 2)
        gap = (features[labels == 1].mean(0) - features[labels == 0].mean(0)) * effect.view(4, -1)
        best = int(gap.sum(1).argmax())
    cosine = found[:, best] @ topography / np.linalg.norm(found[:, best]) / np.linalg.norm(topography)
    assert abs(cosine) >= 0.9
    raw = filters[best] @ topography / np.linalg.norm(filters[best]) / np.linalg.norm(topography)
    assert abs(raw) < abs(cosine)  # the filter itself also avoids the louder sources


def test_one_gradient_step_per_trial_does_not_lower_held_out_accuracy(tmp_path):
    data, labels, _ = evoked(600, seed=1, strength=1.0)
    new, new_labels, _ = evoked(150, seed=2, shift=0.04, strength=1.0)
    held_out, held_out_labels, _ = evoked(600, seed=3, shift=0.04, strength=1.0)
    torch.manual_seed(0)
    network = LFCNN(LFCNNConfig(n_latents=4, dropout=0.2), SignalShape(16, 40, 125.0, 1), 2)
    network = trained(network, data, labels, 150, tmp_path / "before")
    before = accuracy(network, held_out, held_out_labels)
    step_of = {"config": FitConfig(max_steps=len(new), lr=3e-4, schedule="constant")}

    def loss(module, batch):
        return functional.cross_entropy(module(batch[0], PLACES, nobody(1)), batch[1]) + penalties(module)

    fit(
        network, loss, lambda step, *_: (new[step : step + 1], new_labels[step : step + 1]), step_of["config"],
        Runtime(device="cpu"), tmp_path / "online", progress=False,
    )  # fmt: skip
    after = accuracy(network.eval(), held_out, held_out_labels)
    assert after >= before, (before, after)
    assert 0.55 < before < 1  # there was something to learn and something to lose
