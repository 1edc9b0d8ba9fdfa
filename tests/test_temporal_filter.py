"""Depthwise filters by banded matrices equal the convolution, and padding is Keras'."""

import numpy as np
import pytest
import torch

from encoders.layers.temporal_filter import filter_each, same_padding


@pytest.mark.parametrize(("kernel", "expected"), [(64, (31, 32)), (7, (3, 3)), (16, (7, 8)), (1, (0, 0))])
def test_an_even_kernel_gets_the_odd_zero_after(kernel, expected):
    assert same_padding(kernel) == expected


@pytest.mark.parametrize(("n_times", "kernel"), [(64, 50), (40, 64), (10, 1), (300, 7), (120, 5)])
def test_both_ways_equal_correlation_written_out(n_times, kernel):
    generator = np.random.default_rng(0)
    data, taps = generator.standard_normal((2, 3, n_times)), generator.standard_normal((3, kernel))
    padded = np.pad(data, ((0, 0), (0, 0), same_padding(kernel)))
    expected = np.stack(
        [[np.correlate(padded[b, f], taps[f], "valid") for f in range(3)] for b in range(2)]
    )  # fmt: skip
    found = filter_each(torch.from_numpy(data), torch.from_numpy(taps))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("n_times", [20, 120])
def test_gradients(n_times):
    torch.manual_seed(0)
    data = torch.randn(1, 2, n_times, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(filter_each, (data, taps))
