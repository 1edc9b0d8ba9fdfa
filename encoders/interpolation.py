"""Weights that fill in missing sensors from the present ones.

Electrodes use MNE's spherical splines. For MEG, MNE's own field interpolation takes about ten seconds
of CPU for each new set of missing CTF sensors, so the same idea is built here from MNE's lead fields:
the minimum-norm sources on a sphere that explain the present sensors predict the missing ones. The
lead fields are computed once per helmet, in about half a second.
"""

import mne
import numpy as np
from numpy.typing import NDArray

SOURCE_RADIUS = 0.07
HEAD_RADIUS = 0.09
N_SOURCES = 400
REGULARISATION = 3e-3


def spline_weights(
    info: mne.Info, missing: list[int], origin: NDArray[np.float64] | tuple[float, float, float]
) -> NDArray[np.float64]:
    """Return MNE's spherical-spline interpolation as a matrix, found by interpolating unit vectors.

    Parameters
    ----------
    info : mne.Info
        Electrodes with positions.
    missing : list of int
        Rows of ``info`` to predict.
    origin : (3,)
        Centre of the sphere through the electrodes, metres, head frame.

    Returns
    -------
    ndarray, (n_missing, n_present)
    """
    present = [i for i in range(len(info.ch_names)) if i not in missing]
    units = np.zeros((len(info.ch_names), len(present)))
    units[present, np.arange(len(present))] = 1.0
    evoked = mne.EvokedArray(units, info.copy(), verbose="error")
    evoked.info["bads"] = [info.ch_names[i] for i in missing]
    evoked.interpolate_bads(reset_bads=True, origin=tuple(origin), verbose="error")
    weights: NDArray[np.float64] = evoked.data[missing]
    return weights


def field_products(
    info: mne.Info, origin: tuple[float, float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the inner products of the sensors' lead fields, and the scale that was taken out of them.

    Parameters
    ----------
    info : mne.Info
        MEG sensors with coil types and ``dev_head_t``.
    origin : (3,)
        Centre of the head sphere, metres, head frame.

    Returns
    -------
    products : ndarray, (n_channels, n_channels)
        Of lead fields that have unit mean square within each channel kind.
    scale : ndarray, (n_channels,)
        Root mean square of the lead fields of each channel's kind, in SI units per ampere metre.
    """
    sphere = mne.make_sphere_model(origin, HEAD_RADIUS, verbose="error")
    normals = _even_directions(N_SOURCES)
    grid = {"rr": np.asarray(origin) + SOURCE_RADIUS * normals, "nn": normals}
    sources = mne.setup_volume_source_space(pos=grid, sphere=sphere, verbose="error")
    forward = mne.make_forward_solution(info, None, sources, sphere, eeg=False, mindist=0.0, verbose="error")
    fields = np.asarray(forward["sol"]["data"], dtype=np.float64)
    rows = [forward["sol"]["row_names"].index(name) for name in info.ch_names]
    fields = fields[rows]
    kinds = np.asarray(info.get_channel_types())
    scale = np.empty(len(kinds))
    for kind in sorted(set(kinds)):
        scale[kinds == kind] = np.sqrt((fields[kinds == kind] ** 2).sum(axis=1).mean())
    fields /= scale[:, None]
    return fields @ fields.T, scale


def field_weights(products: NDArray[np.float64], scale: NDArray[np.float64], missing: list[int]) -> NDArray[np.float64]:
    """Return the minimum-norm prediction of missing sensors as a matrix.

    Parameters
    ----------
    products, scale : ndarray, (n_channels, n_channels), (n_channels,)
        From `field_products`.
    missing : list of int
        Rows to predict.

    Returns
    -------
    ndarray, (n_missing, n_present)
    """
    present = [i for i in range(len(products)) if i not in missing]
    known = products[np.ix_(present, present)] + REGULARISATION * np.eye(len(present))
    weights = np.linalg.solve(known, products[np.ix_(present, missing)]).T
    scaled: NDArray[np.float64] = weights * scale[missing][:, None] / scale[present]
    return scaled


def _even_directions(n: int) -> NDArray[np.float64]:
    """Return ``n`` unit vectors spread evenly over the sphere (Fibonacci lattice)."""
    k = np.arange(n) + 0.5
    z = 1.0 - 2.0 * k / n
    angle = np.pi * (1.0 + np.sqrt(5.0)) * k
    planar = np.sqrt(1.0 - z**2)
    return np.column_stack([planar * np.cos(angle), planar * np.sin(angle), z])
