import torch
from torch.nn import functional

from encoders.layers.folded_convolution import FoldedConvolution


def test_it_is_the_two_convolutions_and_has_their_gradients():
    torch.manual_seed(0)
    layer = FoldedConvolution(4, 6, 5, 3, bias=True, max_norm=2.0).double()
    data = torch.randn(2, 5, 20, dtype=torch.float64, requires_grad=True)
    twice = layer.spatial(functional.conv2d(data.unsqueeze(1), layer.temporal.weight, layer.temporal.bias)).squeeze(2)
    once = layer(data)
    torch.testing.assert_close(once, twice)
    inputs = [data, *layer.parameters()]
    aim = torch.randn_like(once)
    apart, folded = (torch.autograd.grad((out * aim).sum(), inputs, retain_graph=True) for out in (twice, once))
    for one, other in zip(apart, folded, strict=True):
        torch.testing.assert_close(one, other)


def test_without_bias():
    layer = FoldedConvolution(4, 6, 5, 3, bias=False, max_norm=2.0)
    data = torch.randn(2, 5, 20)
    twice = layer.spatial(layer.temporal(data.unsqueeze(1))).squeeze(2)
    torch.testing.assert_close(layer(data), twice, atol=1e-5, rtol=1e-5)
