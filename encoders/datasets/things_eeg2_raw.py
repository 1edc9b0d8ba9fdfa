"""THINGS-EEG2 as first released: continuous recordings of a session in a dictionary that numpy pickled.

Epochs are cut, resampled and set to their baseline as the authors do, and left in volt: noise normalisation is fitted
on training data later and is no part of a conversion.

References
----------
Gifford et al. 2022, NeuroImage 264, 119754.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from encoders.datasets.condition_arrays import BLOCK_BYTES, known_positions
from encoders.datasets.image_lists import ImageLists, find_image_lists
from encoders.datasets.standard_unit import si_factor
from encoders.datasets.stimulus_names import concept_of
from encoders.datasets.subject_folders import subject_folders
from encoders.epoch_source import EpochMetadata, EpochPart, EpochSource
from encoders.epochs import SignalEpochs
from encoders.pickled_files import read_pickled_file
from encoders.resample import window_matrix

TARGET_EVENT = 99999
_KEYS = ("raw_eeg_data", "ch_names", "ch_types", "sfreq")
_SPLITS = {"train": "training", "test": "test"}
_STIM, _SIGNAL = "stim", "eeg"
_MARGIN = 0.1
_logger = logging.getLogger(__name__)


class ThingsEeg2Raw(BaseModel):
    """Where the recordings are and how they are cut.

    Attributes
    ----------
    root : Path
        Folder with ``sub-XX/ses-YY/raw_eeg_training.npy`` and ``raw_eeg_test.npy``.
    images : Path, optional
        ``image_metadata.npy`` or the folder of the pictures, if it does not lie beside ``root``.
    subjects : tuple of str
        People to read; empty for all.
    tmin, tmax : float
        Limits of the epochs in seconds; the last sample is the one before ``tmax``.
    sfreq, h_freq : float
        Rate of the epochs and upper edge of their band, Hz.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    images: Path | None = None
    subjects: tuple[str, ...] = ()
    tmin: float = Field(default=-0.2, lt=0.0)
    tmax: float = Field(default=1.0, gt=0.0)
    sfreq: float = Field(default=250.0, gt=0.0)
    h_freq: float = Field(default=100.0, gt=0.0)

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return "things_eeg2"

    def source(self) -> EpochSource:
        """Return what the epochs are read from: one part per person, session and split."""
        return self

    def parts(self) -> list[EpochPart]:
        """List the parts; reads the list of pictures, no signal."""
        lists = find_image_lists(self.root, self.images)
        parts: list[EpochPart] = []
        for folder in subject_folders(self.root, self.subjects, "ses-*/raw_eeg_training.npy"):
            for split, name in _SPLITS.items():
                files = tuple(sorted(folder.glob(f"ses-*/raw_eeg_{name}.npy")))
                for i, file in enumerate(files):
                    parts.append(RawSession(self, lists, folder.name, split, file, files[:i]))
        return parts


