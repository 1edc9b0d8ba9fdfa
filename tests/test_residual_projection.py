import torch

from encoders.layers.residual_projection import ResidualProjection


def test_published_shapes_and_count():
    head = ResidualProjection(1440, 1024, 0.5)
    assert head.linear.weight.shape == (1024, 1440)
    assert sum(p.numel() for p in head.parameters()) == 1440 * 1024 + 1024 + 1024 * 1024 + 1024 + 2 * 1024


def test_output_is_the_norm_of_linear_plus_residual():
    torch.manual_seed(0)
    head = ResidualProjection(9, 5, 0.5).eval()
    features = torch.randn(4, 9)
    hidden = features @ head.linear.weight.T + head.linear.bias
    dense = head.residual[1]
    expected = hidden + torch.nn.functional.gelu(hidden) @ dense.weight.T + dense.bias
    centred = expected - expected.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(head(features), expected, atol=1e-5, rtol=1e-5)
