import pytest
import torch
from torch.nn import functional

from encoders.layers.cot_block import CoTBlock, aggregate_locally


def _double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _naive(values, kernels):
    n_epochs, dim, height, width = values.shape
    n_kernels, side = kernels.shape[1], round(kernels.shape[2] ** 0.5)
    out = torch.zeros_like(values)
    for b in range(n_epochs):
        for c in range(dim):
            for y in range(height):
                for x in range(width):
                    for tap in range(side * side):
                        row, column = y + tap // side - side // 2, x + tap % side - side // 2
                        if 0 <= row < height and 0 <= column < width:
                            out[b, c, y, x] += kernels[b, c % n_kernels, tap, y, x] * values[b, c, row, column]
    return out


@pytest.mark.parametrize(("dim", "count"), [(16, 3_062), (32, 8_492), (64, 26_744), (128, 105_200)])
def test_published_parameter_counts(dim, count):
    assert sum(parameter.numel() for parameter in CoTBlock(dim).parameters()) == count


@pytest.mark.parametrize("side", [3, 5])
def test_aggregation_equals_a_loop_over_pixels_and_unfolding(side):
    values, kernels = _double(2, 16, 4, 5), _double(2, 2, side * side, 4, 5, seed=1)
    found = aggregate_locally(values, kernels)
    torch.testing.assert_close(found, _naive(values, kernels), atol=1e-12, rtol=0)
    patches = functional.unfold(values, side, padding=side // 2).reshape(2, 8, 2, side * side, 4, 5)
    unfolded = (patches * kernels[:, None]).sum(3).reshape(values.shape)
    torch.testing.assert_close(found, unfolded, atol=1e-12, rtol=0)
    single = aggregate_locally(values.float(), kernels.float())
    torch.testing.assert_close(single, found.float(), atol=1e-5, rtol=0)


def test_aggregation_passes_gradcheck():
    values, kernels = _double(2, 8, 3, 4).requires_grad_(), _double(2, 2, 9, 3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(aggregate_locally, (values, kernels))


def test_the_block_passes_gradcheck():
    torch.manual_seed(0)
    block = CoTBlock(8).double().eval()
    assert torch.autograd.gradcheck(block, _double(2, 8, 3, 4).requires_grad_())


def test_equal_weights_are_average_pooling_inside_the_border():
    values = _double(2, 16, 6, 7)
    found = aggregate_locally(values, torch.full((2, 2, 9, 6, 7), 1 / 9, dtype=torch.float64))
    torch.testing.assert_close(found[..., 1:-1, 1:-1], functional.avg_pool2d(values, 3, 1), atol=1e-12, rtol=0)


def test_fusion_weights_sum_to_one_and_fuse_the_two_contexts():
    torch.manual_seed(0)
    block, maps = CoTBlock(16).train(), torch.randn(4, 16, 6, 5)
    block(maps)
    block.eval()
    static, dynamic = block.contexts(maps)
    weights = block.fusion_weights(static, dynamic)
    assert weights.shape == (4, 16, 2) and (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 16), atol=1e-6, rtol=0)
    expected = weights[..., 0, None, None] * dynamic + weights[..., 1, None, None] * static
    torch.testing.assert_close(block(maps), expected, atol=1e-6, rtol=1e-5)
    assert (static >= 0).all()


def test_a_quiet_start_scales_both_contexts():
    torch.manual_seed(0)
    loud, quiet, maps = CoTBlock(16).eval(), CoTBlock(16, start=0.1).eval(), torch.randn(4, 16, 6, 5)
    assert all((norm.weight == 0.1).all() for norm in (quiet.context[1], quiet.norm))
    assert quiet(maps).norm() < 0.2 * loud(maps).norm()


def test_a_batch_of_one_can_be_trained():
    torch.manual_seed(0)
    block = CoTBlock(16).train()
    before = block.squeeze_norm.running_mean.clone()
    block(torch.randn(1, 16, 6, 5)).sum().backward()
    assert torch.equal(block.squeeze_norm.running_mean, before)
    block(torch.randn(2, 16, 6, 5))
    assert not torch.equal(block.squeeze_norm.running_mean, before)


def test_wrong_widths_and_kernels_are_refused():
    with pytest.raises(ValueError, match="multiple of 8, got 20"):
        CoTBlock(20)
    with pytest.raises(ValueError, match="odd kernel, got 4"):
        CoTBlock(16, kernel=4)
