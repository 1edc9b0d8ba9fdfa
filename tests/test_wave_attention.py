import pytest
import torch

from encoders.layers.wave_attention import WaveAttention


def _block(dim=16, heads=4, sr_ratio=1):
    torch.manual_seed(0)
    return WaveAttention(dim, heads, sr_ratio).double().eval()


def _maps(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(16, 25), (5, 63), (8, 8)], ids=str)
@pytest.mark.parametrize("sr_ratio", [1, 2])
def test_shape_stays_and_keys_are_at_half_the_resolution(size, sr_ratio):
    block, maps = _block(sr_ratio=sr_ratio), _maps(2, 16, *size)
    keys, values, detail = block.keys_and_values(maps)
    n = (-(-size[0] // 2) // sr_ratio) * (-(-size[1] // 2) // sr_ratio)
    assert keys.shape == values.shape == (2, 4, n, 4)
    assert detail.shape == (2, 4, *size)
    assert block(maps).shape == maps.shape


def test_parameter_count():
    d = 32
    query, reduce, filtered = d * d + d, d * d // 4 + 2 * d // 4, 9 * d * d + 2 * d
    shorten, norm, key_value, project = 4 * d * d + d, 2 * d, 2 * d * d + 2 * d, (d + d // 4) * d + d
    found = sum(parameter.numel() for parameter in WaveAttention(d, 4, 2).parameters())
    assert found == query + reduce + filtered + shorten + norm + key_value + project


def test_without_a_filter_the_inverse_transform_returns_the_reduced_map():
    block, maps = _block(), _maps(2, 16, 7, 9)
    block.filter = torch.nn.Identity()
    torch.testing.assert_close(block.keys_and_values(maps)[2], block.reduce(maps), atol=1e-12, rtol=0)


def test_output_is_softmax_attention_beside_the_detail():
    block, maps = _block(), _maps(2, 16, 6, 5)
    keys, values, detail = block.keys_and_values(maps)
    query = block.query(maps).reshape(2, 4, 4, 30)
    weights = (torch.einsum("bhdn,bhmd->bhnm", query, keys) / 2).softmax(-1)
    seen = torch.einsum("bhnm,bhmd->bhdn", weights, values).reshape(2, 16, 6, 5)
    expected = block.project(torch.cat((seen, detail), dim=1))
    torch.testing.assert_close(block(maps), expected, atol=1e-10, rtol=0)


def test_every_position_sees_the_whole_map():
    block, maps = _block(64), _maps(1, 64, 8, 8).requires_grad_()  # wide: a ReLU may silence one of few channels
    block(maps)[0, :, 0, 0].sum().backward()
    assert (maps.grad.abs().sum(1) > 0).all()


def test_gradients():
    assert torch.autograd.gradcheck(_block(8, 2), _maps(1, 8, 3, 4).requires_grad_())


def test_wrong_widths_and_too_small_maps_are_refused():
    with pytest.raises(ValueError, match="divisible by 4 and by its 5 heads, got 16"):
        WaveAttention(16, 5)
    with pytest.raises(ValueError, match="at least 8 rows and columns, got"):
        _block(sr_ratio=4)(_maps(1, 16, 6, 20))
