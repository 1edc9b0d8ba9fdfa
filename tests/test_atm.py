import pytest
import torch
from published_files import published_time_code
from torch.nn import functional

from encoders.build import PRESETS, SignalShape
from encoders.networks.atm import ATM, ATM50, ATM50Config, ATMConfig, sinusoids

PUBLISHED = SignalShape(63, 250, 250.0, 10)


def _count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_published_shapes_and_count_without_what_never_reaches_the_output():
    network = ATM(ATMConfig(), PUBLISHED, 1024)
    assert network.embedding.weight.shape == (250, 250) and network.people.shape == (11, 250)
    assert network.layer.qkv.weight.shape == (744, 250) and network.layer.out.weight.shape == (250, 248)
    assert network.layer.expand.weight.shape == (256, 250)
    assert network.convs.temporal.weight.shape == (40, 1, 25) and network.convs.spatial.weight.shape == (40, 40, 63, 1)
    assert network.head.linear.weight.shape == (1024, 1440) and network.token_width == 40
    # the published 3.20 M has two unused linear maps, an unused embedding of time stamps, mask tokens, a temperature
    assert _count(network) == 3_075_412
    assert _count(network) + 2 * 62_750 + 1_000 + 2 * 250 + 1 == 3_202_413


def test_older_version_is_its_own_network():
    network = ATM50(ATM50Config(), PUBLISHED, 1024)
    assert network.layer.qkv.weight.shape == (189, 63) and network.layer.expand.weight.shape == (2048, 63)
    assert network.time.weight.shape == (250, 250)
    assert "time_code" not in network.state_dict()


def test_older_version_equals_torchs_own_transformer_layer():
    torch.manual_seed(0)
    shape = SignalShape(5, 40, 100.0, 1)
    network = ATM50(ATM50Config(width=75, feedforward=12), shape, 8).eval()
    layer = torch.nn.TransformerEncoderLayer(5, 1, 12, batch_first=True).eval()
    names = {
        "self_attn.in_proj_": "qkv.",
        "self_attn.out_proj.": "out.",
        "linear1.": "expand.",
        "linear2.": "contract.",
        "norm1.": "attended_norm.",
        "norm2.": "norm.",
    }
    for theirs, ours in names.items():
        for part in ("weight", "bias"):
            layer.get_parameter(theirs + part).data = network.layer.get_parameter(ours + part).data
    data = torch.randn(2, 5, 40)
    with torch.no_grad():
        attended = layer(data.transpose(1, 2) + network.time_code).transpose(1, 2)
        expected = network.convs.convolve(network.time(attended))
        torch.testing.assert_close(network.tokens(data, data, data), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [4, 5, 63])
def test_time_code(width):
    torch.testing.assert_close(sinusoids(20, width), published_time_code(20, width), atol=1e-5, rtol=1e-5)


def test_the_first_rows_attend_as_if_all_did():
    torch.manual_seed(0)
    layer = ATM(ATMConfig(width=75, n_filters=4), SignalShape(5, 40, 100.0, 1), 8).layer.eval()
    tokens = torch.randn(2, 6, 75)
    torch.testing.assert_close(layer(tokens, n_out=5), layer(tokens)[:, :5])


def test_a_head_width_that_does_not_divide_is_cut():
    assert ATM(ATMConfig(width=75, n_heads=4), PUBLISHED, 8).layer.head_width == 18


def test_people_matter_and_an_unknown_person_has_the_shared_token():
    torch.manual_seed(0)
    shape = SignalShape(7, 60, 100.0, 2)
    network = ATM(ATMConfig(width=75), shape, 8).eval()
    data = torch.randn(1, 7, 60).expand(3, -1, -1)
    first, second, unknown = network(data, data, torch.tensor([0, 1, 2]))
    assert not torch.allclose(first, second) and not torch.allclose(first, unknown)
    with torch.no_grad():
        network.people[0] = network.people[2]
    torch.testing.assert_close(network(data, data, torch.tensor([0, 1, 2]))[0], unknown)


def test_the_shared_token_is_trained_on_a_share_of_the_samples():
    shape = SignalShape(7, 60, 100.0, 2)
    data, subject = torch.randn(40, 7, 60), torch.zeros(40).long()
    for share, learns in ((0.0, False), (0.3, True)):
        torch.manual_seed(0)
        network = ATM(ATMConfig(width=75, subject_dropout=share), shape, 8).train()
        functional.mse_loss(network(data, data, subject), torch.randn(40, 8)).backward()
        assert bool(network.people.grad[2].abs().sum() > 0) == learns
        assert network.people.grad[0].abs().sum() > 0 and network.people.grad[1].abs().sum() == 0


@pytest.mark.parametrize("name", ["atm", "atm_50"])
def test_runs_on_the_meg_array_and_gives_tokens(name):
    torch.manual_seed(0)
    shape = SignalShape(271, 201, 200.0, 1)
    network = PRESETS[name].build(shape, 16).eval()
    data = torch.randn(2, 271, 201)
    with torch.inference_mode():
        assert network(data, data, torch.zeros(2).long()).shape == (2, 16)
        assert network.tokens(data, data, torch.zeros(2).long()).shape == (2, 36, network.token_width)


@pytest.mark.parametrize("config", [ATMConfig, ATM50Config])
def test_tokens_too_narrow_for_the_convolutions_are_refused(config):
    with pytest.raises(ValueError, match="greater than or equal to 75"):
        config(width=74)
