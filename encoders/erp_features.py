"""What a linear decoder of evoked responses is given: means over time windows, in a space that people share.

Aligning uses a person's own epochs without their labels. It needs several epochs of that person, test epochs included
for a new one, so figures that rest on it are transductive and must say so.
"""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Alignment = Literal["none", "scale", "centre", "whiten"]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)
WHITENING_SHRINKAGE = 0.2

Float64 = NDArray[np.float64]


def window_means(
    data: NDArray[Any], *, sfreq: float, tmin: float, start: float, stop: float, width: float
) -> Float64:
    """Average every channel over windows that follow each other.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times)
    sfreq, tmin : float
        Hz and seconds.
    start, stop, width : float
        Seconds relative to onset; a last window that would pass ``stop`` is left out.

    Returns
    -------
    ndarray, (n_epochs, n_channels, n_windows), float64

    Raises
    ------
    ValueError
        If no window lies within the epochs, or one is shorter than a sample.
    """
    n_windows = int(np.floor((stop - start) / width + 1e-6))
    edges = np.round((start + width * np.arange(n_windows + 1) - tmin) * sfreq + 1e-6).astype(int)
    if n_windows < 1 or edges[0] < 0 or edges[-1] > data.shape[2] or (np.diff(edges) < 1).any():
        raise ValueError(
            f"windows of {width:g} s from {start:g} to {stop:g} s do not fit into epochs of {data.shape[2]} samples at "
            f"{sfreq:g} Hz from {tmin:g} s; choose others"
        )
    sums = np.cumsum(np.concatenate([np.zeros((*data.shape[:2], 1)), data], axis=2, dtype=np.float64), axis=2)
    means: Float64 = np.diff(sums[..., edges], axis=2) / np.diff(edges)
    return means


def align_groups(data: NDArray[Any], groups: NDArray[Any], kind: Alignment) -> Float64:
    """Bring every person's epochs into a common space, without labels.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times)
    groups : ndarray, (n_epochs,)
        Person of every epoch.
    kind : str
        "none"; "scale": divide by the person's median channel deviation; "centre": subtract the person's mean epoch,
        then scale; "whiten": subtract the mean epoch and whiten the channels by what remains (shrunk by a fifth).
        "scale" and "none" need no second epoch of the person; the others take the average of all classes for the
        person's mean, so classes should be about equally frequent.

    Returns
    -------
    ndarray, (n_epochs, n_channels, n_times), float64

    Raises
    ------
    ValueError
        If centring is asked for a person with one epoch.

    References
    ----------
    He and Wu 2020, "Transfer learning for brain-computer interfaces: a Euclidean space data alignment approach",
    IEEE TBME.
    """
    if kind not in ALIGNMENTS or len(groups) != len(data):
        raise ValueError(f"align_groups got {kind!r} and {len(groups)} groups for {len(data)} epochs; use {ALIGNMENTS}")
    aligned = np.asarray(data, dtype=np.float64).copy()
    if kind == "none":
        return aligned
    for name in np.unique(groups):
        rows = groups == name
        one = aligned[rows]
        if kind != "scale":
            if len(one) < 2:
                raise ValueError(f"{kind!r} needs at least 2 epochs of {name}, got 1; use 'scale'")
            one = one - one.mean(axis=0)
        one = one / np.median(one.std(axis=(0, 2)))
        aligned[rows] = _whitened(one) if kind == "whiten" else one
    return aligned


def _whitened(epochs: Float64) -> Float64:
    n_channels = epochs.shape[1]
    flat = epochs.transpose(1, 0, 2).reshape(n_channels, -1)  # (n, c, t) -> (c, n * t)
    covariance = flat @ flat.T
    covariance = covariance / np.trace(covariance) * n_channels
    covariance = (1 - WHITENING_SHRINKAGE) * covariance + WHITENING_SHRINKAGE * np.eye(n_channels)
    values, vectors = np.linalg.eigh(covariance)
    whitened: Float64 = ((vectors / np.sqrt(values)) @ vectors.T) @ epochs
    return whitened
