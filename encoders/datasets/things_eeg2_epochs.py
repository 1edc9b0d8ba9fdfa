"""THINGS-EEG2 as epochs: the authors' 17 channels at 100 Hz, and the 63 channels at 250 Hz of NICE and ATM.

Both are dictionaries with three keys, one saved by numpy, the other a bare pickle with the same name. Values are
whitened (multivariate noise normalisation) and have no unit. Repetitions are shuffled over sessions, so sessions are
not known.

References
----------
Gifford et al. 2022, NeuroImage 264, 119754; preprocessing as in gifale95/eeg_encoding and eeyhsong/NICE-EEG.
"""

from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from encoders.datasets.condition_arrays import ConditionArray, paired_parts, time_axis
from encoders.datasets.image_lists import ImageLists, find_image_lists
from encoders.datasets.standard_unit import Unit
from encoders.epoch_source import EpochPart, EpochSource
from encoders.pickled_files import read_pickled_file

_FILES = {"train": "preprocessed_eeg_training.npy", "test": "preprocessed_eeg_test.npy"}
_KEYS = ("preprocessed_eeg_data", "ch_names", "times")


class ThingsEeg2Epochs(BaseModel):
    """Where the epochs of THINGS-EEG2 are.

    Attributes
    ----------
    root : Path
        Folder with ``sub-XX/preprocessed_eeg_training.npy`` and ``preprocessed_eeg_test.npy``.
    images : Path, optional
        ``image_metadata.npy`` or the folder of the pictures, if it does not lie beside ``root``.
    subjects : tuple of str
        People to read; empty for all.
    unit : str
        ``standard`` (whitened, as published) or ``SI`` (volt).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    images: Path | None = None
    subjects: tuple[str, ...] = ()
    unit: Unit = "standard"

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return "things_eeg2"

    def source(self) -> EpochSource:
        """Return what the epochs are read from: two parts per person, training and test."""
        return self

    def parts(self) -> list[EpochPart]:
        """List the parts; reads the list of pictures, no signal."""
        lists = find_image_lists(self.root, self.images)
        read = partial(read_condition_dict, "preprocessed_eeg_data", lists)
        return paired_parts(self.root, self.subjects, _FILES, self.unit, read, (lists.source,))


def read_condition_dict(key: str, lists: ImageLists, file: Path, split: str) -> ConditionArray:
    """Read a dictionary of data, channel names and times; data of five axes is (concept, picture, repetition, ...).

    Raises
    ------
    ValueError
        If a key is missing, or shapes do not fit the list of pictures.
    """
    content = read_pickled_file(file)
    absent = [name for name in (key, *_KEYS[1:]) if not isinstance(content, dict) or name not in content]
    if absent:
        raise ValueError(f"{file} lacks {absent}, expected a dictionary of {key}, ch_names and times")
    data = np.asarray(content[key]) if not isinstance(content[key], np.ndarray) else content[key]
    if data.ndim == 5:
        data = data.reshape(-1, *data.shape[2:])  # (concepts, pictures, repetitions, c, t) -> (conditions, ...)
    if data.ndim != 4:
        raise ValueError(f"{file}: data has shape {data.shape}, expected (conditions, repetitions, channels, times)")
    sfreq, tmin = time_axis(content["times"], data.shape[-1], str(file))
    ch_names = tuple(str(name) for name in np.asarray(content["ch_names"]).ravel())
    return ConditionArray(data, lists.of(split, data.shape[0]), sfreq, tmin, ch_names)
