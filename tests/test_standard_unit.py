"""Values without a unit become plausible ones, and a wrong unit is noticed."""

import numpy as np
import pytest

from encoders.datasets.standard_unit import si_factor, standard_unit
from encoders.modality import CHANNEL_KINDS

NOISE = np.random.default_rng(0).standard_normal((5, 3, 100))


@pytest.mark.parametrize("kind", CHANNEL_KINDS)
def test_a_standard_deviation_is_a_plausible_signal_in_half_precision_too(kind: str) -> None:
    low, high = CHANNEL_KINDS[kind].plausible_spread
    assert low < standard_unit(kind) < high
    assert standard_unit(kind) * CHANNEL_KINDS[kind].display_scale == pytest.approx(10.0)
    assert np.isfinite(np.float16(6000 * 10.0)) and np.float16(0.001 * 10.0) > 0


@pytest.mark.parametrize("kind", CHANNEL_KINDS)
def test_the_wrong_unit_is_refused(kind: str) -> None:
    assert si_factor(NOISE, kind, "standard", "x") == standard_unit(kind)
    assert si_factor(NOISE * standard_unit(kind), kind, "SI", "x") == 1.0
    with pytest.raises(ValueError, match="file.npy: values vary by .* set unit to 'SI'"):
        si_factor(NOISE * standard_unit(kind), kind, "standard", "file.npy")
    with pytest.raises(ValueError, match="set unit to 'standard'"):
        si_factor(NOISE, kind, "SI", "file.npy")
