"""Directed connectivity: what the past of one sensor adds to the prediction of another.

All measures come from one vector autoregressive model, ``x_t = c + sum_k A_k x_{t-k} + e_t``, fitted by least squares
over all epochs, and are conditioned on all other channels. Matrices read ``[receiver, sender]``, as adjacencies do.

References
----------
Geweke 1982, J. Am. Stat. Assoc. 77 (Granger causality); Baccala and Sameshima 2001, Biol. Cybern. 84 (PDC); Kaminski
and Blinowska 1991, Biol. Cybern. 65 (DTF); Barnett, Barrett and Seth 2009, Phys. Rev. Lett. 103 (transfer entropy).
"""

from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor


@dataclass(frozen=True)
class VARModel:
    """A fitted vector autoregressive model.

    Attributes
    ----------
    coefficients : Tensor, (..., order, c, c), float64
        ``[k - 1, i, j]``: weight of channel ``j``, ``k`` samples ago, in channel ``i``.
    noise : Tensor, (..., c, c), float64
        Covariance of the residuals.
    added : Tensor, (..., c, c), float64
        ``[i, j]``: by how much the residual sum of squares of ``i`` grows if the past of ``j`` is left out; the
        diagonal is 0.
    residual : Tensor, (..., c), float64
        Residual sum of squares.
    n_samples : int
        Predicted samples.
    """

    coefficients: Tensor
    noise: Tensor
    added: Tensor
    residual: Tensor
    n_samples: int

    @property
    def order(self) -> int:
        """Number of lags."""
        return self.coefficients.shape[-3]

    @property
    def n_free(self) -> int:
        """Degrees of freedom that are left for the residuals of one channel."""
        return self.n_samples - self.order * self.coefficients.shape[-1] - 1


def fit_var(data: Tensor, order: int) -> VARModel:
    """Fit a vector autoregressive model by least squares, with a constant.

    Parameters
    ----------
    data : Tensor, (..., n_epochs, c, t), floating
        Computed in float64. Lags do not reach across epochs.
    order : int
        Number of lags.

    Returns
    -------
    VARModel

    Raises
    ------
    ValueError
        If there are not more predicted samples than unknowns per channel.
    """
    n_epochs, n_channels, n_times = data.shape[-3:]
    n_samples, n_unknown = n_epochs * (n_times - order), order * n_channels + 1
    if order < 1 or n_samples <= n_unknown:
        raise ValueError(
            f"a model of order {order} on {n_channels} channels has {n_unknown} unknowns per channel, got "
            f"{n_epochs} epochs of {n_times} samples, that is {max(n_samples, 0)} to predict; lower the order or give "
            "more epochs"
        )
    data = data.double()
    lags = torch.cat([data[..., order - k : n_times - k] for k in range(1, order + 1)], dim=-2)
    past = _samples(torch.cat([lags, torch.ones_like(lags[..., :1, :])], dim=-2))
    present = _samples(data[..., order:])
    inverse = torch.linalg.inv(past.mT @ past)
    weights = inverse @ past.mT @ present  # (..., order * c + 1, c)
    residuals = present - past @ weights
    squares = residuals.mT @ residuals
    coefficients = weights[..., :-1, :].unflatten(-2, (order, n_channels)).mT
    # Leaving lags out raises the residual sum of squares by b^T ((X^T X)^-1 restricted to them)^-1 b: no second fit
    chosen = torch.arange(order) * n_channels + torch.arange(n_channels)[:, None]  # (sender, lag)
    blocks = inverse[..., chosen[:, :, None], chosen[:, None, :]]  # (..., sender, order, order)
    sent = weights[..., chosen, :]  # (..., sender, order, receiver)
    added = (sent * torch.linalg.solve(blocks, sent)).sum(dim=-2).mT  # (..., receiver, sender)
    itself = torch.eye(n_channels, dtype=torch.bool, device=data.device)
    residual = squares.diagonal(dim1=-2, dim2=-1)
    return VARModel(coefficients, squares / n_samples, added.masked_fill(itself, 0), residual, n_samples)


def _samples(data: Tensor) -> Tensor:
    """Turn ``(..., n_epochs, f, t)`` into ``(..., n_epochs * t, f)``."""
    return data.mT.flatten(-3, -2)


def granger(model: VARModel) -> tuple[Tensor, Tensor]:
    """Test whether the past of one channel helps to predict another, given the past of all others.

    Returns
    -------
    statistic : Tensor, (..., c, c), float64
        F with ``order`` and ``model.n_free`` degrees of freedom; 0 on the diagonal.
    p_value : Tensor, (..., c, c), float64
        Not corrected for the number of pairs; 1 on the diagonal.
    """
    statistic = (model.added / model.order) / (model.residual.unsqueeze(-1) / model.n_free)
    p_value = stats.f.sf(statistic.detach().cpu().numpy(), model.order, model.n_free)
    return statistic, torch.as_tensor(p_value).to(statistic)


def transfer_entropy(model: VARModel) -> Tensor:
    """Return the Gaussian transfer entropy in nats given all others, half of Geweke's causality, (..., c, c)."""
    return 0.5 * torch.log1p(model.added / model.residual.unsqueeze(-1))


def partial_directed_coherence(model: VARModel, sfreq: float, frequencies: Tensor) -> Tensor:
    """Compute how much of what a channel sends goes directly to each other one.

    Parameters
    ----------
    model : VARModel
    sfreq : float
        Sampling rate in Hz.
    frequencies : Tensor, (f,), float64
        In Hz.

    Returns
    -------
    Tensor, (..., f, c, c), float64
        In [0, 1]; the squares of each column sum to 1 at every frequency.
    """
    size = _prediction_filter(model, sfreq, frequencies).abs()
    return size / size.square().sum(dim=-2, keepdim=True).sqrt()


def directed_transfer(model: VARModel, sfreq: float, frequencies: Tensor) -> Tensor:
    """Compute how much of what arrives at a channel came from each other one, on whatever way.

    Parameters and shape as in `partial_directed_coherence`; the squares of each row sum to 1.
    """
    size: Tensor = torch.linalg.inv(_prediction_filter(model, sfreq, frequencies)).abs()
    return size / size.square().sum(dim=-1, keepdim=True).sqrt()


def _prediction_filter(model: VARModel, sfreq: float, frequencies: Tensor) -> Tensor:
    """Return ``I - sum_k A_k exp(-2 pi i f k / sfreq)``, (..., f, c, c), complex128."""
    lags = torch.arange(1, model.order + 1, dtype=torch.float64, device=model.noise.device)
    turns = torch.exp(-2j * torch.pi * frequencies.to(lags)[:, None] * lags / sfreq)
    itself = torch.eye(model.noise.shape[-1], dtype=turns.dtype, device=turns.device)
    filters: Tensor = itself - torch.einsum("fk,...kij->...fij", turns, model.coefficients.to(turns.dtype))
    return filters
