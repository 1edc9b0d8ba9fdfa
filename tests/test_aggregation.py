import math

import pytest
import torch
from torch import nn

from encoders.aggregation import Add, Attention, Concat, FiLM, Gated, Kind, LowRankBilinear, Max, Mean, aggregator

KINDS: tuple[Kind, ...] = ("concat", "add", "mean", "max", "gated", "attention", "film", "lowrank_bilinear")
M, B, D = 3, 5, 4


def inputs(n: int = M, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, B, D, generator=generator, dtype=torch.float64), torch.ones(n, B, dtype=torch.bool)


def stirred(module: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return module.double()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_one_embedding_and_ignores_what_absent_inputs_hold(kind: Kind) -> None:
    module = stirred(aggregator(kind, M, D, rank=6))
    data, present = inputs()
    present[1, 2] = present[2, 3] = False
    out = module(data, present)
    assert out.shape == (B, D) and out.isfinite().all()
    other = data.masked_fill(~present.unsqueeze(-1), math.nan)
    assert torch.equal(module(other, present), out)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_depend_on_batch_mates(kind: Kind) -> None:
    module = stirred(aggregator(kind, M, D, rank=6))
    data, present = inputs()
    torch.testing.assert_close(module(data[:, 1:2], present[:, 1:2]), module(data, present)[1:2], atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["add", "mean", "max", "attention"])
def test_kinds_without_roles_do_not_see_the_order(kind: Kind) -> None:
    module = stirred(aggregator(kind, M, D))
    data, present = inputs()
    present[0, 1] = False
    swapped = [2, 0, 1]
    torch.testing.assert_close(module(data[swapped], present[swapped]), module(data, present), atol=1e-14, rtol=0)


def test_add_mean_and_max_are_what_they_say() -> None:
    data, present = inputs()
    present[2] = False
    torch.testing.assert_close(Add()(data, present), data[0] + data[1])
    torch.testing.assert_close(Mean()(data, present), (data[0] + data[1]) / 2)
    assert torch.equal(Max()(data, present), torch.maximum(data[0], data[1]))
    assert not list(Add().parameters()) + list(Mean().parameters()) + list(Max().parameters())


def test_concat_with_block_weights_is_exactly_add_of_mapped_inputs() -> None:
    """Small integers, so that float32 sums are exact in any order."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randint(-8, 9, (2, B, D), generator=generator).float()
    w1, w2 = torch.randint(-8, 9, (2, D, D), generator=generator).float()
    concat = Concat(2, D)
    with torch.no_grad():
        concat.linear.weight.copy_(torch.cat([w1, w2], dim=1))
    present = torch.ones(2, B, dtype=torch.bool)
    added = Add()(torch.stack([x @ w1.T, y @ w2.T]), present)
    assert torch.equal(concat(torch.stack([x, y]), present), added)


def test_concat_and_film_start_as_the_sum_and_gates_and_attention_as_the_mean() -> None:
    data, present = inputs(2)
    for module in (Concat(2, D), FiLM(D)):
        torch.testing.assert_close(module.double()(data, present), data.sum(dim=0))
    for module in (Gated(2, D), Attention(D)):
        torch.testing.assert_close(module.double()(data, present), data.mean(dim=0))


@pytest.mark.parametrize("kind", ["gated", "attention"])
def test_weights_sum_to_one_and_are_zero_for_absent_inputs(kind: Kind) -> None:
    module = stirred(aggregator(kind, M, D))
    assert isinstance(module, Gated | Attention)
    data, present = inputs()
    present[1, 2] = False
    weights = module.weights(data, present)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones_like(weights[0]), atol=1e-12, rtol=0)
    assert (weights[1, 2] == 0).all() and (weights >= 0).all() and weights.std() > 0.01


def test_film_is_affine_in_what_it_modulates() -> None:
    module = stirred(FiLM(D))
    data, present = inputs(2)
    other = inputs(2, seed=1)[0]
    mixed = torch.stack([0.3 * data[0] + 0.7 * other[0], data[1]])
    ends = [module(data, present), module(torch.stack([other[0], data[1]]), present)]
    torch.testing.assert_close(module(mixed, present), 0.3 * ends[0] + 0.7 * ends[1])
    modulated = data[0] * (1 + module.scale(data[1])) + module.shift(data[1])
    torch.testing.assert_close(module(data, present), modulated)


def test_lowrank_bilinear_of_full_rank_is_any_bilinear_map() -> None:
    data, present = inputs(2)
    n = D + 1
    tensor = torch.randn(D, n, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x, y = (torch.cat([one, torch.ones(B, 1, dtype=torch.float64)], dim=1) for one in data)
    expected = torch.einsum("bi,oij,bj->bo", x, tensor, y)
    module = LowRankBilinear(2, D, rank=n * n).double()
    with torch.no_grad():
        module.factors[0] = torch.eye(n).repeat_interleave(n, dim=1)
        module.factors[1] = torch.eye(n).repeat(1, n)
        module.out.weight.copy_(tensor.flatten(1))
        module.out.bias.zero_()
    torch.testing.assert_close(module(data, present), expected, atol=1e-12, rtol=1e-12)


def test_lowrank_bilinear_keeps_the_linear_terms() -> None:
    module = stirred(LowRankBilinear(2, D, rank=6))
    data, present = inputs(2)
    present[1] = False  # [0; 1] in the place of the second: what is left is affine in the first
    half = module(torch.stack([data[0] / 2, data[1]]), present)
    nothing = module(torch.stack([0 * data[0], data[1]]), present)
    torch.testing.assert_close(half, (module(data, present) + nothing) / 2)
