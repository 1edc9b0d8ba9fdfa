"""THINGS-EEG1 (ds003825) as averages: one evoked response per person and object category, average-referenced.

A plain npz: ``erp_uV`` (people, categories, channels, times) float32 microvolt, ``subject``, ``category``,
``ch_names``, ``times``, ``sfreq``. A channel that is missing in somebody is NaN there (FCz of 49 and 50).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoders.npz_input import read_arrays, strings

FILE = "things_eeg1/erp_by_category_36subjects.npz"
MICROVOLT = 1e-6
_ARRAYS = ("erp_uV", "subject", "category", "ch_names", "times", "sfreq")


@dataclass(frozen=True)
class CategoryEpochs:
    """Evoked responses, one row per person and category.

    Attributes
    ----------
    data : ndarray, (n, n_channels, n_times), float32
        Volt; channels that everybody has.
    subject, category : ndarray of str, (n,)
    ch_names : tuple of str
    dropped : tuple of str
        Channels left out because somebody lacks them.
    sfreq, tmin : float
        Hz and seconds.
    """

    data: NDArray[np.float32]
    subject: NDArray[np.str_]
    category: NDArray[np.str_]
    ch_names: tuple[str, ...]
    dropped: tuple[str, ...]
    sfreq: float
    tmin: float


def read_category_epochs(folder: Path) -> CategoryEpochs:
    """Read the file below the folder of shared data.

    Raises
    ------
    ValueError
        If an array is missing or shapes disagree.
    """
    path = folder / FILE
    with path.open("rb") as file:
        arrays = read_arrays(file, _ARRAYS, ())
    erp, names = arrays["erp_uV"], strings(arrays["ch_names"], "ch_names")
    subject, category = strings(arrays["subject"], "subject"), strings(arrays["category"], "category")
    expected = (len(subject), len(category), len(names), len(arrays["times"]))
    if erp.shape != expected:
        raise ValueError(f"{path} has erp_uV {erp.shape}, expected {expected} by its labels; take the published file")
    whole = np.isfinite(erp).all(axis=(0, 1, 3))
    data = (erp[:, :, whole] * MICROVOLT).reshape(-1, int(whole.sum()), erp.shape[3])
    return CategoryEpochs(
        data=data.astype(np.float32),
        subject=np.repeat([f"sub-{int(one):02d}" for one in subject], len(category)),
        category=np.tile(category, len(subject)),
        ch_names=tuple(name for name, kept in zip(names, whole, strict=True) if kept),
        dropped=tuple(name for name, kept in zip(names, whole, strict=True) if not kept),
        sfreq=float(arrays["sfreq"]),
        tmin=float(arrays["times"][0]),
    )
