"""Whitened and z-scored signals in the SI units of a store.

Public sets are often shared after noise normalisation, without a unit. One standard deviation is then written as ten
display units of the channel's kind (10 uV, 10 fT), which lies in the plausible range of real recordings and far from
the limits of half precision. Such a store cannot be compared in amplitude with one in true volts or teslas.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from encoders.modality import CHANNEL_KINDS

Unit = Literal["standard", "SI"]
DISPLAY_UNITS_PER_STANDARD = 10.0
STANDARD_SPREAD = (0.01, 100.0)


def standard_unit(kind: str) -> float:
    """Return what one standard deviation is written as, in the SI unit of a channel kind."""
    return DISPLAY_UNITS_PER_STANDARD / CHANNEL_KINDS[kind].display_scale


def si_factor(data: NDArray[Any], kind: str, unit: Unit, where: str) -> float:
    """Return the factor to SI units, having checked that the values can be what the unit says.

    Parameters
    ----------
    data : ndarray, (..., n_times)
        Some epochs of the set.
    kind : str
        Channel kind.
    unit : str
        ``standard`` for whitened or z-scored values, ``SI`` for volt or tesla.
    where : str
        File to name in the error.

    Raises
    ------
    ValueError
        If the median standard deviation in time fits the other unit.
    """
    spread = float(np.median(np.std(np.asarray(data, dtype=np.float64), axis=-1)))
    low, high = STANDARD_SPREAD if unit == "standard" else CHANNEL_KINDS[kind].plausible_spread
    if spread > 0.0 and not low <= spread <= high:
        other = "SI" if unit == "standard" else "standard"
        raise ValueError(
            f"{where}: values vary by {spread:.2g} (median standard deviation in time), expected {low:g} to {high:g} "
            f"for unit={unit!r}; set unit to {other!r} if that is what the file holds"
        )
    return standard_unit(kind) if unit == "standard" else 1.0
