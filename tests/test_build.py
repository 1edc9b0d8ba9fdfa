"""Gates that every encoder of the union passes: shapes, gradients, independence, overfitting, round trips."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.nn import functional

from encoders.build import PRESETS, EncoderConfig, SignalShape, build_encoder
from encoders.networks.atm import ATM50Config, ATMConfig
from encoders.networks.brain_module import BrainModuleConfig
from encoders.networks.deep_conv_net import DeepConvNetConfig
from encoders.networks.eeg_project import EEGProjectConfig
from encoders.networks.eegnet import EEGNetConfig
from encoders.networks.eegnet_ssvep import EEGNetSSVEPConfig
from encoders.networks.eegnet_v1 import EEGNetV1Config
from encoders.networks.hybrid import HybridConfig
from encoders.networks.lf_cnn import LFCNNConfig
from encoders.networks.lstm_cnn import LSTMCNNConfig
from encoders.networks.multi_path import MultiPathConfig
from encoders.networks.query_decoder import QueryDecoderConfig
from encoders.networks.shallow_conv_net import ShallowConvNetConfig
from encoders.networks.spatio_temporal_transformer import SpatioTemporalTransformerConfig
from encoders.networks.stgate import STGATEConfig
from encoders.networks.ts_conv import TSConvConfig
from encoders.networks.wavelet_cnn import WaveletCNNConfig

SMALL = {
    "atm": ATMConfig(width=100, feedforward=32, n_filters=16),
    "atm_50": ATM50Config(width=100, feedforward=64, n_filters=16),
    "brain_module": BrainModuleConfig(n_virtual=16, fourier_width=32, width=24, n_convs=4, head_width=32),
    "brain_module_linear_time": BrainModuleConfig(
        n_virtual=16, fourier_width=32, width=24, n_convs=2, head_width=32, time_agg="linear"
    ),
    "brain_module_attention": BrainModuleConfig(
        n_virtual=16, fourier_width=32, width=24, n_convs=2, head_width=32, time_agg="attention"
    ),
    "brain_module_causal": BrainModuleConfig(
        n_virtual=16, fourier_width=32, width=24, n_convs=2, head_width=32, time_agg="linear", causal=True
    ),
    "brain_module_demo": PRESETS["brain_module_demo"],
    "query_decoder": QueryDecoderConfig(width=32, n_heads=8, feedforward=32),
    "query_decoder_people": QueryDecoderConfig(
        width=32, n_heads=8, feedforward=32, encoder_layers=1, subject_layers=True, dropout=0.1
    ),
    "ts_conv": TSConvConfig(),
    "ts_conv_causal": PRESETS["ts_conv_causal"],
    "ts_conv_people": PRESETS["ts_conv_people"],
    "ts_conv_neurobridge": PRESETS["ts_conv_neurobridge"],
    "ts_conv_ubp": PRESETS["ts_conv_ubp"],
    "eeg_project": EEGProjectConfig(),
    "eeg_project_people": PRESETS["eeg_project_people"],
    "deep_conv_net": DeepConvNetConfig(dropout=0.1),
    "eegnet": EEGNetConfig(dropout=0.1, norm_momentum=0.1),
    "eegnet_embed": PRESETS["eegnet_embed"],
    "eegnet_ssvep": EEGNetSSVEPConfig(n_filters=32, subject_layers=True),
    "eegnet_v1": EEGNetV1Config(subject_layers=True),
    "lf_cnn": LFCNNConfig(subject_layers=True),
    "shallow_conv_net": ShallowConvNetConfig(subject_layers=True),
    "var_cnn": LFCNNConfig(name="var_cnn"),
    "lstm_cnn": LSTMCNNConfig(hidden=24, layers=1),
    "cnn_lstm": LSTMCNNConfig(name="cnn_lstm", hidden=24, layers=1),
    "lstm_cnn_causal": LSTMCNNConfig(hidden=24, layers=1, causal=True),
    "cnn_lstm_attention": LSTMCNNConfig(name="cnn_lstm", hidden=24, layers=1, bidirectional=True, pooling="attention"),
    "multi_path": MultiPathConfig(width=8, n_maps=4),
    "wavelet_cnn": WaveletCNNConfig(width=16),
    "wavelet_cnn_attention": WaveletCNNConfig(wavelet="db2", width=16, attention_heads=2, subject_layers=True),
    "gat": HybridConfig(name="gat", width=16, heads=2, neighbours="learned"),
    "cnn_gat": HybridConfig(name="cnn_gat", width=16, heads=2, n_filters=8),
    "transformer_gat": HybridConfig(name="transformer_gat", width=16, heads=2, layers=1),
    "cnn_transformer": HybridConfig(name="cnn_transformer", width=16, heads=2, layers=1, subject_layers=True),
    "cnn_transformer_causal": HybridConfig(name="cnn_transformer", width=16, heads=2, layers=1, causal=True),
    "transformer_cnn": HybridConfig(name="transformer_cnn", width=16, heads=2, layers=1),
    "cnn_transformer_gat": HybridConfig(name="cnn_transformer_gat", width=16, heads=2, layers=1, n_filters=12),
    "wavelet_cnn_gat": HybridConfig(name="wavelet_cnn_gat", width=16, heads=2, n_filters=8),
    "spatio_temporal_transformer": SpatioTemporalTransformerConfig(
        width=16, spatial_layers=1, temporal_layers=1, n_virtual=16, subject_layers=True
    ),
    "spatio_temporal_transformer_bands": SpatioTemporalTransformerConfig(
        features="band_power", window=0.25, width=16, spatial_layers=1, temporal_layers=1, n_virtual=16
    ),
    "stgate": STGATEConfig(width=16, heads=4, layers=1, subject_layers=True),
}
EVERY = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
SHAPE = SignalShape(17, 64, 100.0, 3)


def _batch(shape, n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(n, shape.n_channels, shape.n_times, generator=generator)
    positions = torch.rand(shape.n_channels, 2, generator=generator)
    return data, positions, torch.arange(n) % shape.n_subjects


@pytest.mark.parametrize("embed_dim", [512, 768, 1024])
@pytest.mark.parametrize(
    "shape",
    [
        SignalShape(63, 100, 100.0, 2),
        SignalShape(63, 275, 250.0, 2),
        SignalShape(17, 250, 250.0, 2),
        SignalShape(271, 201, 200.0, 2),
    ],
    ids=lambda shape: f"{shape.n_channels}x{shape.n_times}",
)
@EVERY
def test_g1_shapes(config, shape, embed_dim):
    torch.manual_seed(0)
    data, positions, subject = _batch(shape, n=2)
    out = build_encoder(config, shape, embed_dim).eval()(data, positions, subject)
    assert out.shape == (2, embed_dim) and out.dtype == torch.float32 and out.isfinite().all()


@EVERY
def test_g2_every_parameter_learns(config):
    torch.manual_seed(0)
    network = build_encoder(config, SHAPE, 32).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    seen = {name: 0.0 for name, _ in network.named_parameters()}
    for seed in range(3):  # branches that start at zero pass gradient on from the second step
        optimizer.zero_grad()
        data, positions, subject = _batch(SHAPE, n=12, seed=seed)
        out = network(data, positions, subject)
        functional.mse_loss(out, torch.randn(out.shape)).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            seen[name] += float(parameter.grad.abs().sum())
        optimizer.step()
    assert all(total > 0 for total in seen.values()), [name for name, total in seen.items() if total == 0]


@EVERY
def test_g2_batch_mates_have_no_influence(config):
    torch.manual_seed(0)
    network = build_encoder(config, SHAPE, 32).eval()
    data, positions, subject = _batch(SHAPE, n=6)
    mates = data.clone()
    mates[1:] = 100 * torch.randn_like(mates[1:])
    alone = network(data[:1], positions, subject[:1])
    torch.testing.assert_close(network(data, positions, subject)[:1], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network(mates, positions, subject)[:1], alone, atol=1e-5, rtol=1e-5)


@EVERY
def test_g3_overfits_64_epochs(config):
    torch.manual_seed(0)
    network = build_encoder(config, SHAPE, 32).train()
    data, positions, subject = _batch(SHAPE, n=64)
    targets = functional.normalize(torch.randn(64, 32), dim=-1)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    accuracy, step = 0.0, 0
    while accuracy < 0.95 and step < 400:
        optimizer.zero_grad()
        logits = 20 * functional.normalize(network(data, positions, subject), dim=-1) @ targets.T
        functional.cross_entropy(logits, torch.arange(64)).backward()
        optimizer.step()
        step += 1
        if step % 20 == 0:
            with torch.no_grad():
                found = (network.eval()(data, positions, subject) @ targets.T).argmax(-1)
            accuracy = float((found == torch.arange(64)).float().mean())
            network.train()
    assert accuracy >= 0.95, step


@EVERY
def test_g5_state_round_trip_and_seed(config):
    data, positions, subject = _batch(SHAPE)
    torch.manual_seed(3)
    first = build_encoder(config, SHAPE, 32).eval()
    torch.manual_seed(3)
    second = build_encoder(config, SHAPE, 32).eval()
    assert torch.equal(first(data, positions, subject), second(data, positions, subject))
    torch.manual_seed(4)
    third = build_encoder(config, SHAPE, 32).eval()
    third.load_state_dict(first.state_dict())
    assert torch.equal(first(data, positions, subject), third(data, positions, subject))


@EVERY
def test_unknown_person_is_accepted(config):
    torch.manual_seed(0)
    network = build_encoder(config, SHAPE, 32).eval()
    data, positions, _ = _batch(SHAPE)
    assert network(data, positions, torch.full((4,), SHAPE.n_subjects)).isfinite().all()


@EVERY
def test_networks_follow_the_dtype_of_their_weights(config):
    network = build_encoder(config, SHAPE, 32).eval().double()
    data, positions, subject = _batch(SHAPE)
    assert network(data.double(), positions.double(), subject).dtype == torch.float64


def test_configs_survive_json_and_are_told_apart_by_name():
    adapter = TypeAdapter(EncoderConfig)
    for config in PRESETS.values():
        assert adapter.validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="brain_module"):
        adapter.validate_python({"name": "unknown"})
    with pytest.raises(ValidationError, match="extra"):
        adapter.validate_python({"name": "ts_conv", "widht": 3})


def test_every_preset_builds():
    for config in PRESETS.values():
        assert build_encoder(config, SHAPE, 32) is not None


@pytest.mark.slow
@pytest.mark.parametrize("shape", [SignalShape(63, 250, 250.0, 2), SignalShape(271, 201, 200.0, 2)], ids=["eeg", "meg"])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_full_sizes_embed_and_learn(preset, shape):
    torch.manual_seed(0)
    data, positions, subject = _batch(shape, n=4)
    network = build_encoder(PRESETS[preset], shape, 1024)
    out = network.train()(data, positions, subject)
    functional.mse_loss(out, torch.randn(out.shape)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)
    out = network.eval()(data, positions, subject)
    assert out.shape == (4, 1024) and out.isfinite().all()
