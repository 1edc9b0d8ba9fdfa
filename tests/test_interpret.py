import numpy as np
import pytest

from encoders.interpret import patterns


def test_a_filter_that_cancels_noise_still_gives_the_source_topography():
    rng = np.random.default_rng(0)
    topography, noise = np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0])
    data = np.einsum("c,nt->nct", topography, rng.standard_normal((50, 40)))
    data = data + 5 * np.einsum("c,nt->nct", noise, rng.standard_normal((50, 40)))
    demix = np.linalg.pinv(np.stack([topography, noise], axis=1))
    found = patterns(data, demix)
    unit = topography / np.linalg.norm(topography)
    assert abs(found[0] @ unit) > 0.99
    assert abs(demix[0] @ unit) / np.linalg.norm(demix[0]) < 0.9  # the filter itself is not the topography


def test_mismatched_channels_are_refused():
    with pytest.raises(ValueError, match="the same c, got .2, 3, 4. and .1, 5."):
        patterns(np.zeros((2, 3, 4)), np.zeros((1, 5)))
