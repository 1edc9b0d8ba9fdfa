"""Connectivity between sensors: who goes with whom, as dense matrices that graph networks take as a prior.

Data are ``(..., n_epochs, c, t)``; expectations run over the epochs, so leading axes are independent recordings, and
segments of one epoch may stand in for epochs. Coupling without delay between sensors is mostly volume conduction, which
the imaginary part of coherency, PLI and wPLI ignore; an average reference injects correlation and takes one rank.
Estimates from few epochs are biased upwards (the coherence of one epoch is 1), so a graph prior is estimated on many
epochs, and on training epochs only.

References
----------
Chiarion et al. 2023, Bioengineering 10(3):372 (review of all measures here); Nolte et al. 2004, Clin. Neurophysiol. 115
(imaginary coherency); Lachaux et al. 1999, Hum. Brain Mapp. 8 (PLV); Stam et al. 2007, Hum. Brain Mapp. 28 (PLI);
Vinck et al. 2011, NeuroImage 55 (wPLI).
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from encoders.directed_connectivity import (
    directed_transfer,
    fit_var,
    granger,
    partial_directed_coherence,
    transfer_entropy,
)

Spectral = Literal["coherence", "imaginary_coherence", "plv", "pli", "wpli"]
Directed = Literal["granger", "transfer_entropy", "pdc", "dtf"]
Method = Literal["correlation", "mutual_information", Spectral, Directed]
NO_BAND = ("correlation", "mutual_information", "granger", "transfer_entropy")
HAS_BAND = (*get_args(Spectral), "pdc", "dtf")
TINY = 1e-300


def correlation(data: Tensor) -> Tensor:
    """Correlate channels over all samples of all epochs, each epoch without its mean, (..., c, c), in [-1, 1]."""
    data = data.double()
    centred = data - data.mean(dim=-1, keepdim=True)
    covariance = torch.einsum("...eit,...ejt->...ij", centred, centred)
    size = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    return (covariance / (size.unsqueeze(-1) * size.unsqueeze(-2) + TINY)).clamp(-1, 1)


def mutual_information(data: Tensor) -> Tensor:
    """Return the Gaussian mutual information of channels in nats, without delay, (..., c, c); 0 on the diagonal."""
    squared = correlation(data).square()
    itself = torch.eye(squared.shape[-1], dtype=torch.bool, device=squared.device)
    return -0.5 * torch.log1p(-squared.masked_fill(itself, 0).clamp(max=1 - 1e-12))


def spectral_connectivity(data: Tensor, method: Spectral, band: tuple[float, float], sfreq: float) -> Tensor:
    """Measure the coupling of channels in a band, from Hann-windowed spectra of whole epochs.

    The measure is computed at each frequency over the epochs and averaged over the frequencies of the band.

    Parameters
    ----------
    data : Tensor, (..., n_epochs, c, t), floating
        Computed in float64.
    method : "coherence" | "imaginary_coherence" | "plv" | "pli" | "wpli"
        With ``S`` the cross-spectrum of one epoch and ``E`` the mean over epochs: ``|E S| / sqrt(E S_ii E S_jj)``, the
        same with ``Im E S`` (signed), ``|E (S / |S|)|``, ``|E sign Im S|``, ``|E Im S| / E |Im S|``.
    band : (float, float)
        Lowest and highest frequency in Hz, both included.
    sfreq : float
        Sampling rate in Hz.

    Returns
    -------
    Tensor, (..., c, c), float64
        In [0, 1], or [-1, 1] for ``imaginary_coherence``, which is antisymmetric.

    Raises
    ------
    ValueError
        If no frequency of the spectrum lies in the band.
    """
    spectra = _spectra(data, band, sfreq)
    if method in ("coherence", "imaginary_coherence"):
        cross = torch.einsum("...eif,...ejf->...fij", spectra, spectra.conj()) / spectra.shape[-3]
        power = cross.diagonal(dim1=-2, dim2=-1).real.sqrt()
        coherency = cross / (power.unsqueeze(-1) * power.unsqueeze(-2) + TINY)
        return (coherency.abs() if method == "coherence" else coherency.imag).mean(dim=-3)
    if method == "plv":
        phases = spectra / (spectra.abs() + TINY)
        return torch.einsum("...eif,...ejf->...fij", phases, phases.conj()).abs().mean(dim=-3) / spectra.shape[-3]
    total, size = _imaginary_sums(spectra, signs_only=method == "pli")
    # channels that never differ in phase, themselves for one, have no lag to speak of
    return torch.where(size > 0, total.abs() / size.clamp(min=TINY), 0).mean(dim=-3)


def _spectra(data: Tensor, band: tuple[float, float], sfreq: float) -> Tensor:
    """Return the Fourier coefficients of each epoch within the band, (..., n_epochs, c, f), complex128."""
    n_times = data.shape[-1]
    inside, _ = _frequencies(n_times, band, sfreq)
    data = data.double()
    window = torch.hann_window(n_times, periodic=False, dtype=data.dtype, device=data.device)
    spectra: Tensor = torch.fft.rfft((data - data.mean(dim=-1, keepdim=True)) * window)[..., inside]
    return spectra


def _frequencies(n_times: int, band: tuple[float, float], sfreq: float) -> tuple[slice, Tensor]:
    """Return where the band lies in the spectrum of an epoch, and its frequencies in Hz, (f,), float64."""
    grid = torch.arange(n_times // 2 + 1, dtype=torch.float64) * sfreq / n_times
    first = int((grid < band[0]).sum())
    end = int((grid <= band[1]).sum())
    if end <= first:
        raise ValueError(
            f"band {band[0]:g} to {band[1]:g} Hz holds no frequency of epochs of {n_times} samples at {sfreq:g} Hz, "
            f"which are multiples of {sfreq / n_times:g} Hz up to {sfreq / 2:g} Hz; widen the band or lengthen epochs"
        )
    return slice(first, end), grid[first:end]


def _imaginary_sums(spectra: Tensor, signs_only: bool) -> tuple[Tensor, Tensor]:
    """Sum imaginary cross-spectra, or their signs, and their sizes over epochs, one by one to spare memory."""
    total = size = torch.zeros((), dtype=torch.float64, device=spectra.device)
    for epoch in spectra.unbind(dim=-3):
        rows = epoch.mT  # (..., c, f) -> (..., f, c)
        imaginary = rows.imag.unsqueeze(-1) * rows.real.unsqueeze(-2)
        imaginary = imaginary - imaginary.mT
        if signs_only:
            imaginary = imaginary.sign()
        total = total + imaginary
        size = size + (torch.ones_like(imaginary) if signs_only else imaginary.abs())
    return total, size


def adjacency(
    data: Tensor,
    method: Method,
    band: tuple[float, float] | None = None,
    sfreq: float | None = None,
    top_k: int = 0,
    order: int = 5,
) -> Tensor:
    """Estimate a graph of the sensors.

    Parameters
    ----------
    data : Tensor, (..., n_epochs, c, t), floating
        Training epochs, as the network will see them.
    method : str
        Any measure of this module or of `encoders.directed_connectivity`: correlation, mutual_information, coherence,
        imaginary_coherence, plv, pli, wpli, granger, transfer_entropy, pdc or dtf.
    band : (float, float), optional
        In Hz; needed by the spectral measures, and refused by the others, which have no frequencies.
    sfreq : float, optional
        Sampling rate in Hz; needed with ``band``.
    top_k : int
        Edges to keep in each row, the strongest ones; 0 keeps all.
    order : int
        Lags of the autoregressive model of directed measures; the others do not use it.

    Returns
    -------
    Tensor, (..., c, c), float32
        Non-negative strengths (absolute values), 0 on the diagonal. ``[i, j]``: how much ``i`` should listen to ``j``;
        symmetric for undirected measures as long as ``top_k`` is 0.

    Raises
    ------
    ValueError
        If the method is unknown, a band is missing or has no effect, or ``top_k`` is impossible.
    """
    n_channels = data.shape[-2]
    known = (*NO_BAND, *HAS_BAND)
    if method not in known:
        raise ValueError(f"connectivity method {method!r} is unknown; choose one of {sorted(known)}")
    if (band is None) != (method not in HAS_BAND) or (band is None) != (sfreq is None):
        raise ValueError(
            f"connectivity method {method!r} got band={band} and sfreq={sfreq}, expected "
            f"{'both' if method in HAS_BAND else 'neither'}; measures with a band are {sorted(HAS_BAND)}"
        )
    if not 0 <= top_k < n_channels:
        raise ValueError(
            f"top_k={top_k} of {n_channels} channels is impossible, expected 0 (all) to {n_channels - 1}; lower it"
        )
    itself = torch.eye(n_channels, dtype=torch.bool, device=data.device)
    strength = _measure(data, method, band, sfreq, order).abs().masked_fill(itself, 0)
    if top_k:
        kept, neighbour = strength.topk(top_k, dim=-1)
        strength = torch.zeros_like(strength).scatter(-1, neighbour, kept)
    return strength.float()


def _measure(
    data: Tensor, method: Method, band: tuple[float, float] | None, sfreq: float | None, order: int
) -> Tensor:
    if method == "correlation":
        return correlation(data)
    if method == "mutual_information":
        return mutual_information(data)
    if method == "granger":
        return granger(fit_var(data, order))[0]
    if method == "transfer_entropy":
        return transfer_entropy(fit_var(data, order))
    assert band is not None and sfreq is not None
    if method == "pdc" or method == "dtf":
        _, frequencies = _frequencies(data.shape[-1], band, sfreq)
        measure = partial_directed_coherence if method == "pdc" else directed_transfer
        return measure(fit_var(data, order), sfreq, frequencies).mean(dim=-3)
    return spectral_connectivity(data, method, band, sfreq)
