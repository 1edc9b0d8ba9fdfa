"""Runs of the four-electrode Muse headset as continuous CSV with a column of markers: N170 and P300 experiments.

Columns: ``timestamps`` (s), TP9, AF7, AF8, TP10, an auxiliary one, and ``Marker`` or ``Marker0`` (0 between events).
Microvolt at 256 Hz. A run that was stored twice, under whatever name, would put copies on both sides of a split and is
left out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, sosfiltfilt

CHANNELS = ("TP9", "AF7", "AF8", "TP10")
SFREQ = 256.0
MICROVOLT = 1e-6
N170 = {1: "house", 2: "face"}
P300 = {1: "non-target", 2: "target"}
BAND = (0.5, 20.0)
TMIN, TMAX = -0.1, 0.8
MOST_RANGE_UV = 100.0
FEWEST_EVENTS = 50
COPY_SHARE = 0.5
"""Two runs are copies if more than this share of one's samples stand in the other; quantisation repeats below 1 %."""


@dataclass(frozen=True)
class MuseRun:
    """A continuous run: ``data`` (4, n) float64 volt, and sample and code of every event."""

    name: str
    data: NDArray[np.float64]
    onset: NDArray[np.int64]
    code: NDArray[np.int64]


@dataclass(frozen=True)
class MuseEpochs:
    """Clean epochs of one person.

    Attributes
    ----------
    data : ndarray, (n, 4, n_times), float32
        Volt, band-passed, baseline subtracted.
    label, run : ndarray of str, (n,)
    sfreq, tmin : float
        Hz and seconds.
    n_events, n_rejected : int
        Events of the runs used, and those among them that were noisy or cut off.
    left_out : mapping of str to str
        Why a run was left out, by name.
    """

    data: NDArray[np.float32]
    label: NDArray[np.str_]
    run: NDArray[np.str_]
    sfreq: float
    tmin: float
    n_events: int
    n_rejected: int
    left_out: Mapping[str, str]


def read_run(path: Path) -> MuseRun:
    """Read one CSV.

    Raises
    ------
    ValueError
        If columns are missing, a value is not finite, or times do not run at 256 Hz.
    """
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline().strip().split(",")
        marker = next((i for i, name in enumerate(header) if re.fullmatch(r"Marker\d?", name)), None)
        missing = [name for name in ("timestamps", *CHANNELS) if name not in header]
        if missing or marker is None:
            raise ValueError(
                f"{path.name} has columns {header}, expected timestamps, {', '.join(CHANNELS)} and Marker; is this a "
                "Muse run?"
            )
        table = np.loadtxt(file, delimiter=",", ndmin=2)
    times, codes = table[:, header.index("timestamps")], table[:, marker]
    if not np.isfinite(table).all():
        raise ValueError(f"{path.name} has values that are not finite; export the run again")
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 0.0
    if abs(rate - SFREQ) > 1.0:
        raise ValueError(f"{path.name} has {rate:.1f} samples per second, expected {SFREQ:g}; samples were lost")
    onset = np.flatnonzero(codes > 0)
    data = table[:, [header.index(name) for name in CHANNELS]].T * MICROVOLT
    return MuseRun(path.stem, data, onset, codes[onset].astype(np.int64))


def read_muse_epochs(files: Sequence[Path], labels: Mapping[int, str]) -> MuseEpochs:
    """Read the runs of one person, filter each as a whole, cut and clean.

    Parameters
    ----------
    files : sequence of Path
        CSV files.
    labels : mapping of int to str
        `N170` or `P300`; a marker that it lacks is an error.

    Returns
    -------
    MuseEpochs
        Runs that copy another, and runs with fewer than 50 events, are in ``left_out``.
    """
    runs = [read_run(path) for path in sorted(files)]
    left_out = {run.name: f"{len(run.code)} events" for run in runs if len(run.code) < FEWEST_EVENTS}
    used: list[MuseRun] = []
    for run in (one for one in runs if one.name not in left_out):
        copied = next((other.name for other in used if _is_copy(run, other)), None)
        if copied is None:
            used.append(run)
        else:
            left_out[run.name] = f"a copy of {copied}"
    if not used:
        raise ValueError(f"no usable run among {[run.name for run in runs]}: {left_out}")
    unknown = sorted({int(code) for run in used for code in run.code} - set(labels))
    if unknown:
        raise ValueError(f"markers {unknown} are unknown, allowed are {sorted(labels)}; is this the right experiment?")
    cut = [_epochs(run) for run in used]
    return MuseEpochs(
        data=np.concatenate([data for data, _ in cut]).astype(np.float32),
        label=np.asarray([labels[int(code)] for _, codes in cut for code in codes]),
        run=np.asarray([run.name for run, (_, codes) in zip(used, cut, strict=True) for _ in codes]),
        sfreq=SFREQ, tmin=TMIN, n_events=sum(len(run.code) for run in used),
        n_rejected=sum(len(run.code) - len(codes) for run, (_, codes) in zip(used, cut, strict=True)),
        left_out=left_out,
    )  # fmt: skip


def _is_copy(run: MuseRun, other: MuseRun) -> bool:
    mine, others = ({row.tobytes() for row in np.ascontiguousarray(one.data.T)} for one in (run, other))
    return len(mine & others) > COPY_SHARE * min(len(mine), len(others))


def _epochs(run: MuseRun) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    filtered = sosfiltfilt(butter(4, BAND, "band", fs=SFREQ, output="sos"), run.data, axis=1)
    first, last = round(TMIN * SFREQ), round(TMAX * SFREQ)
    kept, codes = [], []
    for onset, code in zip(run.onset, run.code, strict=True):
        if onset + first < 0 or onset + last > filtered.shape[1]:
            continue
        epoch = filtered[:, onset + first : onset + last]
        if np.ptp(epoch, axis=1).max() <= MOST_RANGE_UV * MICROVOLT:
            kept.append(epoch - epoch[:, :-first].mean(axis=1, keepdims=True))
            codes.append(code)
    return np.asarray(kept).reshape(len(kept), len(CHANNELS), last - first), np.asarray(codes, dtype=np.int64)
