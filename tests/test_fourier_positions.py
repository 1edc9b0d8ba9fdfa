import math

import pytest
import torch

from encoders.layers.fourier_positions import FourierPositions


def test_published_width_has_32_frequencies_and_the_published_phases():
    code = FourierPositions(2048)
    assert code.n_frequencies == 32
    positions = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    out = code(positions)
    assert out.shape == (5, 2048)
    i, j = 3, 7
    phase = 2 * math.pi * (i * (positions[:, 0] + 0.2) + j * (positions[:, 1] + 0.2)) / 1.4
    torch.testing.assert_close(out[:, i * 32 + j], phase.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[:, 1024 + i * 32 + j], phase.sin(), atol=1e-5, rtol=0)


def test_every_place_has_the_same_length_of_code():
    out = FourierPositions(50)(torch.rand(4, 9, 2))
    torch.testing.assert_close(out.square().sum(-1), torch.full((4, 9), 25.0))


@pytest.mark.parametrize("width", [0, -2, 1, 3, 64, 2047, 2050])
def test_width_must_be_twice_a_square(width):
    with pytest.raises(ValueError, match="twice a square"):
        FourierPositions(width)


@pytest.mark.parametrize("n", [1, 2, 12, 32])
def test_twice_a_square_is_accepted(n):
    assert FourierPositions(2 * n * n).n_frequencies == n
