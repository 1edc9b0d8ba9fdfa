"""A dense layer that starts as the identity: at first it changes nothing."""

from torch import nn


def identity_linear(width: int) -> nn.Linear:
    """Build a square dense layer with the identity as weight and no bias at the start."""
    linear = nn.Linear(width, width)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
