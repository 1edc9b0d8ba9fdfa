"""Answer calibrations as a bundle keeps them: per combination of modalities and number of averaged presentations."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from alignment.answer_calibration import AnswerCalibration
from encoders.modality import combination

Float64 = NDArray[np.float64]


class StoredCalibration(BaseModel):
    """An `AnswerCalibration` with what it was fitted on.

    Attributes
    ----------
    modalities : str
        Combination, "eeg+meg" say.
    n_averaged : int
        Presentations averaged in each validation answer, at least.
    temperature, slope, offset, gallery_size
        See `AnswerCalibration`.
    n, n_right : int
        Validation answers, and how many of them were right: neither none nor all, or there is nothing to tell apart.
    split : str
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    modalities: str
    n_averaged: int = Field(ge=1)
    temperature: float = Field(gt=0)
    slope: float = Field(ge=0)
    offset: float
    gallery_size: int = Field(ge=2)
    n: int = Field(ge=2)
    n_right: int = Field(ge=1)
    split: str = Field(min_length=1)

    def calibration(self) -> AnswerCalibration:
        """Return what computes."""
        return AnswerCalibration(self.temperature, self.slope, self.offset, self.gallery_size)


class Calibrations(BaseModel):
    """All calibrations of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entries: tuple[StoredCalibration, ...] = Field(min_length=1)

    def chance_right(
        self, similarity: NDArray[np.float32], modalities: Sequence[str], n_averaged: Sequence[int]
    ) -> Float64:
        """Give the chance that each row's first picture is the one shown, if the gallery holds it.

        Parameters
        ----------
        similarity : ndarray, (n, m)
            Of answers to the bundle's gallery.
        modalities : sequence of str
        n_averaged : sequence of int, (n,)
            Presentations in each row. A row is calibrated as answers with as many or fewer were, never with more.

        Returns
        -------
        ndarray, (n,), float64
            NaN where no calibration fits.
        """
        key = combination(modalities)
        known = {one.n_averaged: one for one in self.entries if one.modalities == key}
        found = np.full(len(similarity), np.nan)
        for row, count in enumerate(n_averaged):
            fitting = [n for n in known if n <= count]
            if fitting:
                found[row] = known[max(fitting)].calibration().confidence(similarity[row : row + 1])[0]
        return found
