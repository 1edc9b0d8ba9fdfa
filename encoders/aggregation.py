"""Ways to make one embedding of several.

Which to take: ``concat`` keeps everything and lets the next layer weigh it, at the price of a wider layer and of no
answer when an input is missing; ``add`` and ``mean`` cost nothing but need inputs that live in one space; ``gated`` and
``attention`` weigh per sample; ``film`` and ``lowrank_bilinear`` model interactions; ``max`` keeps the strongest.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["concat", "add", "mean", "max", "gated", "attention", "film", "lowrank_bilinear"]


class Concat(nn.Module):
    """One dense layer over all inputs side by side; starts as their sum."""

    def __init__(self, n_inputs: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_inputs * width, width)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(width).repeat(1, n_inputs))
            self.linear.bias.zero_()

    def forward(self, inputs: Tensor, present: Tensor) -> Tensor:
        # (m, b, d) -> (b, m * d)
        mixed: Tensor = self.linear(_silenced(inputs, present).transpose(0, 1).flatten(1))
        return mixed


class Add(nn.Module):
    """The sum of the inputs, in whatever order."""

    def forward(self, inputs: Tensor, present: Tensor) -> Tensor:
        return _silenced(inputs, present).sum(dim=0)


class Mean(nn.Module):
    """The mean of the inputs that are present."""

    def forward(self, inputs: Tensor, present: Tensor) -> Tensor:
        return _silenced(inputs, present).sum(dim=0) / present.sum(dim=0).unsqueeze(-1)


class Max(nn.Module):
    """The largest of the inputs that are present, feature by feature."""

    def forward(self, inputs: Tensor, present: Tensor) -> Tensor:
        return inputs.masked_fill(~present.unsqueeze(-1), -math.inf).amax(dim=0)


class Gated(nn.Module):
    """A weighted mean, feature by feature, with weights that depend on all inputs; starts as the mean.

    References
    ----------
    Arevalo et al. 2017, "Gated multimodal units for information fusion", arXiv:1702.01992, with a softmax over inputs.
    """

    def __init__(self, n_inputs: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(n_inputs * width, n_inputs * width)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def weights(self, inputs: Tensor, present: Tensor) -> Tensor:
        """Weights (m, b, d); they sum to 1 over the inputs and are 0 for absent ones."""
        # (m, b, d) -> (b, m * d) -> (m, b, d)
        scores = self.gate(_silenced(inputs, present).transpose(0, 1).flatten(1))
        scores = scores.reshape(inputs.shape[1], len(inputs), -1).transpose(0, 1)
        return _softmax(scores, present.unsqueeze(-1))

    def forward(self, inputs: Tensor, present: Tensor) -> Tensor:
        return (self.weights(inputs, present) * _silenced(inputs, present)).sum(dim=0)


class Attention(nn.Module):
    """A weighted mean with one weight per input: softmax of a learned query's scores; starts as the mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))

    def weights(self, inputs: Tensor, present: Tensor) -> Tensor:
        """Weights (m, b); they sum to 1 over the inputs and are 0 for absent ones."""
        return _softmax(inputs @ self.query / math.sqrt(inputs.shape[-1]), present)

    def forward(self, inputs: Tensor, present: Tensor) -> Tensor:
        return (self.weights(inputs, present).unsqueeze(-1) * _silenced(inputs, present)).sum(dim=0)


class FiLM(nn.Module):
    """Scale and shift the first input feature by feature, as the mean of the others says; starts as their sum.

    References
    ----------
    Perez et al. 2018, "FiLM: visual reasoning with a general conditioning layer", AAAI, arXiv:1709.07871.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Linear(width, width)
        self.shift = nn.Linear(width, width)
        for linear in (self.scale, self.shift):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.eye_(self.shift.weight)

    def forward(self, inputs: Tensor, present: Tensor) -> Tensor:
        first = _silenced(inputs, present)[0]
        count = present[1:].sum(dim=0).clamp(min=1).unsqueeze(-1)
        others = _silenced(inputs, present)[1:].sum(dim=0) / count
        out: Tensor = first * (1 + self.scale(others)) + self.shift(others)
        return out


class LowRankBilinear(nn.Module):
    """Products of the inputs through ``rank`` factors; a 1 appended to each input keeps the linear terms as well.

    With two inputs this is ``[x; 1]^T T [y; 1]`` for a tensor T of rank ``rank``; with ``rank = (d + 1) ** 2`` it is
    any such tensor. An absent input counts as ``[0; 1]``.

    References
    ----------
    Liu et al. 2018, "Efficient low-rank multimodal fusion with modality-specific factors", ACL, arXiv:1806.00064.
    """

    def __init__(self, n_inputs: int, width: int, rank: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.randn(n_inputs, width + 1, rank) / math.sqrt(width))
        with torch.no_grad():
            self.factors[:, -1] = 1  # every product starts near 1, so that each input alone reaches the output
        self.out = nn.Linear(rank, width)

    def forward(self, inputs: Tensor, present: Tensor) -> Tensor:
        factors = torch.einsum("mbd,mdr->mbr", _silenced(inputs, present), self.factors[:, :-1])
        mixed: Tensor = self.out((factors + self.factors[:, -1:]).prod(dim=0))
        return mixed


def aggregator(kind: Kind, n_inputs: int, width: int, rank: int = 256) -> nn.Module:
    """Build what makes one embedding of several.

    Parameters
    ----------
    kind : str
        See the module's docstring.
    n_inputs : int
        Number of inputs, at least 2.
    width : int
        Of each input and of the output.
    rank : int
        Factors of ``lowrank_bilinear``; the other kinds have none.

    Returns
    -------
    nn.Module
        ``forward(inputs (m, b, d), present (m, b) bool) -> (b, d)``. What absent inputs hold has no influence.
    """
    makers: dict[str, Callable[[], nn.Module]] = {
        "concat": lambda: Concat(n_inputs, width),
        "add": Add,
        "mean": Mean,
        "max": Max,
        "gated": lambda: Gated(n_inputs, width),
        "attention": lambda: Attention(width),
        "film": lambda: FiLM(width),
        "lowrank_bilinear": lambda: LowRankBilinear(n_inputs, width, rank),
    }
    return makers[kind]()


def _silenced(inputs: Tensor, present: Tensor) -> Tensor:
    return inputs.masked_fill(~present.unsqueeze(-1), 0)


def _softmax(scores: Tensor, present: Tensor) -> Tensor:
    return scores.masked_fill(~present, -math.inf).softmax(dim=0)
