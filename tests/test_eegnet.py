"""EEGNet against its published sizes and an independent re-computation."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate

from encoders.build import PRESETS, SignalShape, build_encoder
from encoders.layers.constraints import apply_constraints
from encoders.networks.eegnet import EEGNetConfig, same_padded


def n_trainable(network):
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(("n_channels", "n_times", "n_classes", "expected"), [(64, 128, 4, 2388), (22, 512, 4, 2484)])
def test_parameter_counts_are_the_published_ones(n_channels, n_times, n_classes, expected):
    shape = SignalShape(n_channels, n_times, 128.0, 1)
    assert n_trainable(build_encoder(EEGNetConfig(), shape, n_classes)) == expected


def test_an_even_kernel_pads_one_sample_more_on_the_right():
    padded = same_padded(torch.ones(1, 1, 128), 64)
    assert padded.shape[-1] == 128 + 63
    assert int((padded[0, 0] == 0).nonzero()[30]) == 30 and float(padded[0, 0, 31]) == 1.0
    assert torch.equal(padded[0, 0, -32:], torch.zeros(32)) and float(padded[0, 0, -33]) == 1.0


def reference(network, data):
    """Recompute the network in eval mode with numpy loops over layers, float64."""
    weights = {name: value.detach().double().numpy() for name, value in network.state_dict().items()}

    def norm(maps, name):
        shape = (1, -1) + (1,) * (maps.ndim - 2)
        parts = (weights[f"{name}.{part}"].reshape(shape) for part in ("running_mean", "running_var", "weight", "bias"))
        mean, variance, scale, offset = parts
        return (maps - mean) / np.sqrt(variance + 1e-3) * scale + offset

    def elu(maps):
        return np.where(maps > 0, maps, np.expm1(np.minimum(maps, 0)))

    def pool(maps, size):
        n = maps.shape[-1] // size
        return maps[..., : n * size].reshape(*maps.shape[:-1], n, size).mean(-1)

    def filtered(signal, taps):
        padded = np.pad(signal, ((len(taps) - 1) // 2, len(taps) // 2))
        return correlate(padded, taps, mode="valid")

    temporal = weights["temporal.weight"][:, 0]
    maps = np.stack([[[filtered(row, taps) for row in epoch] for taps in temporal] for epoch in data])
    maps = norm(maps, "temporal_norm")
    spatial = weights["spatial.weight"][:, 0, :, 0]
    depth = len(spatial) // len(temporal)
    maps = np.stack([np.einsum("c,bct->bt", row, maps[:, i // depth]) for i, row in enumerate(spatial)], axis=1)
    maps = pool(elu(norm(maps, "spatial_norm")), 4)
    separable = weights["separable.weight"][:, 0]
    maps = np.stack([[filtered(row, taps) for row, taps in zip(one, separable, strict=True)] for one in maps])
    maps = np.einsum("oi,bit->bot", weights["pointwise.weight"][..., 0], maps)
    maps = pool(elu(norm(maps, "separable_norm")), 8)
    # features are step by step in ours
    flat = maps.transpose(0, 2, 1).reshape(len(maps), -1)
    return flat @ weights["head.weight"].T + weights["head.bias"]


def test_the_network_is_what_its_layers_say():
    torch.manual_seed(0)
    network = build_encoder(EEGNetConfig(kernel=0.25), SignalShape(5, 96, 128.0, 1), 7).double()
    for part in network.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(part.weight)
            torch.nn.init.normal_(part.bias)
    data = torch.randn(3, 5, 96, dtype=torch.float64)
    found = network.eval()(data, torch.zeros(5, 2), torch.zeros(3, dtype=torch.int64))
    np.testing.assert_allclose(found.detach().numpy(), reference(network, data.numpy()), atol=1e-9)


def test_the_order_used_for_inference_is_the_same_function():
    torch.manual_seed(0)
    network = build_encoder(EEGNetConfig(), SignalShape(9, 64, 100.0, 1), 8).double().train()
    data = torch.randn(16, 9, 64, dtype=torch.float64)
    network.temporal_norm.momentum = 1.0  # running statistics become those of this batch
    with torch.no_grad():
        trained = network._filtered(data)
        network.temporal_norm.running_var *= (16 * 9 * 64 - 1) / (16 * 9 * 64)  # torch stores the unbiased variance
        torch.testing.assert_close(network.eval()._filtered(data), trained, atol=1e-9, rtol=1e-9)


def test_max_norms_hold_after_a_step():
    network = build_encoder(EEGNetConfig(), SignalShape(9, 64, 100.0, 1), 8)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(10 * torch.randn_like(parameter))
    apply_constraints(network)
    assert float(network.spatial.weight.detach().flatten(1).norm(dim=1).max()) <= 1 + 1e-6
    assert float(network.head.weight.detach().norm(dim=1).max()) <= 0.25 + 1e-6


def test_kernels_scale_with_the_sampling_rate():
    taps = [
        build_encoder(EEGNetConfig(), SignalShape(4, 128, sfreq, 1), 3).temporal.kernel_size[0]
        for sfreq in (100.0, 128.0, 250.0)
    ]
    assert taps == [50, 64, 125]


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="eegnet needs epochs of at least 32 samples, got 31; lengthen"):
        build_encoder(EEGNetConfig(), SignalShape(4, 31, 100.0, 1), 3)
    assert PRESETS["eegnet_embed"].n_temporal * PRESETS["eegnet_embed"].depth == 64
