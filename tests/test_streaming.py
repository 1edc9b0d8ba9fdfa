import pytest
import torch

from encoders.build import PRESETS, SignalShape, build_encoder
from encoders.networks.brain_module import BrainModuleConfig
from encoders.networks.hybrid import HybridConfig
from encoders.networks.lstm_cnn import LSTMCNNConfig
from encoders.networks.ts_conv import TSConvConfig
from encoders.streaming import StreamingEncoder

SHAPE = SignalShape(17, 64, 100.0, 3)
SMALL = {"n_virtual": 16, "fourier_width": 32, "width": 24, "n_convs": 4, "head_width": 32, "causal": True}
CAUSAL = {
    "mean": BrainModuleConfig(**SMALL),
    "linear": BrainModuleConfig(**SMALL, time_agg="linear"),
    "courses": BrainModuleConfig(**SMALL, time_agg="linear", n_time_weights=3),
    "attention": BrainModuleConfig(**SMALL, time_agg="attention"),
    "linear start": BrainModuleConfig(**{**SMALL, "width": 16}, init="linear"),
    "linear network": PRESETS["brain_module_demo"].model_copy(update={"causal": True}),
    "ts_conv": TSConvConfig(causal=True),
    "ts_conv people": TSConvConfig(causal=True, subject_layers=True),
    "ts_conv by channel": TSConvConfig(causal=True, mix=False, flatten="channel"),
    "lstm_cnn": LSTMCNNConfig(hidden=24, layers=2, causal=True),
    "lstm_cnn last": LSTMCNNConfig(hidden=24, layers=1, pool=3, pooling="last", causal=True),
    "cnn_lstm": LSTMCNNConfig(name="cnn_lstm", hidden=24, layers=1, causal=True, subject_layers=True),
    "cnn_lstm one tap": LSTMCNNConfig(name="cnn_lstm", hidden=24, layers=1, taps=1, pool=1, causal=True),
    "cnn_transformer": HybridConfig(name="cnn_transformer", width=16, heads=2, causal=True),
    "cnn_transformer with gaps": HybridConfig(
        name="cnn_transformer", width=16, heads=2, pool=0.02, stride=0.05, causal=True, subject_layers=True
    ),
}
EVERY = pytest.mark.parametrize("config", CAUSAL.values(), ids=CAUSAL)


