"""The SSVEP sizes of EEGNet: published counts, and a dense layer without a limit."""

import pytest
import torch

from encoders.build import SignalShape, build_encoder
from encoders.layers.constraints import apply_constraints
from encoders.networks.eegnet_ssvep import EEGNetSSVEPConfig


def test_parameter_count_is_that_of_the_layers():
    # 8 occipital channels, 1 s at 256 Hz, 12 frequencies
    network = build_encoder(EEGNetSSVEPConfig(), SignalShape(8, 256, 256.0, 1), 12)
    layers = 96 * 256 + 96 * 8 + 96 * 16 + 96 * 96
    assert sum(p.numel() for p in network.parameters()) == layers + 3 * 2 * 96 + (96 * 8 + 1) * 12 == 45_900


def test_the_dense_layer_has_no_limit_and_the_spatial_filters_have():
    network = build_encoder(EEGNetSSVEPConfig(n_filters=4), SignalShape(3, 64, 256.0, 1), 5)
    with torch.no_grad():
        network.dense.weight.fill_(100.0)
        network.blocks.bank.spatial.weight.fill_(100.0)
    apply_constraints(network)
    assert torch.equal(network.dense.weight, torch.full_like(network.dense.weight, 100.0))
    assert float(network.blocks.bank.spatial.weight.detach().flatten(1).norm(dim=1).max()) <= 1 + 1e-6


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least 32 samples at 256 Hz, got 31; lengthen"):
        build_encoder(EEGNetSSVEPConfig(), SignalShape(8, 31, 256.0, 1), 12)
