"""What a network asks of training besides its loss: max-norm projections after a step, and penalty terms.

A max-norm is a projection after the optimizer's step, not weight decay; an L1 norm is a term of the loss, not AdamW's
decay. Both are collected here from whatever modules have them, so that the training loop knows no network by name.
"""

from typing import Any

import torch
from torch import Tensor, nn

EPSILON = 1e-7


class MaxNormLinear(nn.Linear):
    """A dense layer whose rows (the weights of one output) have a length of at most ``max_norm`` after every step."""

    def __init__(self, n_in: int, n_out: int, max_norm: float, bias: bool = True) -> None:
        super().__init__(n_in, n_out, bias)
        self.max_norm = max_norm


class MaxNormConv2d(nn.Conv2d):
    """A convolution whose filters have a length of at most ``max_norm`` after every step.

    Parameters
    ----------
    max_norm : float
        Limit of the Euclidean norm of each output map's filter (all of its inputs and taps).
    *args, **kwargs
        As `torch.nn.Conv2d`.
    """

    def __init__(self, *args: Any, max_norm: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_norm = max_norm


@torch.no_grad()
def apply_constraints(module: nn.Module) -> None:
    """Shorten every filter that is longer than its layer allows, in place; call after each optimizer step."""
    for part in module.modules():
        if isinstance(part, MaxNormLinear | MaxNormConv2d):
            flat = part.weight.flatten(1)
            length = flat.norm(dim=1, keepdim=True)
            flat.mul_(length.clamp(max=part.max_norm) / length.clamp(min=EPSILON))


def penalties(module: nn.Module) -> Tensor | None:
    """Sum ``penalty()`` of all parts that have one; None if there is none.

    Returns
    -------
    Tensor, () or None
        To be added to the loss.
    """
    terms = [part.penalty() for part in module.modules() if isinstance(part, Penalised)]
    return torch.stack(terms).sum() if terms else None


class Penalised(nn.Module):
    """A network with a penalty of its own, for example an L1 norm of its filters."""

    def penalty(self) -> Tensor:
        """Return what is to be added to the loss, ()."""
        raise NotImplementedError
