from typing import get_args

import pytest
import torch
from torch.nn import functional

from encoders.build import PRESETS
from encoders.layers.signal_shape import SignalShape
from encoders.networks import hybrid
from encoders.networks.hybrid import STAGES, HybridConfig, HybridEncoder, HybridName
from encoders.networks.hybrid_stages import ConvSizes, MapCNN, RowCNN, RowStreams, Table, nearest

PLACES = tuple((0.1 + 0.2 * (i % 5), 0.1 + 0.2 * (i // 5)) for i in range(20))
SHAPE = SignalShape(20, 64, 100.0, 2, PLACES)
NAMES = get_args(HybridName)
SIZES = ConvSizes(n_filters=6, kernel=0.1, pool=0.08, stride=0.04)
CAUSAL = HybridConfig(name="cnn_transformer", width=16, heads=2, causal=True)


def _network(name, shape=SHAPE, **settings):
    torch.manual_seed(0)
    return HybridEncoder(HybridConfig(name=name, **settings), shape, 24).eval()


def _inputs(n=3, n_channels=20, n_times=64):
    return torch.randn(n, n_channels, n_times), torch.rand(n_channels, 2), torch.zeros(n).long()


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_stages_a_preset_and_tokens(name):
    network = HybridEncoder(PRESETS[name], SHAPE, 24).eval()
    assert [type(stage) for stage in network.stages] and len(network.stages) == len(STAGES[name])
    data, positions, subject = _inputs()
    tokens = network.tokens(data, positions, subject)
    assert tokens.shape[0] == 3 and tokens.shape[2] == network.token_width
    assert torch.equal(network(data, positions, subject), network(data, positions + 1, subject + 1))


@pytest.mark.parametrize("name", [name for name in NAMES if len(STAGES[name]) > 1])
def test_another_order_of_stages_is_another_function_with_the_same_interface(name, monkeypatch):
    arguments = _inputs()
    network = _network(name)
    monkeypatch.setitem(hybrid.STAGES, name, STAGES[name][::-1])
    swapped = _network(name)
    assert swapped(*arguments).shape == network(*arguments).shape == (3, 24)
    assert swapped.tokens(*arguments).shape[-1] == swapped.token_width
    assert not torch.allclose(swapped(*arguments), network(*arguments), atol=1e-2)


def test_merged_convolutions_equal_the_published_steps():
    torch.manual_seed(0)
    stage = MapCNN(SIZES, False, Table(20, 64, 100.0)).eval()
    stage.norm.running_mean.normal_()
    data = torch.randn(3, 20, 64)
    maps = functional.conv2d(data.unsqueeze(1), stage.temporal.weight.unsqueeze(2), stage.temporal.bias)
    maps = functional.conv2d(maps, stage.spatial.weight, stage.spatial.bias).squeeze(2)
    expected = functional.avg_pool1d(functional.elu(stage.norm(maps)), 8, 4)
    torch.testing.assert_close(stage(data), expected, atol=1e-5, rtol=1e-4)
    assert stage.out == Table(6, expected.shape[2], 25.0, tokens="columns")


def test_published_conformer_has_its_kernels():
    network = HybridEncoder(PRESETS["cnn_transformer_published"], SignalShape(22, 1000, 250.0, 1), 24)
    cnn, transformer = network.stages
    assert cnn.temporal.weight.shape == (40, 1, 25) and cnn.spatial.weight.shape == (40, 40, 22, 1)
    assert (cnn.pool, cnn.stride) == (75, 15) and cnn.out.n_columns == 61
    assert len(transformer.encoder.blocks) == 6 and transformer.encoder.blocks[0].heads == 10


def test_rows_are_convolved_and_pooled_as_two_steps_would():
    torch.manual_seed(0)
    stage = RowCNN(SIZES, Table(20, 64, 100.0)).eval()
    data = torch.randn(3, 20, 64)
    maps = functional.conv1d(data.reshape(-1, 1, 64), stage.raw.conv.weight, stage.raw.conv.bias)
    maps = functional.elu(stage.raw.norm(functional.avg_pool1d(maps, 8, 4)))
    expected = maps.transpose(1, 2).reshape(3, 20, -1)
    torch.testing.assert_close(stage(data), expected, atol=1e-5, rtol=1e-4)


def test_both_streams_stand_side_by_side_in_every_row():
    torch.manual_seed(0)
    stage = RowStreams(SIZES, Table(20, 64, 100.0)).eval()
    data = torch.randn(3, 20, 64)
    raw, wavelet = stage(data).split([stage.raw.width, stage.wavelet.width], dim=-1)
    torch.testing.assert_close(raw, stage.raw(data.unsqueeze(2)))
    torch.testing.assert_close(wavelet, stage.wavelet(stage.packets(data)))
    assert stage.wavelet.conv.weight.shape == (6, 4, 2)  # 0.1 s at a quarter of 100 Hz
    other = data.clone()
    other[:, 5] += 1
    assert torch.equal(stage(other)[:, :5], stage(data)[:, :5])


@pytest.mark.parametrize("name", ["gat", "cnn_gat", "transformer_gat", "wavelet_cnn_gat"])
def test_relabelled_channels_give_relabelled_nodes(name):
    network = _network(name)
    data, positions, subject = _inputs()
    order = torch.randperm(20)
    expected = network.tokens(data, positions, subject)[:, order]
    torch.testing.assert_close(network.tokens(data[:, order], positions, subject), expected, atol=1e-5, rtol=1e-4)


def test_causal_outputs_do_not_change_with_the_future():
    torch.manual_seed(0)
    network = HybridEncoder(CAUSAL, SHAPE, 24).eval()
    data, positions, subject = _inputs()
    out = network.over_time(data, positions, subject)
    stride = network.stages[0].stride
    assert out.shape == (3, 64 // stride, 24)
    for step in (0, 3, 9):
        other = data.clone()
        other[:, :, (step + 1) * stride :] = 100 * torch.randn_like(other[:, :, (step + 1) * stride :])
        again = network.over_time(other, positions, subject)
        assert torch.equal(again[:, : step + 1], out[:, : step + 1])
        assert not torch.allclose(again[:, step + 1], out[:, step + 1])


def test_causal_steps_use_the_newest_sample_and_the_last_one_is_the_embedding():
    torch.manual_seed(0)
    network = HybridEncoder(CAUSAL, SHAPE, 24).eval()
    data, positions, subject = _inputs()
    out = network.over_time(data, positions, subject)
    torch.testing.assert_close(out[:, -1], network(data, positions, subject), atol=1e-5, rtol=1e-5)
    stride = network.stages[0].stride
    data[:, :, 4 * stride - 1] += 1
    assert not torch.allclose(network.over_time(data, positions, subject)[:, 3], out[:, 3])


def test_causal_filters_start_at_unit_variance_on_white_noise():
    torch.manual_seed(0)
    stage = MapCNN(ConvSizes(n_filters=6, kernel=0.1, pool=0.01, stride=0.01), True, Table(20, 2000, 100.0))
    with torch.no_grad():
        stage.temporal.bias.zero_()
        stage.spatial.bias.zero_()
        filtered = stage(torch.randn(4, 20, 2000))
    # of a unit normal variable, half of the values are positive, with mean square 1 / 2 over all
    square = filtered.clamp(min=0).square().mean(dim=(0, 2))
    torch.testing.assert_close(square, torch.full((6,), 0.5), atol=0.05, rtol=0)


def test_networks_that_look_ahead_have_no_output_over_time():
    with pytest.raises(ValueError, match="looks ahead"):
        _network("cnn_transformer").over_time(*_inputs())


def test_nearest_neighbours_are_those_on_the_map():
    graph = nearest(Table(20, 64, 100.0, PLACES), 2)
    assert (graph.sum(1) == 2).all() and (graph.diagonal() == 0).all()
    assert graph[0].nonzero()[:, 0].tolist() == [1, 5]
    network = _network("gat", neighbours=2)
    data, positions, subject = _inputs()
    tokens = network.tokens(data, positions, subject)
    other = data.clone()
    other[:, 12] += 1  # neither 0 nor a neighbour of it
    again = network.tokens(other, positions, subject)
    assert torch.equal(again[:, 0], tokens[:, 0]) and not torch.allclose(again[:, 12], tokens[:, 12])


@pytest.mark.parametrize("neighbours", ["all", "learned"])
def test_a_given_graph_decides_who_is_heard_and_is_kept(neighbours):
    network = _network("cnn_gat", neighbours=neighbours)
    data, positions, subject = _inputs()
    before = network.tokens(data, positions, subject)
    graph = torch.zeros(20, 20)
    graph[:, 7] = 0.5
    graph[7, 8] = 2.0
    network.set_graph(graph)
    tokens = network.tokens(data, positions, subject)
    assert not torch.allclose(tokens, before)
    data[:, 3] += 1
    assert torch.equal(network.tokens(data, positions, subject)[:, 0], tokens[:, 0])
    again = _network("cnn_gat", neighbours=neighbours)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(data, positions, subject), network(data, positions, subject))


@pytest.mark.parametrize("name", ["cnn_transformer", "transformer_cnn", "cnn_transformer_gat"])
def test_networks_without_a_graph_of_sensors_take_none(name):
    with pytest.raises(ValueError, match="no graph of sensors"):
        _network(name).set_graph(torch.ones(20, 20))


@pytest.mark.parametrize(
    "wrong", [torch.ones(3, 3), -torch.ones(20, 20), torch.eye(20), torch.full((20, 20), torch.nan)]
)
def test_impossible_graphs_are_refused(wrong):
    with pytest.raises(ValueError, match="graph prior"):
        _network("gat").set_graph(wrong)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("gat", {"layers": 3}),
        ("gat", {"kernel": 0.2}),
        ("cnn_gat", {"layers": 3}),
        ("transformer_gat", {"n_filters": 8}),
        ("cnn_transformer", {"neighbours": "learned"}),
        *((name, {"causal": True}) for name in NAMES if name != "cnn_transformer"),
    ],
)
def test_settings_without_effect_are_refused(name, setting):
    with pytest.raises(ValueError, match="no effect in"):
        HybridConfig(name=name, **setting)


@pytest.mark.parametrize(
    ("name", "shape", "settings", "said"),
    [
        ("gat", SHAPE, {"width": 10}, "shared by 4 heads"),
        ("gat", SignalShape(20, 64, 100.0, 1), {"neighbours": 3}, "needs the place of every node"),
        ("gat", SignalShape(20, 64, 100.0, 1, ((-0.1, -0.1), *PLACES[1:])), {"neighbours": 3}, "or unknown ones"),
        ("gat", SHAPE, {"neighbours": 20}, "impossible among 20 sensors"),
        ("cnn_transformer_gat", SHAPE, {"neighbours": 3}, "virtual sensors have none"),
        ("cnn_gat", SignalShape(20, 13, 100.0, 1), {}, "at least 14 samples at 100 Hz here, got 13"),
        ("cnn_transformer", SignalShape(20, 13, 100.0, 1), {}, "at least 14 samples at 100 Hz here, got 13"),
        ("transformer_gat", SignalShape(20, 9, 100.0, 1), {}, "at least 10 samples"),
        ("wavelet_cnn_gat", SignalShape(20, 13, 100.0, 1), {}, "at least 14 samples"),
    ],
)
def test_impossible_sizes_are_refused(name, shape, settings, said):
    with pytest.raises(ValueError, match=said):
        _network(name, shape, **settings)


def test_people_matter_only_with_subject_layers():
    data, positions, subject = _inputs()
    people = _network("cnn_gat", subject_layers=True)
    with torch.no_grad():
        people.people.weight[1] *= -1
    assert not torch.allclose(people(data, positions, subject), people(data, positions, subject + 1))
