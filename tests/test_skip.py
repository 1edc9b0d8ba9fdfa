from typing import get_args

import pytest
import torch
from torch import nn

from encoders.layers.skip import Kind, Skip

KINDS = get_args(Kind)


def _skip(kind, fn, width, **more):
    torch.manual_seed(0)
    return Skip(kind, fn, width, **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rest", [(), (7,), (4, 5)], ids=["vectors", "lines", "maps"])
def test_every_kind_takes_vectors_lines_and_maps(kind, rest):
    data = torch.randn(3, 8, *rest)
    out = _skip(kind, nn.Tanh(), 8)(data)
    assert out.shape == (3, 16 if kind == "concat" else 8, *rest)


def test_rezero_starts_as_the_identity_exactly():
    data = torch.randn(3, 8, 5)
    skip = _skip("rezero", nn.Conv1d(8, 8, 1), 8)
    assert torch.equal(skip(data), data)
    with torch.no_grad():
        skip.scale.fill_(0.5)
    torch.testing.assert_close(skip(data), data + 0.5 * skip.fn(data))


def test_highway_with_bias_minus_ten_is_close_to_the_identity():
    data = torch.rand(3, 8)
    skip = _skip("highway", nn.Tanh(), 8, start=-10.0)
    assert 0 < (skip(data) - data).abs().max() <= 1e-3
    gate = torch.sigmoid(skip.inner(data))
    torch.testing.assert_close(skip(data), gate * data.tanh() + (1 - gate) * data)


def test_concat_doubles_the_width_and_keeps_the_input():
    data = torch.randn(3, 8, 5)
    out = _skip("concat", nn.Conv1d(8, 8, 1), 8)(data)
    assert out.shape == (3, 16, 5) and torch.equal(out[:, :8], data)


def test_projection_joins_different_widths_where_the_identity_refuses():
    data = torch.randn(3, 8, 5)
    skip = _skip("projection", nn.Conv1d(8, 12, 1), 8, out_width=12)
    expected = skip.fn(data) + torch.einsum("oi,bit->bot", skip.inner.weight, data)
    torch.testing.assert_close(skip(data), expected)
    with pytest.raises(ValueError, match="adds equal shapes"):
        _skip("identity", nn.Conv1d(8, 12, 1), 8)(data)
    with pytest.raises(ValueError, match="adds equal shapes"):
        _skip("identity", nn.Conv1d(8, 1, 1), 8)(data)  # would broadcast


def test_stochastic_depth_at_zero_and_in_evaluation():
    data = torch.randn(4, 8)
    plain = data + data.tanh()
    assert torch.equal(_skip("stochastic_depth", nn.Tanh(), 8).train()(data), plain)
    skip = _skip("stochastic_depth", nn.Tanh(), 8, p=0.3)
    assert torch.equal(skip.eval()(data), plain)
    skip.train()
    draws = torch.stack([skip(data) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), plain, atol=0.05, rtol=0)
    kept = draws[:, :, 0] != data[:, 0]
    assert abs(kept.float().mean() - 0.7) < 0.03
    whole = (draws != data).all(2) | (draws == data).all(2)
    assert whole.all()  # an epoch keeps its whole branch or loses it
    assert (kept.any(1) & ~kept.all(1)).any()  # epochs are drawn one by one


def test_layerscale_gated_weighted_and_preactivation_follow_their_formulas():
    data = torch.randn(3, 8, 5)
    torch.testing.assert_close(_skip("layerscale", nn.Tanh(), 8, start=1e-4)(data), data + 1e-4 * data.tanh())
    torch.testing.assert_close(_skip("weighted", nn.Tanh(), 8, start=0.3)(data), 0.7 * data + 0.3 * data.tanh())
    gated = _skip("gated", nn.Tanh(), 8)
    gate = torch.sigmoid(gated.inner(data.tanh().mean(2)))
    torch.testing.assert_close(gated(data), data + gate[..., None] * data.tanh())
    normed = nn.functional.group_norm(data, 1)
    torch.testing.assert_close(_skip("preactivation", nn.Tanh(), 8)(data), data + normed.relu().tanh())


def _deep(kind, width=16, depth=50):
    """Fifty layers; where widths add up, each layer adds one channel."""
    torch.manual_seed(0)
    layers = []
    for depth_so_far in range(depth):
        if kind == "concat":
            layers.append(Skip(kind, nn.Sequential(nn.Linear(width + depth_so_far, 1), nn.Tanh())))
        else:
            fn = nn.Sequential(nn.Linear(width, width), nn.Tanh())
            layers.append(Skip(kind, fn, width, p=0.1 if kind == "stochastic_depth" else 0.0))
    return nn.Sequential(*layers, nn.Linear(width + depth if kind == "concat" else width, 1))


def _train(kind):
    network = _deep(kind)
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(128, 16, generator=generator)
    target = torch.sin(data[:, :1]) + data[:, 1:2]
    target = target - target.mean()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    first = None
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(data), target)
        loss.backward()
        optimizer.step()
        first = loss.item() if first is None else first
    network.eval()
    first = min(first, target.square().mean().item())  # no credit for merely calming a loud start
    return first, nn.functional.mse_loss(network(data), target).item()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_fifty_layers_learn_with_every_skip(kind):
    first, last = _train(kind)
    assert last <= first / 2, (first, last)


def test_fifty_layers_without_a_skip_do_not():
    first, last = _train("none")
    assert last > first / 2, (first, last)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("residual", {}, "expected one of"),
        ("highway", {}, "needs the input's width"),
        ("identity", {"out_width": 4}, "out_width=4 has no effect"),
        ("rezero", {"start": 1.0}, "start=1.0 has no effect"),
        ("identity", {"p": 0.1}, "p=0.1 has no effect"),
        ("stochastic_depth", {"p": 1.0}, "probability below 1"),
        ("weighted", {"start": 1.0}, "share between 0 and 1"),
    ],
)
def test_settings_without_effect_or_sense_are_refused(kind, settings, said):
    with pytest.raises(ValueError, match=said):
        Skip(kind, nn.Tanh(), **settings)
