import pytest
import torch
from torch import nn
from torch.nn import functional

from encoders.layers.query_decoder_pool import QueryDecoderPool, soft_argmax

WIDTH, HEADS = 12, 3


def _pool(**options):
    torch.manual_seed(0)
    pool = QueryDecoderPool(WIDTH, HEADS, feedforward=16, **options).double().eval()
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return pool


def _tokens(n=7, batch=4):
    return torch.randn(batch, n, WIDTH, dtype=torch.float64)


def test_short_cut_for_one_query_equals_multi_head_attention():
    pool, tokens = _pool(n_layers=1), _tokens()
    layer = pool.layers[0]
    oracle = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()
    with torch.no_grad():
        oracle.in_proj_weight.copy_(torch.cat([layer.ask.weight, layer.key.weight, layer.value.weight]))
        oracle.in_proj_bias.copy_(torch.cat([layer.ask.bias, torch.zeros(WIDTH), layer.value.bias]))
        oracle.out_proj.load_state_dict(layer.out.state_dict())
    query = pool.query.expand(4, -1)
    ignored = torch.zeros(4, 7, dtype=torch.bool)
    ignored[1, 2:] = True
    prior = torch.randn(HEADS, 7, dtype=torch.float64)
    mask = prior.expand(4, -1, -1).masked_fill(ignored.unsqueeze(1), -torch.inf)
    asked = layer.query_norm(query).unsqueeze(1)
    seen, weights = oracle(asked, tokens, tokens, attn_mask=mask.reshape(4 * HEADS, 1, 7))
    query = query + seen.squeeze(1)
    expected = pool.norm(query + layer.feed(layer.feed_norm(query)))
    torch.testing.assert_close(pool(tokens, ignored=ignored, prior=prior), expected)
    torch.testing.assert_close(pool.attention(tokens, ignored=ignored, prior=prior), weights.squeeze(1))


def test_ignored_tokens_have_no_influence_and_weight_zero():
    pool, tokens = _pool(), _tokens()
    ignored = torch.zeros(4, 7, dtype=torch.bool)
    ignored[:, 5:] = True
    other = tokens.clone()
    other[:, 5:] = 1e3
    assert torch.equal(pool(tokens, ignored=ignored), pool(other, ignored=ignored))
    torch.testing.assert_close(pool(tokens, ignored=ignored), pool(tokens[:, :5]))
    weights = pool.attention(tokens, ignored=ignored)
    assert (weights[:, 5:] == 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(4).double())


def test_order_matters_between_streams_but_not_within():
    pool = _pool(n_streams=3)
    eeg, meg, template = _tokens(5), _tokens(6), _tokens(5)
    out = pool(eeg, meg, template)
    assert out.shape == (4, WIDTH)
    torch.testing.assert_close(pool(eeg.flip(1), meg, template), out)
    assert not torch.allclose(pool(template, meg, eeg), out)
    absent = torch.zeros(4, 16, dtype=torch.bool)
    absent[:, 5:11] = True
    torch.testing.assert_close(pool(eeg, 0 * meg, template, ignored=absent), pool(eeg, meg, template, ignored=absent))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="not a multiple of n_heads 5"):
        QueryDecoderPool(WIDTH, 5)
    with pytest.raises(ValueError, match="got 1 streams of tokens, expected 2"):
        _pool(n_streams=2)(_tokens())
    with pytest.raises(ValueError, match="no token left"):
        _pool()(_tokens(), ignored=torch.ones(4, 7, dtype=torch.bool))


def test_soft_argmax_of_a_one_hot_map_is_the_exact_coordinate():
    grid = torch.cartesian_prod(torch.linspace(0, 1, 9), torch.linspace(-2, 3, 7))
    one_hot = torch.eye(len(grid))
    assert torch.equal(soft_argmax(one_hot, grid), grid)
    assert torch.equal(soft_argmax(3 * one_hot.view(9, 7, -1), grid), grid.view(9, 7, 2))
    latencies = torch.arange(40) / 100 - 0.1
    peaks = functional.one_hot(torch.tensor([4, 39]), 40).float()
    assert torch.equal(soft_argmax(peaks, latencies), latencies[[4, 39]])


def test_soft_argmax_lies_between_two_equal_peaks_and_passes_gradient():
    scores = torch.tensor([0.0, 5.0, 5.0, 0.0], requires_grad=True)
    place = soft_argmax(scores.softmax(0), torch.arange(4.0))
    assert float(place.detach()) == pytest.approx(1.5)
    place.backward()
    assert scores.grad.abs().sum() > 0
