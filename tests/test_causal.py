import pytest
import torch
from torch.nn import functional as F

from encoders.layers.causal import (
    CausalConv1d,
    attend_to_past,
    running_courses,
    running_dense,
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


def _attention(n_heads, window=0):
    """Self-attention of (b, 6, n) with fixed projections to (b, n, 6)."""
    project = torch.nn.Linear(6, 18)

    def step(chunk, cache):
        # (b, 6, n) -> (b, n, 18) -> three of (b, n_heads, n, 6 / n_heads)
        parts = project(chunk.transpose(1, 2)).unflatten(2, (3, n_heads, -1)).permute(2, 0, 3, 1, 4)
        heard, cache = attend_to_past(*parts, cache, window)
        return heard.transpose(1, 2).flatten(2), cache

    return step


def _kinds():
    torch.manual_seed(0)
    conv, attention, windowed = CausalConv1d(6, 5, 3, 4), _attention(2), _attention(3, window=9)
    course, score, dense = torch.randn(3, N_TIMES), torch.nn.Conv1d(6, 1, 1), torch.randn(4, N_TIMES, 6)
    with torch.no_grad():
        score.weight.mul_(20)  # scores far apart: the running maximum has work to do

    return {
        "conv": (conv.step, 2),
        "attention": (attention, 1),
        "windowed attention": (windowed, 1),
        "mean": (running_mean, 1),
        "courses": (lambda chunk, state: running_courses(chunk, course, state), 1),
        "dense": (lambda chunk, state: running_dense(chunk.transpose(1, 2), dense, state), 1),
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


def test_attention_equals_the_library():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 12, 5)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(attend_to_past(query, key, value)[0], expected, atol=1e-5, rtol=1e-5)


def test_a_window_forgets_and_bounds_the_cache():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 20, 4)
    other = [one.clone() for one in (key, value)]
    for one in other:
        one[:, :, :10] = torch.randn(1, 2, 10, 4)
    (old, cache), (new, _) = attend_to_past(query, key, value, None, 4), attend_to_past(query, *other, None, 4)
    assert torch.equal(old[:, :, 13:], new[:, :, 13:]) and not torch.equal(old[:, :, 12], new[:, :, 12])
    assert cache.keys.shape[2] == 3


@torch.no_grad()
def test_aggregations_at_the_last_step_equal_the_whole_epoch():
    torch.manual_seed(0)
    data, course, score = torch.randn(2, 6, N_TIMES), torch.randn(3, N_TIMES), 30 * torch.randn(2, 1, N_TIMES)
    tokens, dense = data.transpose(1, 2), torch.randn(4, N_TIMES, 6)
    flat = tokens.flatten(1) @ dense.flatten(1).T
    torch.testing.assert_close(running_dense(tokens, dense)[0][:, -1], flat, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(running_mean(data)[0][:, -1], data.mean(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(running_courses(data, course)[0][:, -1], data @ course.T, atol=1e-4, rtol=1e-5)
    weighted = (data * score.softmax(-1)).sum(-1)
    torch.testing.assert_close(running_softmax(data, score)[0][:, -1], weighted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_running_softmax_survives_enormous_scores():
    score = torch.tensor([[[-1e4, 0.0, 1e4, -1e4]]])
    out, _ = running_softmax(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), score)
    assert out[0, :, 0].tolist() == [1.0, 2.0, 3.0, 3.0]


def test_more_steps_than_an_epoch_has_are_refused():
    _, state = running_courses(torch.zeros(1, 2, 4), torch.zeros(1, 5))
    with pytest.raises(ValueError, match="reset"):
        running_courses(torch.zeros(1, 2, 2), torch.zeros(1, 5), state)
    _, state = running_dense(torch.zeros(1, 4, 2), torch.zeros(3, 5, 2))
    with pytest.raises(ValueError, match="reset"):
        running_dense(torch.zeros(1, 2, 2), torch.zeros(3, 5, 2), state)
