"""From spatial filters to what they look at: a filter also weighs sensors to cancel noise, a pattern does not."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def patterns(filters: NDArray[Any], data: NDArray[Any]) -> NDArray[np.float64]:
    """Turn spatial filters into activation patterns: data covariance times filter, over the latent's variance.

    Entry ``[c, k]`` is how much sensor ``c`` moves when latent ``k`` moves by one, the slope of a regression of the
    sensor on this latent alone. For one source it is proportional to the source's topography; the filter is not.

    Parameters
    ----------
    filters : ndarray, (n_latents, n_channels)
        For example ``network.spatial_filters.detach().numpy()`` of LF-CNN.
    data : ndarray, (n_epochs, n_channels, n_times)
        What the filters are applied to.

    Returns
    -------
    ndarray, (n_channels, n_latents), float64
        In units of the data per unit of the latent.

    Raises
    ------
    ValueError
        If channels differ, or a latent does not vary.

    References
    ----------
    Haufe et al. 2014, "On the interpretation of weight vectors of linear models in multivariate neuroimaging",
    NeuroImage 87:96-110.
    """
    if filters.ndim != 2 or data.ndim != 3 or filters.shape[1] != data.shape[1]:
        raise ValueError(
            f"patterns got filters {filters.shape} and data {data.shape}, expected (n_latents, n_channels) and "
            "(n_epochs, n_channels, n_times) with the same channels; pass the data that the filters were trained on"
        )
    samples = np.moveaxis(np.asarray(data, dtype=np.float64), 1, 0).reshape(data.shape[1], -1)
    weights = np.asarray(filters, dtype=np.float64).T
    shared = np.cov(samples, bias=True) @ weights
    variance = (weights * shared).sum(axis=0)
    if not (variance > 0).all():
        still = np.flatnonzero(~(variance > 0)).tolist()
        raise ValueError(
            f"latents {still} have no variance, expected some in each; drop filters that are zero and constant channels"
        )
    found: NDArray[np.float64] = shared / variance
    return found
