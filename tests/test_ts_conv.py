import pytest
import torch
from torch.nn import functional

from encoders.build import PRESETS, SignalShape
from encoders.networks.ts_conv import TSConv, TSConvConfig

PUBLISHED = SignalShape(63, 250, 250.0, 1)


def _inputs(shape, n=3):
    return torch.randn(n, shape.n_channels, shape.n_times), torch.rand(shape.n_channels, 2), torch.zeros(n).long()


def test_published_shapes_and_count():
    network = TSConv(TSConvConfig(), PUBLISHED, 1024)
    assert network.temporal.weight.shape == (40, 1, 25) and (network.pool, network.stride) == (51, 5)
    assert network.spatial.weight.shape == (40, 40, 63, 1)
    assert network.mix.weight.shape == (40, 40, 1, 1)
    assert network.head.linear.weight.shape == (1024, 1440)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_630_912


def test_merged_convolution_and_pooling_equal_the_two_published_steps():
    torch.manual_seed(0)
    network = TSConv(TSConvConfig(), PUBLISHED, 16).eval()
    data, positions, subject = _inputs(PUBLISHED)
    maps = functional.conv2d(data.unsqueeze(1), network.temporal.weight.unsqueeze(2), network.temporal.bias)
    maps = functional.elu(network.temporal_norm(functional.avg_pool2d(maps, (1, 51), (1, 5))))
    maps = network.mix(functional.elu(network.spatial_norm(network.spatial(maps))))
    expected = network.head(maps.permute(0, 3, 1, 2).flatten(1))
    torch.testing.assert_close(network(data, positions, subject), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("sfreq", "expected"), [(250.0, (25, 51, 5)), (100.0, (10, 20, 2)), (200.0, (20, 41, 4))])
def test_kernels_keep_their_duration(sfreq, expected):
    network = TSConv(TSConvConfig(), SignalShape(17, 250, sfreq, 1), 16)
    assert (network.temporal.weight.shape[-1], network.pool, network.stride) == expected


def test_too_short_epochs_are_refused_with_the_length_needed():
    with pytest.raises(ValueError, match="at least 75 samples at 250 Hz, got 64"):
        TSConv(TSConvConfig(), SignalShape(63, 64, 250.0, 1), 16)


def test_positions_are_ignored_and_people_matter_only_with_subject_layers():
    torch.manual_seed(0)
    shape = SignalShape(17, 64, 100.0, 2)
    data, positions, subject = _inputs(shape)
    plain = TSConv(TSConvConfig(), shape, 16).eval()
    assert torch.equal(plain(data, positions, subject), plain(data, positions + 1, subject + 1))
    people = TSConv(PRESETS["ts_conv_people"], shape, 16).eval()
    assert torch.equal(people(data, positions, subject), people(data, positions, subject + 1))
    with torch.no_grad():
        people.people.weight[1] *= -1
    assert not torch.allclose(people(data, positions, subject), people(data, positions, subject + 1))


@pytest.mark.parametrize("mix", [True, False])
@pytest.mark.parametrize("flatten", ["position", "channel"])
def test_variants_of_the_published_checkpoints(mix, flatten):
    torch.manual_seed(0)
    network = TSConv(TSConvConfig(mix=mix, flatten=flatten), SignalShape(5, 101, 250.0, 1), 16).eval()
    data, positions, subject = _inputs(SignalShape(5, 101, 250.0, 1))
    maps = functional.conv2d(data.unsqueeze(1), network.temporal.weight.unsqueeze(2), network.temporal.bias)
    maps = functional.elu(network.temporal_norm(functional.avg_pool2d(maps, (1, 51), (1, 5))))
    maps = functional.elu(network.spatial_norm(network.spatial(maps)))
    if mix:
        maps = network.mix(maps)
    assert (network.mix is not None) == mix
    flat = maps.flatten(1) if flatten == "channel" else maps.permute(0, 3, 2, 1).flatten(1)
    torch.testing.assert_close(network(data, positions, subject), network.head(flat), atol=1e-5, rtol=1e-4)
    tokens = network.tokens(data, positions, subject)
    assert tokens.shape == (3, network.n_steps, network.token_width) == (3, 6, 40)
    torch.testing.assert_close(tokens, maps.squeeze(2).transpose(1, 2), atol=1e-5, rtol=1e-4)


def test_gradients_equal_those_of_the_published_order():
    torch.manual_seed(0)
    shape = SignalShape(5, 101, 250.0, 1)
    network = TSConv(TSConvConfig(dropout=0.0), shape, 16).double().train()
    data = torch.randn(4, 5, 101, dtype=torch.float64, requires_grad=True)
    parts = [data, network.temporal.weight, network.spatial.weight, network.mix.weight, network.temporal_norm.weight]
    ours = torch.autograd.grad(network(data, data, torch.zeros(4).long()).pow(3).sum(), parts)
    maps = functional.conv2d(data.unsqueeze(1), network.temporal.weight.unsqueeze(2), network.temporal.bias)
    maps = functional.elu(network.temporal_norm(functional.avg_pool2d(maps, (1, 51), (1, 5))))
    maps = network.mix(functional.elu(network.spatial_norm(network.spatial(maps))))
    plain = torch.autograd.grad(network.head(maps.permute(0, 3, 2, 1).flatten(1)).pow(3).sum(), parts)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)


def test_runs_on_the_meg_array():
    shape = SignalShape(271, 201, 200.0, 1)
    network = TSConv(TSConvConfig(), shape, 16).eval()
    assert network(*_inputs(shape)).shape == (3, 16)


@torch.no_grad()
def test_causal_tokens_are_those_of_the_signal_with_silence_in_front():
    torch.manual_seed(0)
    shape = SignalShape(5, 100, 250.0, 1)
    causal = TSConv(TSConvConfig(causal=True), shape, 16).eval()
    assert causal.n_steps == 20 and causal.silence == 75 - 5
    plain = TSConv(TSConvConfig(), SignalShape(5, 170, 250.0, 1), 16).eval()
    plain.load_state_dict(causal.state_dict())
    data, positions, subject = _inputs(shape)
    padded = functional.pad(data, (70, 0))
    torch.testing.assert_close(causal.tokens(data, positions, subject), plain.tokens(padded, positions, subject))
    torch.testing.assert_close(causal(data, positions, subject), plain(padded, positions, subject))


@torch.no_grad()
def test_a_step_appears_as_soon_as_a_stride_is_complete():
    torch.manual_seed(0)
    shape = SignalShape(5, 43, 250.0, 1)
    network = TSConv(TSConvConfig(causal=True), shape, 16).eval()
    data, positions, subject = _inputs(shape, n=1)
    state, counts = network.start(positions, subject), []
    for sample in data.split(1, dim=2):
        out, state = network.step(sample, state)
        counts.append(out.shape[1])
    assert counts == [0, 0, 0, 0, 1] * 8 + [0, 0, 0]  # three samples are left over, as in the published network


def test_a_causal_stride_that_leaves_out_samples_is_refused():
    with pytest.raises(ValueError, match="stride of at most 3 samples"):
        TSConv(TSConvConfig(kernel=0.02, pool=0.02, stride=0.05, causal=True), SignalShape(5, 64, 100.0, 1), 16)
