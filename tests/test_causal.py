import pytest
import torch
from torch.nn import functional as F

from encoders.layers.causal import (
    CausalConv1d,
    CausalSelfAttention,
    running_courses,
    running_mean,
    running_softmax,
)

N_TIMES = 61
SIZES = pytest.mark.parametrize("size", [1, 7, 25])


def _in_chunks(step, data, size, axis):
    """Feed ``data`` in chunks and put the outputs together along ``axis``, the time axis of both."""
    state, outputs = None, []
    for chunk in data.split(size, dim=-1):
        out, state = step(chunk, state)
        outputs.append(out)
    return torch.cat(outputs, dim=axis)


def _kinds():
    torch.manual_seed(0)
    conv, attention, windowed = CausalConv1d(6, 5, 3, 4), CausalSelfAttention(6, 2), CausalSelfAttention(6, 3, window=9)
    course, score = torch.randn(3, N_TIMES), torch.nn.Conv1d(6, 1, 1)
    with torch.no_grad():
        score.weight.mul_(20)  # scores far apart: the running maximum has work to do

    def on_tokens(layer):
        return lambda chunk, state: layer.step(chunk.transpose(1, 2), state)

    return {
        "conv": (conv.step, 2),
        "attention": (on_tokens(attention), 1),
        "windowed attention": (on_tokens(windowed), 1),
        "mean": (running_mean, 1),
        "courses": (lambda chunk, state: running_courses(chunk, course, state), 1),
        "softmax": (lambda chunk, state: running_softmax(chunk, score(chunk), state), 1),
    }


KINDS = pytest.mark.parametrize("kind", _kinds())


@SIZES
@KINDS
@torch.no_grad()
def test_chunks_equal_one_pass(kind, size):
    step, axis = _kinds()[kind]
    data = torch.randn(2, 6, N_TIMES)
    torch.testing.assert_close(_in_chunks(step, data, size, axis), step(data, None)[0], atol=1e-5, rtol=1e-5)


@KINDS
@torch.no_grad()
def test_the_future_leaves_the_past_bit_identical(kind):
    step, axis = _kinds()[kind]
    data = torch.randn(2, 6, N_TIMES)
    other = data.clone()
    other[:, :, 30:] = 100 * torch.randn(2, 6, N_TIMES - 30)
    past, other_past = (step(one, None)[0].narrow(axis, 0, 30) for one in (data, other))
    assert (past - other_past).abs().max() == 0.0
    assert not torch.equal(step(data, None)[0], step(other, None)[0])


@KINDS
@torch.no_grad()
def test_a_state_can_be_kept_and_used_twice(kind):
    step, _ = _kinds()[kind]
    data, first, second = torch.randn(1, 6, 10), torch.randn(1, 6, 5), torch.randn(1, 6, 5)
    _, state = step(data, None)
    once = step(first, state)[0]
    step(second, state)
    assert torch.equal(step(first, state)[0], once)


@torch.no_grad()
def test_conv_forward_is_its_step_and_equals_a_shifted_centred_convolution():
    torch.manual_seed(0)
    layer, data = CausalConv1d(6, 5, 3, 4), torch.randn(2, 6, N_TIMES)
    torch.testing.assert_close(layer(data), layer.step(data, None)[0], atol=1e-5, rtol=1e-5)
    centred = F.conv1d(data, layer.weight, layer.bias, padding=4, dilation=4)
    torch.testing.assert_close(layer(data)[:, :, 4:], centred[:, :, :-4], atol=1e-5, rtol=1e-5)
    assert layer.reach == 8 and layer.step(data, None)[1].shape == (2, 6, 8)


@torch.no_grad()
def test_attention_equals_the_library_with_a_causal_mask():
    torch.manual_seed(0)
    layer, tokens = CausalSelfAttention(8, 2), torch.randn(3, 12, 8)
    library = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    library.in_proj_weight.copy_(layer.project.weight)
    library.in_proj_bias.copy_(layer.project.bias)
    library.out_proj.load_state_dict(layer.out.state_dict())
    mask = torch.nn.Transformer.generate_square_subsequent_mask(12)
    expected, _ = library(tokens, tokens, tokens, attn_mask=mask)
    torch.testing.assert_close(layer(tokens), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_window_forgets_and_bounds_the_cache():
    torch.manual_seed(0)
    layer, tokens = CausalSelfAttention(8, 2, window=4), torch.randn(1, 20, 8)
    other = tokens.clone()
    other[:, :10] = torch.randn(1, 10, 8)
    assert torch.equal(layer(tokens)[:, 13:], layer(other)[:, 13:])
    assert not torch.equal(layer(tokens)[:, 12], layer(other)[:, 12])
    assert layer.step(tokens, None)[1].keys.shape[2] == 3


@torch.no_grad()
def test_aggregations_at_the_last_step_equal_the_whole_epoch():
    torch.manual_seed(0)
    data, course, score = torch.randn(2, 6, N_TIMES), torch.randn(3, N_TIMES), 30 * torch.randn(2, 1, N_TIMES)
    torch.testing.assert_close(running_mean(data)[0][:, -1], data.mean(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(running_courses(data, course)[0][:, -1], data @ course.T, atol=1e-4, rtol=1e-5)
    weighted = (data * score.softmax(-1)).sum(-1)
    torch.testing.assert_close(running_softmax(data, score)[0][:, -1], weighted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_running_softmax_survives_enormous_scores():
    score = torch.tensor([[[-1e4, 0.0, 1e4, -1e4]]])
    out, _ = running_softmax(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), score)
    assert out[0, :, 0].tolist() == [1.0, 2.0, 3.0, 3.0]


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="divide"):
        CausalSelfAttention(6, 4)
    with pytest.raises(ValueError, match="window"):
        CausalSelfAttention(6, 2, window=-1)
    _, state = running_courses(torch.zeros(1, 2, 4), torch.zeros(1, 5))
    with pytest.raises(ValueError, match="reset"):
        running_courses(torch.zeros(1, 2, 2), torch.zeros(1, 5), state)
