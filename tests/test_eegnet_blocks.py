"""Spatial filters first equals the published order: outputs, gradients and running statistics, in training too."""

import pytest
import torch
from torch.nn import functional

from encoders.layers.eegnet_blocks import FilterBank
from encoders.layers.temporal_filter import same_padding


def published_order(bank, data, training):
    """Temporal convolution, batch norm, depthwise convolution over sensors, as the paper lists them."""
    maps = functional.conv2d(
        functional.pad(data.unsqueeze(1), same_padding(bank.temporal.kernel_size[0])),
        bank.temporal.weight.unsqueeze(2),
    )
    maps = functional.batch_norm(
        maps, bank.norm.running_mean, bank.norm.running_var, bank.norm.weight, bank.norm.bias, training,
        bank.norm.momentum, bank.norm.eps,
    )  # fmt: skip
    return bank.spatial(maps).squeeze(2)


def bank_and_data(kernel, offset):
    torch.manual_seed(0)
    bank = FilterBank(5, 3, 2, kernel, 0.1).double()
    torch.nn.init.normal_(bank.norm.weight)
    torch.nn.init.normal_(bank.norm.bias)
    return bank, torch.randn(4, 5, 40, dtype=torch.float64) + offset


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("kernel", [7, 16, 60])
def test_training_equals_the_published_order(kernel, offset):
    bank, data = bank_and_data(kernel, offset)
    reference, _ = bank_and_data(kernel, offset)
    data.requires_grad_()
    also = data.detach().clone().requires_grad_()
    found, expected = bank(data), published_order(reference, also, True)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(data.grad, also.grad, atol=1e-9, rtol=1e-9)
    for (name, one), other in zip(bank.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-9, rtol=1e-8, msg=name)
    torch.testing.assert_close(bank.norm.running_mean, reference.norm.running_mean)
    torch.testing.assert_close(bank.norm.running_var, reference.norm.running_var)
    assert int(bank.norm.num_batches_tracked) == 1
    torch.testing.assert_close(bank.eval()(data), published_order(reference, data, False), atol=1e-9, rtol=1e-9)


def test_a_large_offset_does_not_spoil_the_variance_in_float32():
    bank, data = bank_and_data(16, 300.0)
    exact = bank.statistics(data)[1]
    torch.testing.assert_close(bank.float().statistics(data.float())[1].double(), exact, rtol=1e-4, atol=0)


def test_evaluation_leaves_running_statistics_alone():
    bank, data = bank_and_data(7, 0.0)
    before = bank.norm.running_var.clone()
    bank.eval()(data)
    assert torch.equal(bank.norm.running_var, before)
