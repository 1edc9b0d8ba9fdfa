import torch

from encoders.layers.identity_linear import identity_linear


def test_starts_as_the_identity_and_learns() -> None:
    linear = identity_linear(5)
    data = torch.randn(3, 5)
    assert torch.equal(linear(data), data)
    linear(data).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in linear.parameters())