@dataclass(frozen=True)
class RawSession:
    """One recording; ``earlier`` are the same person's sessions before it, for the count of repetitions."""

    config: ThingsEeg2Raw
    lists: ImageLists
    subject: str
    split: str
    file: Path
    earlier: tuple[Path, ...]

    @property
    def session(self) -> str:
        """Label of the session: ``01``."""
        return self.file.parent.name.removeprefix("ses-")

    @property
    def name(self) -> str:
        """Unique name."""
        return f"{self.subject}_ses-{self.session}_{self.split}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Files that are read."""
        return (str(self.file), *(str(file) for file in self.earlier), self.lists.source)

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        """Cut the recording, some hundred epochs at a time, in the order of presentation."""
        config = self.config
        content = read_recording(self.file)
        signal, ch_names, sfreq = _signal(content, self.file)
        images = {"train": self.lists.train, "test": self.lists.test}[self.split]
        shown = np.zeros(len(images) + 1, dtype=np.int64)
        for file in self.earlier:
            shown += np.bincount(_events(read_recording(file), len(images), file)[1], minlength=len(images) + 1)
        samples, conditions = _events(content, len(images), self.file)
        repetitions = _counted_on(conditions, shown)
        first, last = (round(limit * sfreq) for limit in (config.tmin, config.tmax))
        room = (samples + first >= 0) & (samples + last <= signal.shape[1])
        if not room.all():
            _logger.warning("%s: %d events lie too near to an end of the recording", self.file, (~room).sum())
        samples, conditions, repetitions = samples[room], conditions[room], repetitions[room]
        n_times = round((config.tmax - config.tmin) * config.sfreq)
        step = max(1, BLOCK_BYTES // (8 * len(ch_names) * (last - first)))
        for start in range(0, len(samples), step):
            rows = slice(start, start + step)
            data = self._cut(signal, samples[rows], sfreq, n_times)
            if start == 0:
                si_factor(data, _SIGNAL, "SI", str(self.file))
            names = tuple(images[number - 1] for number in conditions[rows])
            epochs = SignalEpochs(
                data=data,
                sfreq=config.sfreq,
                tmin=config.tmin,
                ch_names=ch_names,
                ch_types=(_SIGNAL,) * len(ch_names),
                positions=known_positions(ch_names),
                subject=self.subject,
                stimulus=names,
            )
            yield epochs, self._metadata(names, repetitions[rows])

    def _cut(self, signal: NDArray[Any], samples: NDArray[np.int64], sfreq: float, n_times: int) -> NDArray[np.float32]:
        """Return resampled epochs minus the mean of their baseline, (n, n_channels, n_times)."""
        config = self.config
        margin = round(_MARGIN * sfreq)
        begin = round(config.tmin * sfreq) - margin
        length = round((config.tmax - config.tmin) * sfreq) + 2 * margin
        matrix = window_matrix(sfreq, begin / sfreq, length, config.sfreq, config.tmin, n_times, config.h_freq)
        epochs = np.empty((len(samples), signal.shape[0], length), dtype=np.float64)
        for epoch, sample in zip(epochs, samples, strict=True):
            # the margin of the first and last epochs repeats the recording's outermost sample
            wanted = np.clip(np.arange(sample + begin, sample + begin + length), 0, signal.shape[1] - 1)
            epoch[:] = signal[:, wanted[0] : wanted[-1] + 1][:, wanted - wanted[0]]
        before = slice(margin, margin + round(-config.tmin * sfreq) + 1)
        epochs -= epochs[:, :, before].mean(axis=2, keepdims=True)
        return np.asarray(epochs.astype(np.float32) @ matrix)

    def _metadata(self, images: tuple[str, ...], repetitions: NDArray[np.int64]) -> EpochMetadata:
        return EpochMetadata(
            image=images,
            concept=tuple(concept_of(image) for image in images),
            split=(self.split,) * len(images),
            session=(self.session,) * len(images),
            run=("",) * len(images),
            repetition=tuple(int(value) for value in repetitions),
        )


def read_recording(file: Path) -> dict[str, Any]:
    """Return the dictionary of a recording, memory-mapped."""
    content = read_pickled_file(file)
    absent = [key for key in _KEYS if not isinstance(content, dict) or key not in content]
    if absent:
        raise ValueError(f"{file} lacks {absent}, expected the raw data of THINGS-EEG2 with {list(_KEYS)}")
    n_channels = len(content["ch_names"])
    shape = np.shape(content["raw_eeg_data"])
    if len(shape) != 2 or shape[0] != n_channels or len(content["ch_types"]) != n_channels:
        raise ValueError(
            f"{file} has data of shape {shape}, {n_channels} channel names and {len(content['ch_types'])} types; "
            "expected (n_channels, n_samples) and one name and type per channel"
        )
    return dict(content)


def _signal(content: dict[str, Any], file: Path) -> tuple[NDArray[Any], tuple[str, ...], float]:
    rows = [i for i, kind in enumerate(content["ch_types"]) if kind == _SIGNAL]
    if not rows or rows != list(range(rows[0], rows[0] + len(rows))):
        raise ValueError(f"{file} has EEG channels in rows {rows}, expected one row after another")
    names = tuple(str(content["ch_names"][row]) for row in rows)
    # neighbouring rows are a view of the file, any other choice would copy all of it
    return content["raw_eeg_data"][rows[0] : rows[-1] + 1], names, float(content["sfreq"])


def _events(content: dict[str, Any], n_images: int, file: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return samples and 1-based conditions of the events that are no targets."""
    names = [str(name) for name in content["ch_names"]]
    if _STIM not in names:
        raise ValueError(f"{file} has no channel {_STIM!r}, it has {names}; take the raw data as published")
    stim = np.asarray(content["raw_eeg_data"][names.index(_STIM)])
    samples = np.flatnonzero((stim != 0) & (np.concatenate([[0], stim[:-1]]) == 0))
    values = np.round(stim[samples]).astype(np.int64)
    wrong = sorted(set(values[(values != stim[samples]) | (values < 1) | (values > n_images)]) - {TARGET_EVENT})
    if wrong:
        raise ValueError(
            f"{file} has events {wrong[:10]}, expected pictures 1 to {n_images} and targets {TARGET_EVENT}; the list "
            "of pictures belongs to another data set, or the file is damaged"
        )
    shown = values != TARGET_EVENT
    return samples[shown].astype(np.int64), values[shown]


def _counted_on(conditions: NDArray[np.int64], shown: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which presentation each event is, given how often each condition was shown before."""
    counts = shown.copy()
    repetitions = np.empty(len(conditions), dtype=np.int64)
    for i, condition in enumerate(conditions):
        repetitions[i] = counts[condition]
        counts[condition] += 1
    return repetitions
