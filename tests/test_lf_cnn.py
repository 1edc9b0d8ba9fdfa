"""LF-CNN and VAR-CNN: published sizes, what each can tell apart, readable filters, adaptation on-line."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from encoders.build import SignalShape, build_encoder
from encoders.interpret import patterns
from encoders.networks.lf_cnn import LFCNNConfig, VARCNNConfig

COUNTS = [
    (LFCNNConfig(), 271, 201, 41_290),
    (VARCNNConfig(), 271, 201, 48_234),
    (LFCNNConfig(), 63, 100, 18_314),
    (VARCNNConfig(), 63, 100, 25_258),
]


@pytest.mark.parametrize(("config", "n_channels", "n_times", "expected"), COUNTS)
def test_parameter_counts_are_the_published_ones(config, n_channels, n_times, expected):
    network = build_encoder(config, SignalShape(n_channels, n_times, 200.0, 1), 10)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_penalty_is_the_l1_norm_of_weights_without_biases():
    network = build_encoder(LFCNNConfig(l1=0.5), SignalShape(3, 32, 100.0, 1), 4)
    weights = (network.demix.weight, network.temporal.weight, network.head.weight)
    torch.testing.assert_close(network.penalty(), 0.5 * sum(weight.abs().sum() for weight in weights))


def train(network, data, labels, n_steps, lr=3e-3):
    positions, subject = torch.zeros(data.shape[1], 2), torch.zeros(len(data), dtype=torch.int64)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    network.train()
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(data, positions, subject), labels) + network.penalty()
        loss.backward()
        optimizer.step()
    return network.eval()


def accuracy(network, data, labels):
    positions, subject = torch.zeros(data.shape[1], 2), torch.zeros(len(data), dtype=torch.int64)
    with torch.no_grad():
        return float((network(data, positions, subject).argmax(1) == labels).float().mean())


def planted(n, generator, noise):
    """Make epochs whose class is whether one source is active; noise is shared by neighbouring sensors."""
    n_channels, n_times = 12, 40
    rng = np.random.default_rng(generator)
    place = np.arange(n_channels)
    topography = np.exp(-0.5 * ((place - 4) / 1.5) ** 2)
    labels = rng.integers(0, 2, n)
    course = np.sin(2 * np.pi * 8 * np.arange(n_times) / 100 + rng.uniform(0, 2 * np.pi, n)[:, None])
    smooth = np.exp(-0.5 * ((place[:, None] - place) / 2.0) ** 2)
    back = np.einsum("cd,ndt->nct", smooth, rng.standard_normal((n, n_channels, n_times)))
    data = labels[:, None, None] * topography[None, :, None] * course[:, None] * 3 + noise * back
    return torch.from_numpy(data.astype("f")), torch.from_numpy(labels), topography


def test_the_pattern_of_the_best_latent_source_is_the_true_topography():
    torch.manual_seed(0)
    data, labels, topography = planted(400, 0, 0.7)
    network = build_encoder(LFCNNConfig(n_latent=4, dropout=0.2), SignalShape(12, 40, 100.0, 1), 2)
    train(network, data, labels, 150)
    held, held_labels, _ = planted(400, 1, 0.7)
    assert accuracy(network, held, held_labels) > 0.9
    found = patterns(data.numpy(), network.spatial_filters.detach().numpy())
    unit = topography / np.linalg.norm(topography)
    assert np.abs(found @ unit).max() >= 0.9


def phase_lagged(n, seed):
    """Make epochs of two sources of equal power, one following the other by +-90 degrees; the sign is the class."""
    rng = np.random.default_rng(seed)
    n_channels, n_times = 8, 60
    mixing = np.linalg.qr(np.random.default_rng(9).standard_normal((n_channels, 2)))[0]
    labels = rng.integers(0, 2, n)
    phase = rng.uniform(0, 2 * np.pi, n)[:, None] + 2 * np.pi * 12 * np.arange(n_times) / 100
    lag = np.where(labels == 1, np.pi / 2, -np.pi / 2)[:, None]
    sources = np.stack([np.sin(phase), np.sin(phase + lag)], axis=1)
    data = np.einsum("cs,nst->nct", mixing, sources) + 0.1 * rng.standard_normal((n, n_channels, n_times))
    return torch.from_numpy(data.astype("f")), torch.from_numpy(labels)


def test_var_tells_a_phase_lag_that_lf_cannot():
    data, labels = phase_lagged(600, 0)
    held, held_labels = phase_lagged(600, 1)
    found = {}
    for name, config in (("lf", LFCNNConfig(n_latent=2, l1=0)), ("var", VARCNNConfig(n_latent=2, l1=0))):
        scores = []
        for seed in range(3):
            torch.manual_seed(seed)
            sizes = config.model_copy(update={"dropout": 0.0})
            network = build_encoder(sizes, SignalShape(8, 60, 100.0, 1), 2)
            scores.append(accuracy(train(network, data, labels, 200, lr=1e-2), held, held_labels))
        found[name] = max(scores)
    assert found["var"] >= found["lf"] + 0.15, found


def test_adapting_trial_by_trial_does_not_lower_accuracy():
    torch.manual_seed(0)
    data, labels, _ = planted(200, 0, 1.0)
    stream, stream_labels, _ = planted(200, 1, 1.0)
    held, held_labels, _ = planted(400, 2, 1.0)
    network = build_encoder(LFCNNConfig(n_latent=8, dropout=0.2), SignalShape(12, 40, 100.0, 1), 2)
    before = accuracy(train(network, data, labels, 60), held, held_labels)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    for row in range(len(stream)):
        optimizer.zero_grad()
        answer = network(stream[row : row + 1], torch.zeros(12, 2), torch.zeros(1, dtype=torch.int64))
        functional.cross_entropy(answer, stream_labels[row : row + 1]).backward()
        optimizer.step()
    assert accuracy(network, held, held_labels) >= before - 0.01
