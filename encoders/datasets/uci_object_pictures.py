"""UCI EEG database, the trials with line drawings of objects: a first picture (S1), then an equal or a different one.

A plain npz: ``data_uV`` (trials, 64, 256) float32 microvolt from picture onset, ``condition`` ("S1 obj", "S2 match",
"S2 nomatch"), ``subject``, ``trial``, ``ch_names``, ``sfreq``. Which object was drawn is not recorded.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoders.npz_input import read_arrays, strings

FILE = "uci_object_pictures/epochs_10subjects.npz"
MICROVOLT = 1e-6
NOT_SCALP = ("X", "Y", "nd")
"""Eye channels, and the reference."""
CONDITIONS = ("S1 obj", "S2 match", "S2 nomatch")
_ARRAYS = ("data_uV", "condition", "subject", "trial", "ch_names", "sfreq")


@dataclass(frozen=True)
class ObjectPictureEpochs:
    """Single trials.

    Attributes
    ----------
    data : ndarray, (n, n_channels, n_times), float32
        Volt, scalp channels, from onset.
    subject, condition : ndarray of str, (n,)
    ch_names : tuple of str
    sfreq, tmin : float
        Hz and seconds.
    """

    data: NDArray[np.float32]
    subject: NDArray[np.str_]
    condition: NDArray[np.str_]
    ch_names: tuple[str, ...]
    sfreq: float
    tmin: float


def read_object_pictures(folder: Path) -> ObjectPictureEpochs:
    """Read the file below the folder of shared data.

    Raises
    ------
    ValueError
        If an array is missing, a condition is unknown, or a trial appears twice: copies on both sides of a split
        would be recognised.
    """
    path = folder / FILE
    with path.open("rb") as file:
        arrays = read_arrays(file, _ARRAYS, ())
    data, names = arrays["data_uV"], strings(arrays["ch_names"], "ch_names")
    condition = np.asarray(strings(arrays["condition"], "condition"))
    unknown = sorted(set(condition.tolist()) - set(CONDITIONS))
    if data.ndim != 3 or data.shape[:2] != (len(condition), len(names)) or unknown:
        raise ValueError(
            f"{path} has data_uV {data.shape}, {len(condition)} conditions ({unknown} unknown) and {len(names)} "
            f"channels, expected (trials, channels, times) and {CONDITIONS}; take the published file"
        )
    copies = len(data) - len({one.tobytes() for one in data})
    if copies:
        raise ValueError(f"{path} holds {copies} trials twice; remove the copies before splitting")
    scalp = [i for i, name in enumerate(names) if name not in NOT_SCALP]
    return ObjectPictureEpochs(
        data=(data[:, scalp] * MICROVOLT).astype(np.float32),
        subject=np.asarray(strings(arrays["subject"], "subject")),
        condition=condition,
        ch_names=tuple(names[i] for i in scalp),
        sfreq=float(arrays["sfreq"]),
        tmin=0.0,
    )
