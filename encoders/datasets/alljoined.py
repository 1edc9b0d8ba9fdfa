"""Alljoined-1.6M: EDF recordings of 32 channels, whose annotations say which picture was shown.

An annotation is ``label,value,deleted,index``: ``stim_train`` or ``stim_test``, the number of the picture, and whether
the trial is void. Pictures are known by their number alone (``stimuli/images/00123.jpg``).

References
----------
Alljoined/Alljoined-1.6M, code of the data set (2025).
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from encoders.datasets.condition_arrays import known_positions
from encoders.datasets.recording_blocks import count_repetitions, plain_cut, recording_blocks
from encoders.datasets.subject_folders import subject_folders
from encoders.datasets.tables import truth
from encoders.epoch_source import EpochMetadata, EpochPart, EpochSource
from encoders.epochs import SignalEpochs
from encoders.resample import FIR

N_TEST_BLOCKS = 4
_SPLITS = ("train", "test")
_STIMULUS = re.compile(r"stim(_train|_test)?")
_NO_ELECTRODE = re.compile(
    r"(Or)?Timestamp(S|Ms)|Counter|Interpolated|RawCq|Battery|FwBufferSize|FwClockTime|MarkerHardware|HighBitFlex|"
    r"SaturationFlag|CQ|EQ|MOT"
)
_SPELLING = {"Afz": "AFz"}


class Alljoined(BaseModel):
    """Where the recordings are and how they are cut.

    Attributes
    ----------
    root : Path
        Folder with ``sub-XX/session_YY/block_ZZ/*.edf`` (``raw_eeg`` of the data set).
    subjects : tuple of str
        People to read; empty for all.
    tmin, tmax : float
        Limits of the epochs in seconds.
    l_freq, h_freq : float
        Pass band in Hz, applied to each block's recording.
    sfreq : float
        Rate of the epochs in Hz; recordings have 256.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    subjects: tuple[str, ...] = ()
    tmin: float = Field(default=-0.2, le=0.0)
    tmax: float = Field(default=1.0, gt=0.0)
    l_freq: float = Field(default=0.1, gt=0.0)
    h_freq: float = Field(default=100.0, gt=0.0)
    sfreq: float = Field(default=250.0, gt=0.0)

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return "alljoined_1.6m"

    def source(self) -> EpochSource:
        """Return what the epochs are read from: two parts per person, training and test."""
        return self

    def parts(self) -> list[EpochPart]:
        """List the parts without opening a recording."""
        parts: list[EpochPart] = []
        for folder in subject_folders(self.root, self.subjects, "session_*/block_*/*.edf"):
            files = tuple(sorted(folder.glob("session_*/block_*/*.edf")))
            blocks = [file.parent for file in files]
            twice = [str(block) for block, n in Counter(blocks).items() if n > 1]
            if twice:
                raise ValueError(f"blocks {twice[:5]} have several recordings, expected one; remove the copies")
            for split in _SPLITS:
                own = tuple(file for file in files if _split_of_block(file) == split)
                if own:
                    parts.append(AlljoinedPart(self, folder.name, split, own))
        return parts


@dataclass(frozen=True)
class AlljoinedPart:
    """One person's training or test blocks."""

    config: Alljoined
    subject: str
    split: str
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """Unique name."""
        return f"{self.subject}_{self.split}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """All recordings."""
        return tuple(str(file) for file in self.files)

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        """Filter and cut block after block, counting the repetitions."""
        shown: Counter[str] = Counter()
        for file in self.files:
            raw, samples, images = read_block(file, self.split)
            events = np.column_stack([samples, np.zeros_like(samples), np.arange(len(samples))])
            raw.filter(self.config.l_freq, self.config.h_freq, **FIR, verbose="error")
            raw, events = raw.resample(self.config.sfreq, events=events, verbose="error")
            metadata = EpochMetadata(
                image=images,
                concept=("",) * len(images),
                split=(self.split,) * len(images),
                session=(file.parent.parent.name.removeprefix("session_"),) * len(images),
                run=(file.parent.name.removeprefix("block_"),) * len(images),
                repetition=count_repetitions(images, shown),
            )
            cut = plain_cut(self.config.tmin, self.config.tmax)
            yield from recording_blocks(raw, events[:, 0], metadata, self.subject, cut, str(file))


def read_block(file: Path, split: str) -> tuple["mne.io.BaseRaw", NDArray[np.int64], tuple[str, ...]]:
    """Read a block's electrodes, onsets of valid trials in MNE samples, and pictures.

    Raises
    ------
    ValueError
        If an annotation of a stimulus is not understood, or belongs to the other split.
    """
    raw = mne.io.read_raw_edf(file, preload=True, verbose="error")
    raw.rename_channels({old: new for old, new in _SPELLING.items() if old in raw.ch_names}, verbose="error")
    electrodes = [name for name in raw.ch_names if not _NO_ELECTRODE.match(name)]
    raw.pick(electrodes, verbose="error")
    positions = dict(zip(electrodes, known_positions(electrodes).astype(np.float64), strict=True))
    montage = mne.channels.make_dig_montage(
        {k: v for k, v in positions.items() if np.isfinite(v).all()}, coord_frame="head"
    )
    raw.set_montage(montage, on_missing="ignore", verbose="error")
    onsets, images = [], []
    for onset, text in zip(raw.annotations.onset, raw.annotations.description, strict=True):
        label, *rest = str(text).split(",")
        match = _STIMULUS.fullmatch(label.strip())
        if match is None:
            continue  # answers, oddballs, marks of the amplifier
        if len(rest) < 2 or not rest[0].strip().isdigit():
            raise ValueError(f"{file}: annotation {text!r} is not understood, expected label,value,deleted,index")
        if match[1] and match[1] != f"_{split}":
            raise ValueError(f"{file}: annotation {text!r} in a block of the {split} split; the blocks are mixed up")
        if not truth(rest[1].strip()):
            onsets.append(float(onset))
            images.append(f"{int(rest[0]):05d}.jpg")
    samples = np.round(np.asarray(onsets) * raw.info["sfreq"]).astype(np.int64) + raw.first_samp
    return raw, samples, tuple(images)


def _split_of_block(file: Path) -> str:
    block = file.parent.name.removeprefix("block_")
    if not block.isdigit():
        raise ValueError(f"{file}: the folder {file.parent.name!r} has no number, expected block_01 to block_19")
    return "test" if int(block) <= N_TEST_BLOCKS else "train"
