"""Skip connections: ways to carry a layer's input past it. Adding the input unchanged is only one of them.

All kinds work on ``(b, width, ...)`` and wrap any layer, so that a network can compare them by one word.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal[
    "none",
    "identity",
    "projection",
    "preactivation",
    "highway",
    "rezero",
    "layerscale",
    "concat",
    "gated",
    "stochastic_depth",
    "weighted",
]
NEEDS_WIDTH = ("projection", "preactivation", "highway", "layerscale", "gated")


class Skip(nn.Module):
    """Wrap a layer ``f`` with a skip connection.

    Parameters
    ----------
    kind : str
        ``none`` f(x); ``identity`` x + f(x); ``projection`` P x + f(x) with a learned ``width`` to ``out_width`` map;
        ``preactivation`` x + f(relu(norm(x))); ``highway`` T f(x) + (1 - T) x with T = sigmoid(W x + bias);
        ``rezero`` x + a f(x) with a = 0 at first; ``layerscale`` the same with one small a per channel; ``concat`` [x,
        f(x)] as in DenseNet and U-Net; ``gated`` x + g f(x), g from the mean of f(x) (squeeze and excitation);
        ``stochastic_depth`` x + f(x), the branch left out at random per epoch; ``weighted`` a convex combination of x
        and f(x), mostly x at first.
    fn : nn.Module
        The layer.
    width : int
        Width of the input; needed by the kinds with weights per channel.
    out_width : int, optional
        Width of f(x), for ``projection``; equal to ``width`` if left out.
    start : float, optional
        ``highway``: bias of the gate (-2); ``layerscale``: scale (0.1); ``weighted``: share of f(x) (0.1).
    p : float
        ``stochastic_depth``: probability that the branch is left out in training; what is kept is scaled by
        1 / (1 - p), so evaluation is the expectation of training.

    Raises
    ------
    ValueError
        If the kind is unknown, a setting has no effect on it or a needed one is missing; in the forward pass, if x and
        f(x) differ in shape where they are added.

    References
    ----------
    He et al. 2016, arXiv:1512.03385 and 1603.05027; Srivastava et al. 2015, arXiv:1505.00387 (highway); Bachlechner et
    al. 2020, arXiv:2003.04887 (ReZero); Touvron et al. 2021, arXiv:2103.17239 (LayerScale); Huang et al. 2016,
    arXiv:1603.09382 (stochastic depth); Huang et al. 2017, arXiv:1608.06993 (DenseNet); Hu et al. 2018,
    arXiv:1709.01507 (squeeze and excitation); Tan et al. 2020, arXiv:1911.09070 (weighted sums).
    """

    def __init__(
        self,
        kind: Kind,
        fn: nn.Module,
        width: int = 0,
        *,
        out_width: int | None = None,
        start: float | None = None,
        p: float = 0.0,
    ) -> None:
        super().__init__()
        _check(kind, width, out_width, start, p)
        self.kind, self.fn, self.p = kind, fn, p
        self.norm = nn.GroupNorm(1, width) if kind == "preactivation" else None
        self.inner: nn.Linear | None = None
        if kind == "projection":
            self.inner = nn.Linear(width, out_width or width, bias=False)
            nn.init.orthogonal_(self.inner.weight)  # many in a row neither shrink nor blow up what they carry
        elif kind in ("highway", "gated"):
            self.inner = nn.Linear(width, width)
        if kind == "highway" and self.inner is not None:
            nn.init.constant_(self.inner.bias, -2.0 if start is None else start)
        self.scale: nn.Parameter | None = None
        if kind == "rezero":
            self.scale = nn.Parameter(torch.zeros(()))
        elif kind == "layerscale":
            self.scale = nn.Parameter(torch.full((width,), 0.1 if start is None else start))
        elif kind == "weighted":
            self.scale = nn.Parameter(torch.tensor(0.1 if start is None else start).logit())

    def forward(self, data: Tensor) -> Tensor:
        """Transform ``(b, width, ...)`` to ``(b, out_width, ...)``; the width is the sum of both for ``concat``."""
        branch: Tensor = self.fn(data if self.norm is None else F.relu(self.norm(data)))
        if self.kind == "none":
            return branch
        if self.kind == "concat":
            return torch.cat((data, branch), dim=1)
        carried = self._pointwise(data) if self.kind == "projection" else data
        if carried.shape != branch.shape:
            raise ValueError(
                f"skip '{self.kind}' adds equal shapes, got {tuple(carried.shape)} and {tuple(branch.shape)} from the "
                "layer; use kind='projection' with out_width or kind='concat'"
            )
        return self._join(data, carried, branch)

    def _join(self, data: Tensor, carried: Tensor, branch: Tensor) -> Tensor:
        if self.kind == "highway":
            return torch.lerp(carried, branch, self._pointwise(data).sigmoid())
        if self.kind == "gated" and self.inner is not None:
            gate: Tensor = self.inner(branch.flatten(2).mean(dim=2) if branch.ndim > 2 else branch).sigmoid()
            return carried + branch * gate.reshape(*gate.shape, *(1,) * (branch.ndim - 2))
        if self.kind == "stochastic_depth":
            kept = F.dropout(branch.new_ones(len(branch), *(1,) * (branch.ndim - 1)), self.p, self.training)
            return carried + branch * kept
        if self.scale is None:
            return carried + branch
        if self.kind == "weighted":
            return torch.lerp(carried, branch, self.scale.sigmoid())
        scale = self.scale if self.kind == "rezero" else self.scale.reshape(-1, *(1,) * (branch.ndim - 2))
        return carried + scale * branch

    def _pointwise(self, data: Tensor) -> Tensor:
        """Apply the inner dense layer to the width, axis 1."""
        assert self.inner is not None
        mixed: Tensor = self.inner(data.movedim(1, -1))
        return mixed.movedim(-1, 1)


def _check(kind: str, width: int, out_width: int | None, start: float | None, p: float) -> None:
    """Refuse unknown kinds and settings that would do nothing or are missing."""
    if kind not in get_args(Kind):
        raise ValueError(f"skip kind is {kind!r}, expected one of {get_args(Kind)}")
    if kind in NEEDS_WIDTH and width < 1:
        raise ValueError(f"skip '{kind}' needs the input's width, got {width}; pass width")
    if out_width is not None and kind != "projection":
        raise ValueError(f"out_width={out_width} has no effect on skip '{kind}'; use kind='projection' or leave it out")
    if start is not None and kind not in ("highway", "layerscale", "weighted"):
        raise ValueError(f"start={start} has no effect on skip '{kind}'; leave it out")
    if start is not None and kind == "weighted" and not 0 < start < 1:
        raise ValueError(f"skip 'weighted' expects a share between 0 and 1, got start={start}; give for example 0.1")
    if p and kind != "stochastic_depth":
        raise ValueError(f"p={p} has no effect on skip '{kind}'; use kind='stochastic_depth' or leave it out")
    if not 0 <= p < 1:
        raise ValueError(f"p is {p}, expected a probability below 1; give for example 0.1")
