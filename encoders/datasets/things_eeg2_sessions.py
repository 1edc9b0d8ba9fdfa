"""THINGS-EEG2 session by session, as ZEISS/things_eeg2_dataset keeps it: arrays, condition numbers and a JSON file.

Here sessions are known, and a picture that was shown in two of them has its repetitions in two parts.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from encoders.datasets.condition_arrays import ConditionArray, ConditionPart, time_axis
from encoders.datasets.image_lists import ImageLists, find_image_lists
from encoders.datasets.neurobridge import read_info
from encoders.datasets.standard_unit import Unit
from encoders.datasets.subject_folders import subject_folders
from encoders.epoch_source import EpochPart, EpochSource
from encoders.pickled_files import read_pickled_file

_SPLITS = {"train": "training", "test": "test"}


class ThingsEeg2Sessions(BaseModel):
    """Where the arrays are.

    Attributes
    ----------
    root : Path
        Folder with ``sub-XX/preprocessed_eeg_training_sub-XX.npy``, for example ``processed``.
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
        """Return what the epochs are read from: one part per person, session and split."""
        return self

    def parts(self) -> list[EpochPart]:
        """List the parts; reads condition numbers, headers and the list of pictures, no signal."""
        folders = subject_folders(self.root, self.subjects, "preprocessed_eeg_training*.npy")
        lists = find_image_lists(self.root, self.images)
        parts: list[EpochPart] = []
        for folder in folders:
            info = next(iter(sorted(folder.glob("*meta*.json"))), folder / "meta.json")
            for split in _SPLITS:
                file, numbers = (_file(folder, stem, split) for stem in ("preprocessed_eeg", "img_conditions"))
                for session in range(len(_conditions(numbers))):
                    part = ConditionPart(
                        name=f"{folder.name}_ses-{session + 1:02d}_{split}",
                        inputs=(str(file), str(numbers), str(info), lists.source),
                        subject=folder.name,
                        split=split,
                        unit=self.unit,
                        read=partial(_read, file, numbers, info, lists, split, session),
                    )
                    parts.append(part)
        return parts


def _file(folder: Path, stem: str, split: str) -> Path:
    names = [f"{stem}_{_SPLITS[split]}_{folder.name}.npy", f"{stem}_{_SPLITS[split]}.npy"]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(f"{folder} has none of {names}; download the whole folder, or leave this person out")
    return found


def _conditions(file: Path) -> NDArray[np.int64]:
    numbers = np.asarray(read_pickled_file(file))
    if numbers.ndim != 2 or numbers.dtype.kind not in "iuf":
        raise ValueError(f"{file} has shape {numbers.shape}, expected numbers (sessions, conditions)")
    return numbers.astype(np.int64)


def _read(file: Path, numbers: Path, info_file: Path, lists: ImageLists, split: str, session: int) -> ConditionArray:
    data: Any = read_pickled_file(file)
    conditions = _conditions(numbers)
    if not isinstance(data, np.ndarray) or data.ndim != 5 or data.shape[:2] != conditions.shape:
        raise ValueError(
            f"{file} has shape {np.shape(data)}, {numbers.name} {conditions.shape}; expected (sessions, conditions, "
            "repetitions, channels, times) and the same sessions and conditions"
        )
    listed = lists.of(split, int(conditions.max()))
    if conditions.min() < 1:
        raise ValueError(f"{numbers} has condition {conditions.min()}, expected numbers from 1; the file is damaged")
    info = read_info(info_file)
    keep = [i for i, name in enumerate(info["ch_names"]) if name != "stim"]
    signal = data[session] if len(keep) == data.shape[3] else data[session][:, :, keep]
    sfreq, tmin = time_axis(info["times"], data.shape[4], str(info_file))
    earlier = np.bincount(conditions[:session].ravel(), minlength=len(listed) + 1) * data.shape[2]
    return ConditionArray(
        data=signal,
        images=[listed[number - 1] for number in conditions[session]],
        sfreq=sfreq,
        tmin=tmin,
        ch_names=tuple(info["ch_names"][i] for i in keep),
        session=np.full(signal.shape[:2], f"{session + 1:02d}"),
        first_repetition=earlier[conditions[session]],
    )
