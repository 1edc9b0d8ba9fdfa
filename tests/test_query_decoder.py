import pytest
import torch

from encoders.build import PRESETS, SignalShape
from encoders.layers.query_decoder_pool import QueryDecoderPool
from encoders.networks.query_decoder import QueryDecoder, QueryDecoderConfig

SHAPE = SignalShape(9, 64, 100.0, 2)
SMALL = QueryDecoderConfig(width=16, n_heads=4, feedforward=24)


def _inputs(shape=SHAPE, n=3):
    return torch.randn(n, shape.n_channels, shape.n_times), torch.rand(shape.n_channels, 2), torch.zeros(n).long()


@pytest.mark.parametrize(("sfreq", "n_times", "expected"), [(100.0, 64, (10, 4, 14)), (250.0, 250, (25, 10, 23))])
def test_patches_keep_their_duration(sfreq, n_times, expected):
    shape = SignalShape(9, n_times, sfreq, 2)
    network = QueryDecoder(SMALL, shape, 8).eval()
    patch, stride, n_tokens = expected
    assert network.patches.weight.shape == (16, 9, patch) and network.patches.stride == (stride,)
    assert network.tokens(*_inputs(shape)).shape == (3, n_tokens, network.token_width)


def test_output_is_what_the_query_reads_from_the_tokens():
    torch.manual_seed(0)
    network = QueryDecoder(SMALL, SHAPE, 8).eval()
    inputs = _inputs()
    pooled = network.pool(network.tokens(*inputs), prior=network.position_scores)
    assert torch.equal(network(*inputs), network.head(pooled))


def test_heads_start_with_latencies_that_tile_the_epoch():
    network = QueryDecoder(SMALL, SHAPE, 8)
    weights = network.position_scores.detach().softmax(dim=1)
    centres = weights @ (torch.arange(14) + 0.5) / 14
    assert (centres.diff() > 0.1).all() and centres[0] < 0.25 and centres[-1] > 0.75


def test_eeg_meg_and_template_tokens_pool_together():
    torch.manual_seed(0)
    eeg, meg = (QueryDecoder(SMALL, SignalShape(n, 64, 100.0, 2), 8).eval() for n in (9, 14))
    template = eeg.tokens(*_inputs(n=1)).expand(3, -1, -1)
    pool = QueryDecoderPool(eeg.token_width, 4, n_streams=3)
    streams = (eeg.tokens(*_inputs()), meg.tokens(*_inputs(SignalShape(14, 64, 100.0, 2))), template)
    assert pool(*streams).shape == (3, 16)


def test_people_matter_only_with_subject_layers_and_positions_never():
    torch.manual_seed(0)
    data, positions, subject = _inputs()
    plain = QueryDecoder(SMALL, SHAPE, 8).eval()
    assert torch.equal(plain(data, positions, subject), plain(data, positions + 1, subject + 1))
    people = QueryDecoder(SMALL.model_copy(update={"subject_layers": True}), SHAPE, 8).eval()
    with torch.no_grad():
        people.people.weight[1] *= -1
    assert not torch.allclose(people(data, positions, subject), people(data, positions, subject + 1))


def test_too_short_epochs_and_odd_heads_are_refused():
    with pytest.raises(ValueError, match="at least 25 samples at 250 Hz, got 20"):
        QueryDecoder(SMALL, SignalShape(9, 20, 250.0, 2), 8)
    with pytest.raises(ValueError, match="not a multiple of n_heads 5"):
        QueryDecoder(SMALL.model_copy(update={"n_heads": 5}), SHAPE, 8)


def test_presets():
    assert PRESETS["query_decoder"] == QueryDecoderConfig()
    assert PRESETS["query_decoder_people"].subject_layers
