"""EEGNet: published parameter counts, every layer against a re-computation in numpy and scipy, limits on filters."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate
from scipy.special import expm1

from alignment.fit import FitConfig, fit
from alignment.runtime import Runtime
from encoders.build import PRESETS, SignalShape
from encoders.networks.eegnet import EEGNet, EEGNetConfig


def inputs(shape, n=3):
    return torch.randn(n, shape.n_channels, shape.n_times), torch.rand(shape.n_channels, 2), torch.zeros(n).long()


@pytest.mark.parametrize(("n_channels", "n_times", "expected"), [(64, 128, 2_388), (22, 512, 2_484)])
def test_published_parameter_counts(n_channels, n_times, expected):
    network = EEGNet(EEGNetConfig(), SignalShape(n_channels, n_times, 128.0, 1), 4)
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == expected


def normed(maps, norm):
    scale = norm.weight.detach().numpy() / np.sqrt(norm.running_var.numpy() + 1e-3)
    return (maps - norm.running_mean.numpy()[:, None]) * scale[:, None] + norm.bias.detach().numpy()[:, None]


def elu(x):
    return np.where(x > 0, x, expm1(np.minimum(x, 0)))


def pooled(maps, n):
    keep = maps.shape[-1] // n * n
    return maps[..., :keep].reshape(*maps.shape[:-1], -1, n).mean(-1)


def same(series, taps):
    """Keras' "same": of an even kernel's zeros one more stands after the signal than before."""
    before = (len(taps) - 1) // 2
    return correlate(np.pad(series, (before, len(taps) - 1 - before)), taps, "valid")


def test_every_layer_equals_a_recomputation_with_scipy():
    torch.manual_seed(0)
    network = EEGNet(EEGNetConfig(), SignalShape(6, 128, 128.0, 1), 4).double()
    data, positions, subject = inputs(SignalShape(6, 128, 128.0, 1), n=2)
    data = data.double()
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(part.weight)
            torch.nn.init.normal_(part.bias)
    for _ in range(3):
        network.train()(data, positions, subject)  # running statistics away from 0 and 1
    network.eval()
    blocks = network.blocks
    temporal, spatial = (part.weight.detach().numpy() for part in (blocks.bank.temporal, blocks.bank.spatial))
    depthwise, pointwise = (part.weight.detach().numpy() for part in (blocks.depthwise, blocks.pointwise))
    assert temporal.shape == (8, 1, 64) and spatial.shape == (16, 1, 6, 1) and depthwise.shape == (16, 1, 16)
    expected = []
    for epoch in data.numpy():
        bank = np.stack([[same(row, taps[0]) for row in epoch] for taps in temporal])  # (8, 6, 128)
        bank = normed(bank.reshape(8, -1), blocks.bank.norm).reshape(bank.shape)
        maps = np.stack([spatial[k, 0, :, 0] @ bank[k // 2] for k in range(16)])
        found = blocks.bank(data).detach().numpy()[len(expected)]
        np.testing.assert_allclose(found, maps, atol=1e-10)
        maps = pooled(elu(normed(maps, blocks.bank_norm)), 4)
        maps = pointwise[:, :, 0] @ np.stack([same(row, taps[0]) for row, taps in zip(maps, depthwise, strict=True)])
        maps = elu(normed(maps, blocks.separable_norm))
        tokens = network.tokens(data, positions, subject).detach().numpy()[len(expected)]
        np.testing.assert_allclose(tokens, maps.T, atol=1e-10)
        dense = network.dense
        expected.append(dense.weight.detach().numpy() @ pooled(maps, 8).ravel() + dense.bias.detach().numpy())
    np.testing.assert_allclose(network(data, positions, subject).detach().numpy(), np.stack(expected), atol=1e-10)


def test_filters_stay_inside_their_limits_after_every_step(tmp_path):
    torch.manual_seed(0)
    shape = SignalShape(5, 64, 100.0, 1)
    network = EEGNet(EEGNetConfig(dropout=0.0), shape, 3)
    data, positions, subject = inputs(shape, n=8)
    longest = []

    def note(step, numbers):
        spatial, dense = network.blocks.bank.spatial.weight.detach(), network.dense.weight.detach()
        longest.append((float(spatial.flatten(1).norm(dim=1).max()), float(dense.norm(dim=1).max())))

    def loss(module, batch):
        return (module(batch, positions, subject) - 50).square().mean()

    config = FitConfig(max_steps=6, lr=0.5, grad_clip=1e6)
    fit(network, loss, lambda *_: data, config, Runtime(device="cpu"), tmp_path, on_step=note, progress=False)
    assert max(one for one, _ in longest) <= 1 + 1e-6 and max(one for _, one in longest) <= 0.25 + 1e-6
    assert max(one for one, _ in longest) > 0.99 and max(one for _, one in longest) > 0.24


@pytest.mark.parametrize(
    ("sfreq", "expected"), [(128.0, (64, 4, 16, 8)), (256.0, (128, 8, 16, 8)), (100.0, (50, 3, 17, 8))]
)
def test_kernels_keep_their_duration(sfreq, expected):
    network = EEGNet(EEGNetConfig(), SignalShape(5, 256, sfreq, 1), 3)
    blocks = network.blocks
    sizes = (blocks.bank.temporal.kernel_size[0], blocks.pool, blocks.depthwise.kernel_size[0], network.second_pool)
    assert sizes == expected


def test_batch_norm_is_that_of_keras():
    for part in EEGNet(EEGNetConfig(), SignalShape(5, 64, 100.0, 1), 3).modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            assert (part.eps, part.momentum) == (1e-3, 0.01)


def test_too_short_epochs_are_refused_with_the_length_needed():
    with pytest.raises(ValueError, match="at least 32 samples at 128 Hz, got 31"):
        EEGNet(EEGNetConfig(), SignalShape(5, 31, 128.0, 1), 3)
    EEGNet(EEGNetConfig(), SignalShape(5, 32, 128.0, 1), 3)


def test_embedding_preset_and_tokens():
    shape = SignalShape(63, 64, 100.0, 4)
    network = EEGNet(PRESETS["eegnet_embed"], shape, 128).eval()
    assert network.blocks.bank.temporal.weight.shape[0] == 16 and network.blocks.bank.spatial.weight.shape[0] == 64
    assert network.tokens(*inputs(shape)).shape == (3, 21, network.token_width)


def test_people_matter_only_with_subject_layers():
    torch.manual_seed(0)
    shape = SignalShape(5, 64, 100.0, 2)
    data, positions, subject = inputs(shape)
    plain = EEGNet(EEGNetConfig(), shape, 8).eval()
    assert torch.equal(plain(data, positions, subject), plain(data, positions + 1, subject + 1))
    people = EEGNet(EEGNetConfig(subject_layers=True), shape, 8).eval()
    with torch.no_grad():
        people.people.weight[1] *= -1
    assert not torch.allclose(people(data, positions, subject), people(data, positions, subject + 1))
