import pytest
import torch

from encoders.layers.spatial_attention import SpatialAttention


def _positions(n_channels, seed=0):
    return torch.rand(n_channels, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("init", ["random", "anchored"])
@pytest.mark.parametrize("n_channels", [63, 271])
def test_rows_sum_to_one_on_any_montage(init, n_channels):
    torch.manual_seed(0)
    weights = SpatialAttention(24, 128, 0.2, init).weights(_positions(n_channels))
    assert weights.shape == (24, n_channels)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(24))


def test_unknown_positions_get_exactly_zero_weight():
    torch.manual_seed(0)
    positions = _positions(10)
    positions[3] = -0.1
    positions[7, 1] = -0.1
    attention = SpatialAttention(6, 32)
    assert (attention.weights(positions)[:, [3, 7]] == 0).all()
    data = torch.randn(2, 10, 5)
    other = data.clone()
    other[:, [3, 7]] = 1e6
    torch.testing.assert_close(attention(data, positions), attention(other, positions), rtol=0, atol=0)


def test_dropped_sensors_get_exactly_zero_weight_and_only_in_training():
    torch.manual_seed(0)
    positions = _positions(40)
    attention = SpatialAttention(6, 32, dropout_radius=0.3).train()
    torch.manual_seed(5)
    weights = attention.weights(positions)
    torch.manual_seed(5)
    near = (positions - torch.rand(2)).norm(dim=-1) <= 0.3
    assert near.any() and not near.all()
    assert (weights[:, near] == 0).all() and (weights[:, ~near] > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(6))
    assert (attention.eval().weights(positions) > 0).all()


def test_one_centre_serves_the_whole_batch():
    torch.manual_seed(0)
    attention = SpatialAttention(3, 32, dropout_radius=0.3).train()
    zeros = attention.weights(_positions(40).expand(4, 40, 2)) == 0
    assert zeros.any() and (zeros == zeros[:1]).all()


@pytest.mark.parametrize("n_channels", [1, 2, 5])
def test_spatial_dropout_keeps_at_least_one_known_sensor(n_channels):
    torch.manual_seed(0)
    positions = torch.cat([_positions(n_channels), torch.full((1, 2), -0.1)])
    attention = SpatialAttention(3, 32, dropout_radius=10.0).train()
    for _ in range(20):
        weights = attention.weights(positions)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3))
        assert (weights[:, -1] == 0).all()
        assert ((weights > 0).sum(-1) == 1).all()


def test_permuting_sensors_with_their_positions_changes_nothing():
    torch.manual_seed(0)
    attention = SpatialAttention(8, 128, init="anchored")
    positions, data, order = _positions(63), torch.randn(3, 63, 20), torch.randperm(63)
    torch.testing.assert_close(
        attention(data[:, order], positions[order]), attention(data, positions), atol=1e-5, rtol=0
    )


def test_batched_positions_equal_shared_ones():
    torch.manual_seed(0)
    attention = SpatialAttention(8, 32)
    positions, data = _positions(20), torch.randn(3, 20, 7)
    torch.testing.assert_close(attention(data, positions.expand(3, 20, 2)), attention(data, positions))


def test_anchored_start_is_better_conditioned_than_the_published_one():
    torch.manual_seed(0)
    grid = torch.stack(torch.meshgrid(torch.linspace(0.1, 0.9, 8), torch.linspace(0.1, 0.9, 8), indexing="ij"), -1)
    ranks = []
    for init in ("random", "anchored"):
        singular = torch.linalg.svdvals(SpatialAttention(64, 288, init=init).weights(grid.reshape(-1, 2)))
        ranks.append((singular.square().sum() ** 2 / singular.pow(4).sum()).item())
    assert ranks[0] < 4 and ranks[1] > 20


def test_no_known_position_is_refused():
    with pytest.raises(ValueError, match="positions"):
        SpatialAttention(3, 32)(torch.randn(1, 4, 5), torch.full((4, 2), -0.1))
