import pytest
import torch

from encoders.layers.temporal_spatial_conv import TemporalSpatialConv, flatten_tokens


@pytest.mark.parametrize(("n_times", "kernel", "pool", "stride"), [(40, 7, 5, 3), (11, 7, 5, 3), (60, 1, 1, 1)])
def test_every_kept_step_is_a_pooled_convolution(n_times, kernel, pool, stride):
    torch.manual_seed(0)
    sizes = {"n_filters": 4, "kernel": kernel, "pool": pool, "stride": stride, "dropout": 0.0}
    convs = TemporalSpatialConv(3, n_times, **sizes).eval()
    data = torch.randn(2, 3, n_times)
    maps = torch.nn.functional.conv2d(data.unsqueeze(1), convs.temporal.weight.unsqueeze(2), convs.temporal.bias)
    maps = torch.nn.functional.avg_pool2d(maps, (1, pool), (1, stride))
    maps = torch.nn.functional.elu(convs.temporal_norm(maps))
    maps = convs.mix(torch.nn.functional.elu(convs.spatial_norm(convs.spatial(maps))))
    assert convs.n_steps == maps.shape[-1]
    torch.testing.assert_close(convs.convolve(data), maps.squeeze(2).transpose(1, 2), atol=1e-5, rtol=1e-4)


def test_the_two_orders_of_flattening():
    tokens = torch.arange(6.0).reshape(1, 2, 3)  # two steps of three filters
    assert flatten_tokens(tokens, "position").tolist() == [[0, 1, 2, 3, 4, 5]]
    assert flatten_tokens(tokens, "channel").tolist() == [[0, 3, 1, 4, 2, 5]]
