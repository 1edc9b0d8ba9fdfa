"""THINGS-EEG2 and THINGS-MEG as UBP and its relatives keep them: one torch file per person and split.

The file names its pictures, so no other list is needed. EEG is whitened, 63 channels at 250 Hz from the onset; MEG is
z-scored to the baseline, 271 sensors at 200 Hz from the onset, and comes without channel names and times.

References
----------
Preprocessing of HaitaoWuTJU/Uncertainty-aware-Blur-Prior (2025).
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from encoders.datasets.condition_arrays import ConditionArray, paired_parts, time_axis
from encoders.datasets.standard_unit import Unit
from encoders.datasets.stimulus_names import image_id
from encoders.datasets.things_meg_sensors import things_meg_ch_names
from encoders.epoch_source import EpochPart, EpochSource
from encoders.pickled_files import read_pickled_file

_FILES = {"train": "train.pt", "test": "test.pt"}
_KEYS = ("eeg", "img")
_MEG_SFREQ = 200.0


class UbpEpochs(BaseModel):
    """Where the torch files are.

    Attributes
    ----------
    root : Path
        Folder with ``sub-XX/train.pt`` and ``test.pt``, for example ``Preprocessed_data_250Hz_whiten``.
    dataset : str
        ``things_eeg2`` or ``things_meg``.
    subjects : tuple of str
        People to read; empty for all.
    unit : str
        ``standard`` (as published) or ``SI`` (volt, for files made without whitening).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    dataset: Literal["things_eeg2", "things_meg"] = "things_eeg2"
    subjects: tuple[str, ...] = ()
    unit: Unit = "standard"

    def source(self) -> EpochSource:
        """Return what the epochs are read from: two parts per person, training and test."""
        return self

    def parts(self) -> list[EpochPart]:
        """List the parts without reading signals."""
        return paired_parts(self.root, self.subjects, _FILES, self.unit, _read)


def _read(file: Path, split: str) -> ConditionArray:
    content = read_pickled_file(file)
    absent = [key for key in _KEYS if not isinstance(content, dict) or key not in content]
    if absent:
        raise ValueError(f"{file} lacks {absent}, expected a dictionary as UBP saves it")
    data = content["eeg"]
    if not isinstance(data, np.ndarray) or data.ndim != 4:
        raise ValueError(f"{file}: eeg has shape {np.shape(data)}, expected (conditions, repetitions, channels, times)")
    images = _images(content["img"], data.shape[:2], file)
    sfreq, tmin, ch_names = _axes(content, data, file)
    session = content.get("session")
    if session is not None:  # counted from 0 in the file, from 1 everywhere else
        session = np.asarray([[f"{int(value) + 1:02d}" for value in row] for row in np.asarray(session)])
    return ConditionArray(data, images, sfreq, tmin, ch_names, session)


def _axes(content: dict[str, Any], data: NDArray[Any], file: Path) -> tuple[float, float, tuple[str, ...]]:
    names = things_meg_ch_names()
    if "ch_names" in content and "times" in content:
        names = tuple(str(name) for name in np.asarray(content["ch_names"]).ravel())
        return *time_axis(content["times"], data.shape[3], str(file)), names
    if data.shape[2] != len(names):
        raise ValueError(
            f"{file} has neither ch_names nor times and {data.shape[2]} channels; only THINGS-MEG with its "
            f"{len(names)} sensors is known without them"
        )
    return _MEG_SFREQ, 0.0, names


def _images(listed: Any, shape: tuple[int, ...], file: Path) -> tuple[str, ...]:
    """Return one id per condition, from one path per condition or one per epoch."""
    paths = np.asarray(listed)
    if paths.shape not in (shape, shape[:1]):
        raise ValueError(f"{file}: img has shape {paths.shape}, expected {shape} or {shape[:1]}; the file is damaged")
    first = paths if paths.ndim == 1 else paths[:, 0]
    if paths.ndim == 2 and (paths != first[:, None]).any():
        raise ValueError(f"{file}: repetitions of one condition have different pictures; this layout is not known")
    return tuple(image_id(str(path)) for path in first)
