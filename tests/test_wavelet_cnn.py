import pytest
import torch

from encoders.build import PRESETS, SignalShape
from encoders.layers.skip import Skip
from encoders.networks.wavelet_cnn import WaveletCNN, WaveletCNNConfig, topographic_order

PLACES = tuple((x / 4, y / 4) for y in range(5) for x in range(5))
SHAPE = SignalShape(25, 40, 100.0, 2, PLACES)


def _network(shape=SHAPE, embed_dim=16, **settings):
    torch.manual_seed(0)
    return WaveletCNN(WaveletCNNConfig(**settings), shape, embed_dim).eval()


def _inputs(shape=SHAPE, n=3):
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(n, shape.n_channels, shape.n_times, generator=generator)
    return data, torch.rand(shape.n_channels, 2, generator=generator), torch.zeros(n).long()


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("width", "count"), [(16, 3_062), (32, 8_492), (64, 26_744)])
def test_without_cot_the_output_changes_and_the_published_number_of_parameters_goes(width, count):
    whole, without = _network(width=width), _network(width=width, cot=False)
    assert _count(whole) - _count(without) == count
    missing = whole.load_state_dict(without.state_dict(), strict=False)
    assert missing.missing_keys and all(key.startswith("cot.") for key in missing.missing_keys)
    assert (whole(*_inputs()) - without(*_inputs())).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(63, 100, 16, 25), (17, 250, 5, 63), (271, 201, 68, 51)])
def test_maps_have_a_quarter_of_the_channels_and_samples(size):
    n_channels, n_times, rows, steps = size
    shape = SignalShape(n_channels, n_times, 250.0, 1)
    network = _network(shape, width=8)
    data, positions, subject = _inputs(shape, n=1)
    assert network.scale.num_features == 16
    assert network.maps(data, subject).shape == (1, 4, rows, steps)
    tokens = network.tokens(data, positions, subject)
    assert tokens.shape == (1, steps, network.token_width) and network.token_width == 4 * rows


def test_topographic_order_goes_front_to_back_and_left_to_right():
    assert topographic_order(PLACES, 25).tolist() == [5 * y + x for y in (4, 3, 2, 1, 0) for x in range(5)]
    uneven = ((0.9, 0.48), (0.5, 1.0), (-1.0, -1.0), (0.1, 0.5), (0.5, 0.0), (0.4, 0.97))
    assert topographic_order(uneven, 6).tolist() == [5, 1, 3, 4, 0, 2]
    assert topographic_order((), 4).tolist() == [0, 1, 2, 3]


def test_recording_channels_in_another_order_changes_nothing_but_with_as_given():
    data, positions, subject = _inputs()
    shuffle = torch.randperm(25, generator=torch.Generator().manual_seed(2))
    shuffled = SignalShape(25, 40, 100.0, 2, tuple(PLACES[i] for i in shuffle))
    expected = _network()(data, positions, subject)
    torch.testing.assert_close(_network(shuffled)(data[:, shuffle], positions, subject), expected)
    given, other = _network(channel_order="as_given"), _network(shuffled, channel_order="as_given")
    assert torch.equal(given.order, torch.arange(25))
    assert (given(data, positions, subject) - other(data[:, shuffle], positions, subject)).abs().max() > 1e-3


def test_the_order_is_part_of_the_state():
    data, positions, subject = _inputs()
    trained = _network()
    elsewhere = _network(SignalShape(25, 40, 100.0, 2, PLACES[::-1]))
    assert not torch.equal(elsewhere.order, trained.order)
    assert "order" in trained.state_dict()
    elsewhere.load_state_dict(trained.state_dict())
    assert torch.equal(elsewhere(data, positions, subject), trained(data, positions, subject))


def test_the_order_reaches_the_image_of_the_packet():
    network, (data, _, _) = _network(), _inputs()
    seen = {}
    network.scale.register_forward_pre_hook(lambda module, arguments: seen.update(nodes=arguments[0]))
    network.maps(data, torch.zeros(3).long())
    torch.testing.assert_close(network.packet.inverse(seen["nodes"], (25, 40))[:, 0], data[:, network.order])


@pytest.mark.parametrize("wavelet", ["db4", "sym5", "bior2.2"])
def test_other_wavelets_give_maps_of_the_same_size(wavelet):
    network = _network(wavelet=wavelet)
    assert network(*_inputs()).shape == (3, 16)
    assert _count(network) == _count(_network())


def test_blocks_stand_in_skips_and_attention_is_an_option():
    network = _network(width=16, attention_heads=4)
    assert isinstance(network.cot, Skip) and network.cot.kind == "identity"
    assert (network(*_inputs()) - _network(width=16)(*_inputs())).abs().max() > 1e-3


def test_positions_are_ignored_and_people_matter_only_with_subject_layers():
    data, positions, subject = _inputs()
    plain, people = _network(), WaveletCNN(PRESETS["wavelet_cnn_people"], SHAPE, 16).eval()
    assert torch.equal(plain(data, positions, subject), plain(data, 1 - positions, subject + 1))
    with torch.no_grad():
        people.people.weight[1] *= -1
    assert not torch.allclose(people(data, positions, subject), people(data, positions, subject + 1))


def test_too_few_channels_or_samples_are_refused():
    with pytest.raises(ValueError, match="at least 4 channels and samples, got 3 x 40"):
        _network(SignalShape(3, 40, 100.0, 1))
    with pytest.raises(ValueError, match="at least 16 channels and samples, got 25 x 12"):
        _network(SignalShape(25, 12, 100.0, 1), levels=4)
    with pytest.raises(ValueError, match="multiple of 8"):
        WaveletCNNConfig(width=20)