def _network(config):
    """A network whose normalisations, people and branches are not at their start values."""
    torch.manual_seed(0)
    network = build_encoder(config, SHAPE, 32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        network.train()
        for _ in range(3):
            network(2 + 3 * torch.randn(8, 17, 64), torch.rand(17, 2), torch.arange(8) % 3)
    return network.eval()


def _epoch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(17, 64, generator=generator), torch.rand(17, 2, generator=generator)


@pytest.mark.parametrize("size", [1, 7, 25])
@EVERY
@torch.no_grad()
def test_chunks_equal_the_offline_pass(config, size):
    network = _network(config)
    data, positions = _epoch()
    for subject in (1, 3):
        expected = network.over_time(data[None], positions, torch.tensor([subject]))[0]
        stream = StreamingEncoder(network, positions, subject)
        for _ in range(2):  # the second time proves reset
            streamed = torch.cat([stream.push(chunk) for chunk in data.split(size, dim=1)])
            torch.testing.assert_close(streamed, expected, atol=1e-5, rtol=1e-5)
            stream.reset()


@EVERY
@torch.no_grad()
def test_the_future_leaves_the_past_bit_identical(config):
    network = _network(config)
    (data, positions), subject = _epoch(), torch.tensor([0])
    out = network.over_time(data[None], positions, subject)
    samples_per_step = next(n for n in range(1, 65) if 64 // n == out.shape[1])
    for now in (10, 30, 50):
        other = data.clone()
        other[:, now:] = 50 * torch.randn(17, 64 - now)
        changed = network.over_time(other[None], positions, subject)
        n_past = now // samples_per_step
        assert (out[:, :n_past] - changed[:, :n_past]).abs().max() == 0.0
        assert not torch.equal(out[:, -1], changed[:, -1])


@EVERY
@torch.no_grad()
def test_the_last_step_is_the_forward_pass(config):
    network = _network(config)
    generator = torch.Generator().manual_seed(1)
    data, positions = torch.randn(4, 17, 64, generator=generator), torch.rand(17, 2, generator=generator)
    subject = torch.tensor([0, 1, 2, 3])
    last = network.over_time(data, positions, subject)[:, -1]
    torch.testing.assert_close(last, network(data, positions, subject), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["brain_module", "ts_conv", "eeg_project", "atm", "lstm_cnn", "cnn_transformer"])
def test_networks_that_look_ahead_are_refused(name):
    network = build_encoder(PRESETS[name], SHAPE, 32).eval()
    with pytest.raises(ValueError, match="streaming needs a causal network"):
        StreamingEncoder(network, _epoch()[1], 0)


def test_over_time_and_start_of_a_network_that_looks_ahead_are_refused():
    (data, positions), subject = _epoch(), torch.tensor([0])
    for name in ("brain_module", "ts_conv", "lstm_cnn", "cnn_lstm", "cnn_transformer", "gat"):
        network = build_encoder(PRESETS[name], SHAPE, 32).eval()
        with pytest.raises(ValueError, match="causal=True"):
            network.over_time(data[None], positions, subject)
        with pytest.raises(ValueError, match="causal=True"):
            network.start(positions, subject)


def test_training_mode_and_wrong_positions_are_refused():
    network = build_encoder(CAUSAL["mean"], SHAPE, 32)
    with pytest.raises(ValueError, match="eval"):
        StreamingEncoder(network.train(), _epoch()[1], 0)
    with pytest.raises(ValueError, match="positions"):
        StreamingEncoder(network.eval(), torch.rand(2, 17, 2), 0)


@pytest.mark.parametrize(
    ("chunk", "said"),
    [(torch.zeros(16, 3), "17"), (torch.zeros(1, 17, 3), "17"), (torch.full((17, 2), torch.nan), "NaN")],
)
def test_a_wrong_chunk_is_refused_and_leaves_the_state(chunk, said):
    network, (data, positions) = _network(CAUSAL["mean"]), _epoch()
    stream, untouched = StreamingEncoder(network, positions, 0), StreamingEncoder(network, positions, 0)
    for one in (stream, untouched):
        one.push(data[:, :20])
    with pytest.raises(ValueError, match=said):
        stream.push(chunk)
    assert torch.equal(stream.push(data[:, 20:]), untouched.push(data[:, 20:]))


@pytest.mark.parametrize("name", ["linear", "ts_conv", "lstm_cnn", "cnn_lstm", "cnn_transformer"])
def test_an_epoch_longer_than_the_network_is_refused_until_reset(name):
    network, (data, positions) = _network(CAUSAL[name]), _epoch()
    stream = StreamingEncoder(network, positions, 0)
    stream.push(data)
    with pytest.raises(ValueError, match="reset"):
        stream.push(data[:, :10])
    stream.reset()
    assert len(stream.push(data)) > 0


def test_an_epoch_of_a_mean_network_may_go_on():
    stream = StreamingEncoder(_network(CAUSAL["mean"]), _epoch()[1], 0)
    for seed in range(4):
        assert stream.push(_epoch(seed)[0]).shape == (64, 32)


def test_an_empty_chunk_gives_no_step():
    for name in ("mean", "linear", "attention", "ts_conv", "lstm_cnn", "cnn_lstm", "cnn_transformer"):
        stream = StreamingEncoder(_network(CAUSAL[name]), _epoch()[1], 0)
        stream.push(torch.zeros(17, 12))
        assert stream.push(torch.zeros(17, 0)).shape == (0, 32)
