"""THINGS-EEG2 and THINGS-MEG as NeuroBridge and SAMGA keep them: plain arrays and an ``info.json``.

Arrays are (concept, picture, repetition, channel, time), float32, whitened or z-scored as ``normalization`` in the
``info.json`` says.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from encoders.datasets.condition_arrays import ConditionArray, paired_parts, time_axis
from encoders.datasets.image_lists import ImageLists, find_image_lists
from encoders.datasets.standard_unit import Unit
from encoders.epoch_source import EpochPart, EpochSource
from encoders.pickled_files import read_pickled_file

_FILES = {"train": "train.npy", "test": "test.npy"}
_INFO = "info.json"


class NeurobridgeEpochs(BaseModel):
    """Where the arrays are.

    Attributes
    ----------
    root : Path
        Folder with ``info.json`` and ``sub-XX/train.npy``, for example ``preprocessed_eeg``.
    dataset : str
        ``things_eeg2`` or ``things_meg``.
    images : Path, optional
        What says which picture is which, if it does not lie beside ``root``: ``image_metadata.npy`` or the picture
        folders, for MEG also ``sample_attributes_P1.csv``.
    subjects : tuple of str
        People to read; empty for all.
    unit : str
        ``standard`` (as published) or ``SI``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    dataset: Literal["things_eeg2", "things_meg"] = "things_eeg2"
    images: Path | None = None
    subjects: tuple[str, ...] = ()
    unit: Unit = "standard"

    def source(self) -> EpochSource:
        """Return what the epochs are read from: two parts per person, training and test."""
        return self

    def parts(self) -> list[EpochPart]:
        """List the parts; reads ``info.json`` and the list of pictures, no signal."""
        info = read_info(self.root / _INFO)
        lists = find_image_lists(self.root, self.images)
        read = partial(_read, info, lists)
        return paired_parts(self.root, self.subjects, _FILES, self.unit, read, (str(self.root / _INFO), lists.source))


def read_info(file: Path) -> dict[str, Any]:
    """Return a JSON file with ``ch_names`` and ``times``."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist; give the folder that holds it as root")
    info = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(info, dict) or not {"ch_names", "times"} <= info.keys():
        raise ValueError(f"{file} lacks ch_names or times; it belongs to another data set")
    return info


def _read(info: dict[str, Any], lists: ImageLists, file: Path, split: str) -> ConditionArray:
    data = read_pickled_file(file)
    if not isinstance(data, np.ndarray) or data.ndim != 5:
        raise ValueError(
            f"{file} has shape {np.shape(data)}, expected (concepts, pictures, repetitions, channels, times)"
        )
    data = data.reshape(-1, *data.shape[2:])  # (concepts, pictures, ...) -> (conditions, ...)
    sfreq, tmin = time_axis(info["times"], data.shape[3], str(file.parent.parent / _INFO))
    ch_names = tuple(str(name) for name in info["ch_names"])
    return ConditionArray(data, lists.of(split, data.shape[0]), sfreq, tmin, ch_names)
