"""Lead fields of current dipoles in a spherical head, computed by MNE for the standard sensor layouts.

Every layout gets its own head sphere: the sphere that fits its sensors, less the gap between skin and helmet.
Dipole positions are therefore given in units of the head radius, so that one set of dipoles serves all layouts.
"""

from __future__ import annotations

from functools import lru_cache

import mne
import numpy as np
from numpy.typing import NDArray

from encoders.sensors import SensorLayout, layout_info

SENSOR_GAP = {"eeg": 0.0, "mag": 0.033, "grad": 0.033}
"""Distance in metres from the skin to the sensors of one kind."""

MAX_ECCENTRICITY = 0.85
"""Largest allowed dipole distance from the centre, in head radii (the inner skull lies at 0.90)."""


def fit_sphere(positions: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """Fit a sphere to points by linear least squares.

    Parameters
    ----------
    positions : ndarray, (n, 3), float32
        Points in metres, at least four and not in one plane.

    Returns
    -------
    centre : ndarray, (3,), float64
        Centre in metres.
    radius : float
        Radius in metres.
    """
    points = np.asarray(positions, dtype=np.float64)
    design = np.column_stack([2.0 * points, np.ones(len(points))])
    solution = np.linalg.lstsq(design, (points**2).sum(axis=1), rcond=None)[0]
    centre = solution[:3]
    return centre, float(np.sqrt(solution[3] + centre @ centre))


def lead_field(layout: SensorLayout, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the response of every sensor to unit dipoles along x, y and z.

    Electric potentials are relative to infinity (no reference electrode); the conductor is MNE's four-shell
    sphere. A radial dipole gives no magnetic field outside a sphere, whatever its depth.

    Parameters
    ----------
    layout : SensorLayout
        Sensors, as made by ``standard_layout``.
    positions : ndarray, (n_dipoles, 3), float64
        Dipole positions relative to the head centre in head radii; x right, y front, z up.

    Returns
    -------
    ndarray, (n_channels, n_dipoles, 3), float64
        Volt (or tesla, tesla per metre) per ampere metre.

    Raises
    ------
    ValueError
        If a dipole lies outside the brain.
    """
    eccentricity = np.linalg.norm(positions, axis=1)
    if eccentricity.max() > MAX_ECCENTRICITY:
        raise ValueError(
            f"lead_field expects dipoles within {MAX_ECCENTRICITY} head radii of the centre, got one at "
            f"{eccentricity.max():.3f}; move it inwards"
        )
    info = layout_info(layout, 1000.0)
    centre, radius = head_sphere(layout)
    sphere = mne.make_sphere_model(r0=centre, head_radius=radius, verbose="ERROR")
    points = centre + radius * positions
    normals = np.tile([0.0, 0.0, 1.0], (len(points), 1))
    source_space = mne.setup_volume_source_space(
        pos={"rr": points, "nn": normals}, sphere=sphere, sphere_units="m", verbose="ERROR"
    )
    forward = mne.make_forward_solution(info, trans=None, src=source_space, bem=sphere, mindist=0.0, verbose="ERROR")
    if forward["nsource"] != len(points):
        raise AssertionError(f"MNE kept {forward['nsource']} of {len(points)} dipoles")
    order = [forward["sol"]["row_names"].index(name) for name in layout.ch_names]
    gain = np.asarray(forward["sol"]["data"], dtype=np.float64)[order]
    return gain.reshape(len(order), len(points), 3)


def head_sphere(layout: SensorLayout) -> tuple[NDArray[np.float64], float]:
    """Return centre and radius in metres of the head under these sensors, in head coordinates."""
    centre, radius = fit_sphere(layout.positions)
    return centre, radius - max(SENSOR_GAP[kind] for kind in layout.ch_types)


@lru_cache(maxsize=4)
def brain_grid(spacing: float = 0.17) -> NDArray[np.float64]:
    """Return the points of a cubic grid that fill the brain above the rim of the sensors, in head radii.

    Parameters
    ----------
    spacing : float
        Grid step in head radii; 0.17 is about 15 mm.

    Returns
    -------
    ndarray, (n_points, 3), float64
        Read-only.
    """
    n_steps = int(1.0 / spacing)
    axis = spacing * np.arange(-n_steps, n_steps + 1)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    distance = np.linalg.norm(points, axis=1)
    inside: NDArray[np.float64] = points[(distance < MAX_ECCENTRICITY) & (distance > 0.1) & (points[:, 2] > -0.45)]
    inside.setflags(write=False)
    return inside
