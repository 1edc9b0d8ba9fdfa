import torch

from encoders.build import SignalShape, build_encoder
from encoders.networks.eegnet_ssvep import EEGNetSSVEPConfig


def test_sizes_are_the_published_ones():
    # 8 occipital channels, 1 s at 256 Hz, 12 frequencies
    network = build_encoder(EEGNetSSVEPConfig(), SignalShape(8, 256, 256.0, 1), 12)
    parts = {"temporal": 96 * 256, "spatial": 96 * 8, "separable": 96 * 16, "pointwise": 96 * 96}
    for name, expected in parts.items():
        assert sum(p.numel() for p in getattr(network, name).parameters()) == expected, name
    assert sum(p.numel() for p in network.parameters()) == sum(parts.values()) + 3 * 2 * 96 + (96 * 8 + 1) * 12
    assert network.head.max_norm == float("inf")


def test_the_dense_layer_has_no_limit():
    network = build_encoder(EEGNetSSVEPConfig(n_filters=4), SignalShape(3, 64, 100.0, 1), 5)
    with torch.no_grad():
        network.head.weight.fill_(100.0)
    from encoders.layers.constraints import apply_constraints

    apply_constraints(network)
    assert torch.equal(network.head.weight, torch.full_like(network.head.weight, 100.0))
