"""Hand-made features of every channel by tsfresh, for classical baselines; needs the extra ``augment``.

Ten features per channel by default. The "efficient" set has 777, which is minutes for a hundred epochs of 63 channels.
Whatever is fitted or selected on them must see training data only.
"""

from typing import Literal

import numpy as np
import pyarrow
from numpy.typing import NDArray

BLOCK = 128
"""Epochs handed to tsfresh at once; it copies them several times."""


def tsfresh_features(
    data: NDArray[np.float32], ch_names: tuple[str, ...], features: Literal["minimal", "efficient"] = "minimal"
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Compute features of each epoch and channel.

    Parameters
    ----------
    data : ndarray, (n, c, t), float32
        Preprocessed epochs.
    ch_names : tuple of str
        One per channel.
    features : "minimal" or "efficient"

    Returns
    -------
    values : ndarray, (n, c * n_features), float64
        Channel by channel; 63 channels give 630 columns of the minimal set. A feature that is not defined for a
        series (efficient set only) is NaN.
    names : tuple of str
        ``<channel>__<feature>``.

    Raises
    ------
    ImportError
        If the extra ``augment`` is not installed.
    ValueError
        If names and channels differ in number.
    """
    try:
        from tsfresh.feature_extraction import EfficientFCParameters, MinimalFCParameters, extract_features
    except ImportError as error:
        raise ImportError("tsfresh is not installed; install phosphene[augment]") from error
    n, c, n_times = data.shape
    if len(ch_names) != c or n == 0:
        raise ValueError(f"{len(ch_names)} ch_names for data {data.shape}, expected one per channel and n > 0")
    settings = MinimalFCParameters() if features == "minimal" else EfficientFCParameters()
    parts, columns = [], list[str]()
    for first in range(0, n, BLOCK):
        block = data[first : first + BLOCK].astype(np.float64)
        # (n, c, t) -> c columns of n * t, by number: tsfresh takes no "__" in a name
        table = {str(i): np.ascontiguousarray(block[:, i]).ravel() for i in range(c)}
        table["epoch"] = np.repeat(np.arange(len(block)), n_times)
        table["sample"] = np.tile(np.arange(n_times), len(block))
        frame = pyarrow.table(table).to_pandas()
        found = extract_features(
            frame, column_id="epoch", column_sort="sample", default_fc_parameters=settings, n_jobs=0,
            disable_progressbar=True,
        )  # fmt: skip
        columns = columns or sorted(found.columns, key=lambda name: int(name.split("__", 1)[0]))
        parts.append(found.loc[np.arange(len(block)), columns].to_numpy(dtype=np.float64))
    names = tuple(f"{ch_names[int(number)]}__{name}" for number, _, name in (one.partition("__") for one in columns))
    return np.concatenate(parts), names
