"""Epochs that a data set keeps as one array of picture by repetition, read block by block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.datasets.standard_unit import Unit, si_factor
from encoders.datasets.stimulus_names import bare_channel_name, concept_of
from encoders.datasets.subject_folders import subject_folders
from encoders.epoch_source import EpochMetadata, EpochPart
from encoders.epochs import SignalEpochs
from encoders.modality import kind_of_name
from encoders.sensors import LayoutName, standard_layout

BLOCK_BYTES = 128 << 20
N_CHECKED = 20
_LAYOUTS: tuple[LayoutName, ...] = ("things_eeg2_63", "ctf275")


@dataclass(frozen=True)
class ConditionArray:
    """What one file holds.

    Attributes
    ----------
    data : ndarray, (n_conditions, n_repetitions, n_channels, n_times)
        Memory-mapped where it is large, of any number type.
    images : sequence of str
        Picture id of each condition.
    sfreq, tmin : float
        Time axis of ``data``.
    ch_names : tuple of str
        Channel names, of one kind.
    session : ndarray of str, (n_conditions, n_repetitions), optional
        Session of each epoch, where the file knows.
    first_repetition : ndarray of int, (n_conditions,), optional
        How many repetitions of each condition came in earlier parts.
    """

    data: NDArray[Any]
    images: Sequence[str]
    sfreq: float
    tmin: float
    ch_names: tuple[str, ...]
    session: NDArray[Any] | None = None
    first_repetition: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class ConditionPart:
    """One person's training or test epochs; ``read`` opens the file and must be picklable."""

    name: str
    inputs: tuple[str, ...]
    subject: str
    split: str
    unit: Unit
    read: Callable[[], ConditionArray]

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        """Read whole conditions, as many as fit into 128 MiB."""
        array = self.read()
        check_array(array, self.inputs[0])
        n_conditions, n_repetitions, n_channels, n_times = array.data.shape
        ch_names = tuple(bare_channel_name(name) for name in array.ch_names)
        kind = one_kind(ch_names, self.inputs[0])
        factor = np.float32(si_factor(array.data[:N_CHECKED], kind, self.unit, self.inputs[0]))
        positions = known_positions(ch_names)
        step = max(1, BLOCK_BYTES // (4 * n_repetitions * n_channels * n_times))
        for start in range(0, n_conditions, step):
            rows = range(start, min(start + step, n_conditions))
            data = array.data[rows.start : rows.stop].astype(np.float32) * factor
            images = tuple(array.images[row] for row in rows for _ in range(n_repetitions))
            epochs = SignalEpochs(
                data=data.reshape(-1, n_channels, n_times),
                sfreq=array.sfreq,
                tmin=array.tmin,
                ch_names=ch_names,
                ch_types=(kind,) * n_channels,
                positions=positions,
                subject=self.subject,
                stimulus=images,
            )
            yield epochs, self._metadata(array, rows, images)

    def _metadata(self, array: ConditionArray, rows: range, images: tuple[str, ...]) -> EpochMetadata:
        n_repetitions = array.data.shape[1]
        first = [0] * len(rows) if array.first_repetition is None else array.first_repetition[rows.start : rows.stop]
        session = array.session
        return EpochMetadata(
            image=images,
            concept=tuple(concept_of(image) for image in images),
            split=(self.split,) * len(images),
            session=("",) * len(images)
            if session is None
            else tuple(str(value) for value in session[rows.start : rows.stop].ravel()),
            run=("",) * len(images),
            repetition=tuple(int(begin) + i for begin in first for i in range(n_repetitions)),
        )


def paired_parts(
    root: Path,
    subjects: Sequence[str],
    files: Mapping[str, str],
    unit: Unit,
    read: Callable[[Path, str], ConditionArray],
    beside: Sequence[str] = (),
) -> list[EpochPart]:
    """List two parts per person, of a training and a test file in the person's folder.

    Parameters
    ----------
    root : Path
        Folder with ``sub-XX``.
    subjects : sequence of str
        People to read; empty for all.
    files : mapping of str to str
        File name of ``train`` and of ``test``.
    unit : str
        What the values are.
    read : callable
        Takes file and split; must be picklable.
    beside : sequence of str
        Other files that are read.
    """
    parts: list[EpochPart] = []
    for folder in subject_folders(root, subjects, files["train"]):
        for split, name in files.items():
            file = folder / name
            if not file.is_file():
                raise ValueError(f"{file} does not exist; download both files of {folder.name}, or leave it out")
            inputs = (str(file), *beside)
            parts.append(
                ConditionPart(f"{folder.name}_{split}", inputs, folder.name, split, unit, partial(read, file, split))
            )
    return parts


def one_kind(ch_names: Sequence[str], where: str) -> str:
    """Return the channel kind that all names tell; a name that tells none is an EEG electrode."""
    kinds = sorted({kind_of_name(name) for name in ch_names})
    if len(kinds) != 1:
        raise ValueError(f"{where}: the channel names are of kinds {kinds}, expected one kind; check ch_names")
    return kinds[0]


def known_positions(ch_names: Sequence[str]) -> NDArray[np.float32]:
    """Return the standard places of named sensors, (n_channels, 3) in metres, head frame; NaN where unknown."""
    known: dict[str, NDArray[np.float32]] = {}
    for name in _LAYOUTS:
        layout = standard_layout(name)
        known |= dict(zip(layout.ch_names, layout.positions, strict=True))
    unknown = np.full(3, np.nan, dtype=np.float32)
    return np.stack([known.get(name, unknown) for name in ch_names])


def check_array(array: ConditionArray, where: str) -> None:
    """Check that the parts of a file belong together.

    Raises
    ------
    ValueError
        If a shape disagrees; the message says which.
    """
    shape = np.shape(array.data)
    if len(shape) != 4 or 0 in shape:
        raise ValueError(
            f"{where}: the data has shape {shape}, expected (n_conditions, n_repetitions, n_channels, n_times); this "
            "is another layout or version of the data set"
        )
    session = None if array.session is None else np.shape(array.session)
    for name, got, expected in (
        ("channel names", len(array.ch_names), shape[2]),
        ("pictures", len(array.images), shape[0]),
        ("sessions", session if session is not None else shape[:2], shape[:2]),
    ):
        if got != expected:
            raise ValueError(
                f"{where}: {name} number {got}, the data of shape {shape} needs {expected}; check the files"
            )


def time_axis(times: Any, n_times: int, where: str) -> tuple[float, float]:
    """Return rate and first time of data whose ``times`` may also list the baseline that was cut from the data.

    Some preprocessing drops the samples before the onset from the data and keeps them in ``times``, which then also has
    one more at its end (301 values for 250 samples).

    Returns
    -------
    sfreq, tmin : float
        In hertz and seconds.

    Raises
    ------
    ValueError
        If the lengths do not fit in this way either.
    """
    values = np.asarray(times, dtype=np.float64).ravel()
    if len(values) < 2:
        raise ValueError(f"{where}: times has {len(values)} values, expected one per sample")
    sfreq = float(np.round((len(values) - 1) / (values[-1] - values[0]), 3))
    first = 0
    if len(values) != n_times:
        first = int(np.argmax(values >= -0.5 / sfreq))
        after = len(values) - first
        if after - n_times not in (0, 1):
            raise ValueError(
                f"{where}: times has {len(values)} values from {values[0]:g} to {values[-1]:g} s, {after} of them "
                f"after the onset, but the data has {n_times} samples; this version of the data set is not known"
            )
    tmin = float(np.round(values[first], 6))
    return sfreq, tmin if abs(tmin) > 0.5 / sfreq else 0.0
