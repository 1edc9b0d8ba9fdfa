"""THINGS-MEG as ATM keeps it: two pickles per person, in the order of the THINGS image number.

Values are z-scored to the baseline. The files do not name their pictures; the table of the data set does.
"""

from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from encoders.datasets.condition_arrays import paired_parts
from encoders.datasets.image_lists import find_image_lists
from encoders.datasets.standard_unit import Unit
from encoders.datasets.things_eeg2_epochs import read_condition_dict
from encoders.epoch_source import EpochPart, EpochSource

_FILES = {"train": "preprocessed_meg_training.pkl", "test": "preprocessed_meg_zs_test.pkl"}


class ThingsMegPickles(BaseModel):
    """Where the pickles are.

    Attributes
    ----------
    root : Path
        Folder with ``sub-XX/preprocessed_meg_training.pkl`` and ``preprocessed_meg_zs_test.pkl``.
    images : Path, optional
        ``sourcedata/sample_attributes_P1.csv`` of ds004212, or the folder of the pictures.
    subjects : tuple of str
        People to read; empty for all.
    unit : str
        ``standard`` (z-scored, as published) or ``SI`` (tesla).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    images: Path | None = None
    subjects: tuple[str, ...] = ()
    unit: Unit = "standard"

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return "things_meg"

    def source(self) -> EpochSource:
        """Return what the epochs are read from: two parts per person, training and zero-shot test."""
        return self

    def parts(self) -> list[EpochPart]:
        """List the parts; reads the list of pictures, no signal."""
        lists = find_image_lists(self.root, self.images)
        read = partial(read_condition_dict, "meg_data", lists)
        return paired_parts(self.root, self.subjects, _FILES, self.unit, read, (lists.source,))
