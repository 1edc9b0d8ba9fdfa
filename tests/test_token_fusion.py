import math

import pytest
import torch

from encoders.token_fusion import MAX_SCORE, SharedScores, Style, TokenAttention, TokenFusion

STYLES: tuple[Style, ...] = ("albef", "bidirectional", "two_way")
B, N, M, D = 3, 5, 7, 8


def stack(style: Style, layer_scale: float = 0.5, seed: int = 0) -> TokenFusion:
    torch.manual_seed(seed)
    return TokenFusion(style, 2, D, 2, layer_scale)


def tokens(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(B, N, D, generator=generator), torch.randn(B, M, D, generator=generator)
    return first, second, torch.ones(B, N, dtype=torch.bool), torch.ones(B, M, dtype=torch.bool)


@pytest.mark.parametrize("style", STYLES)
def test_with_layer_scale_0_the_tokens_are_the_inputs_exactly(style: Style) -> None:
    first, second, *present = tokens()
    out = stack(style, layer_scale=0.0)(first, second, *present)
    assert torch.equal(out[0], first) and torch.equal(out[1], second)
    out = stack(style)(first, second, *present)
    assert not torch.allclose(out[0], first)
    assert torch.equal(out[1], second) == (style == "albef")


@pytest.mark.parametrize("style", STYLES)
def test_masking_all_tokens_of_one_sequence_is_the_path_without_it(style: Style) -> None:
    module = stack(style)
    first, second, here, there = tokens()
    masked = module(first, second, here, ~there)[0]
    without = module(first, second[:, :0], here, there[:, :0])[0]
    assert masked.isfinite().all()
    torch.testing.assert_close(masked, without, atol=1e-6, rtol=1e-6)
    assert torch.equal(module(first, 100 * second.flip(0), here, ~there)[0], masked)
    assert not torch.allclose(masked, module(first, second, here, there)[0])
    if style != "albef":  # and the other way round
        torch.testing.assert_close(
            module(first, second, ~here, there)[1], module(first[:, :0], second, here[:, :0], there)[1],
            atol=1e-6, rtol=1e-6,
        )  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_absent_tokens_have_no_influence_and_samples_none_on_each_other(style: Style) -> None:
    module = stack(style)
    first, second, here, there = tokens()
    there[0, 2:] = here[1, 3] = False
    out = module(first, second, here, there)
    changed, other = second.clone(), first.clone()
    changed[0, 2:], other[1, 3] = 50.0, -50.0
    again = module(other, changed, here, there)
    assert torch.equal(out[0][here], again[0][here]) and torch.equal(out[1][there], again[1][there])
    alone = module(first[:1, :], second[:1, :2], here[:1], there[:1, :2])
    torch.testing.assert_close(alone[0], out[0][:1], atol=1e-5, rtol=1e-5)


def test_attention_over_absent_keys_is_exactly_0_and_sums_to_1() -> None:
    first, second, here, there = tokens()
    there[0, 2:] = False
    there[1] = False
    weights, _ = TokenAttention(D, 2).weights(first, second, there)
    assert weights.shape == (B, 2, N, 1 + M)
    assert (weights[0, :, :, 3:] == 0).all() and (weights[1, :, :, 1:] == 0).all()
    assert torch.equal(weights[1, :, :, 0], torch.ones(2, N))  # nothing but the null token
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, 2, N))
    here[2, 1] = False
    over_second, over_first = SharedScores(D, 2).weights(first, second, here, there)
    assert (over_second[0, :, :, 3:] == 0).all() and (over_second[1, :, :, 1:] == 0).all()
    assert (over_first[2, :, :, 2] == 0).all()
    torch.testing.assert_close(over_first.sum(-1), torch.ones(B, 2, M))


def test_bidirectional_scores_are_one_matrix() -> None:
    """Log weights of both directions differ by a row constant and a column constant only."""
    first, second, here, there = tokens()
    over_second, over_first = SharedScores(D, 2).weights(first, second, here, there)
    both = over_second[..., 1:].log() - over_first[..., 1:].log().transpose(-1, -2)
    centred = both - both.mean(-1, keepdim=True) - both.mean(-2, keepdim=True) + both.mean((-1, -2), keepdim=True)
    assert centred.abs().max() < 1e-5


def test_scores_are_clamped() -> None:
    first, second, here, there = tokens()
    module = SharedScores(D, 2)
    with torch.no_grad():
        for linear in module.queries:
            linear.weight.mul_(1e5)
    assert all(one.isfinite().all() for one in module.weights(first, second, here, there))
    assert MAX_SCORE == 50_000 and math.isfinite(math.exp(-MAX_SCORE))


def test_width_must_divide_among_heads() -> None:
    with pytest.raises(ValueError, match="width 8 does not divide among 3 heads"):
        TokenFusion("albef", 1, 8, 3, 0.1)
