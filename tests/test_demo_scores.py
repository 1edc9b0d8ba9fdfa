import numpy as np
import pytest
from scipy.stats import binomtest

from generation.demo_scores import interval


@pytest.mark.parametrize(("k", "n"), [(0, 20), (5, 20), (190, 200), (200, 200)])
def test_interval_equals_scipys_wilson(k, n):
    expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert np.allclose(interval(k / n, n), (expected.low, expected.high), atol=2e-4)
