"""From spatial filters to topographies: what a filter weighs is not where its source is."""

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def patterns(data: NDArray[np.floating], filters: NDArray[np.floating]) -> Float:
    """Turn spatial filters into activation patterns, ``data covariance @ filter``.

    A filter also cancels noise, so its weights peak where noise is, not where the source is; the pattern is the
    topography with which the filter's output appears at the sensors.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times)
        What the filters were trained on, as the network receives it.
    filters : ndarray, (n_filters, n_channels)

    Returns
    -------
    ndarray, (n_filters, n_channels), float64
        Each scaled to length 1; the sign is that of the filter.

    Raises
    ------
    ValueError
        If the numbers of channels differ.

    References
    ----------
    Haufe et al. 2014, NeuroImage 87:96-110.
    """
    if data.ndim != 3 or filters.ndim != 2 or data.shape[1] != filters.shape[1]:
        raise ValueError(
            f"patterns need data (n, c, t) and filters (k, c) with the same c, got {data.shape} and {filters.shape}; "
            "pass the epochs that the network was trained on"
        )
    flat = np.moveaxis(data, 1, 0).reshape(data.shape[1], -1).astype(np.float64)
    found = filters.astype(np.float64) @ np.cov(flat)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    unit: Float = found / np.where(length > 0, length, 1)
    return unit
