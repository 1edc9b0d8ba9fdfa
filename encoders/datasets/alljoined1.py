"""Alljoined1: FIF recordings of 64 channels at 512 Hz, one per person and session, the picture's number as trigger.

The triggers count pictures of a list of NSD: one list that all people share in even sessions, one of each person's own
in odd sessions. Which photograph a number is stands in NSD's own design file; here it is an id, ``shared/0012`` or
``subj04/0012``. The data set has no split of its own.

References
----------
Xu et al. 2024, arXiv:2404.05553, and Alljoined/alljoined_preprocessing.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from encoders.datasets.recording_blocks import count_repetitions, plain_cut, recording_blocks
from encoders.epoch_source import EpochMetadata, EpochPart, EpochSource
from encoders.epochs import SignalEpochs
from encoders.resample import FIR

MAX_PICTURE = 1000
_TRIGGERS = "stim"
_FILE = re.compile(r"(subj\d+)_session(\d+)_eeg\.fif")


class Alljoined1(BaseModel):
    """Where the recordings are and how they are cut.

    Attributes
    ----------
    root : Path
        Folder with ``subjXX_sessionY_eeg.fif``.
    subjects : tuple of str
        People to read (``subj04``); empty for all.
    tmin, tmax : float
        Limits of the epochs in seconds.
    l_freq, h_freq : float
        Pass band in Hz, applied to the continuous recording.
    sfreq : float
        Rate of the epochs in Hz.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    subjects: tuple[str, ...] = ()
    tmin: float = Field(default=-0.05, le=0.0)
    tmax: float = Field(default=0.6, gt=0.0)
    l_freq: float = Field(default=0.5, gt=0.0)
    h_freq: float = Field(default=100.0, gt=0.0)
    sfreq: float = Field(default=256.0, gt=0.0)

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return "alljoined1"

    def source(self) -> EpochSource:
        """Return what the epochs are read from: one part per session."""
        return self

    def parts(self) -> list[EpochPart]:
        """List the sessions without opening a recording."""
        found = {file: match for file in sorted(self.root.glob("*.fif")) if (match := _FILE.fullmatch(file.name))}
        people = sorted({match[1] for match in found.values()})
        missing = [subject for subject in self.subjects if subject not in people]
        if missing or not found:
            raise ValueError(
                f"{self.root} has subjXX_sessionY_eeg.fif of {people}, expected {list(self.subjects) or 'some'}; give "
                "the folder of the recordings"
            )
        wanted = self.subjects or people
        return [Alljoined1Part(self, match[1], match[2], file) for file, match in found.items() if match[1] in wanted]


@dataclass(frozen=True)
class Alljoined1Part:
    """One session of one person; repetitions are counted within it, because lists of sessions differ."""

    config: Alljoined1
    subject: str
    session: str
    file: Path

    @property
    def name(self) -> str:
        """Unique name."""
        return f"{self.subject}_session{self.session}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The recording."""
        return (str(self.file),)

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        """Filter the recording, then cut it at its triggers."""
        raw = mne.io.read_raw_fif(self.file, preload=True, verbose="error")
        if _TRIGGERS not in raw.get_channel_types():
            raise ValueError(f"{self.file} has no stimulus channel, expected Status; take the recordings as published")
        events = mne.find_events(raw, shortest_event=1, verbose="error")
        events = events[(events[:, 2] >= 1) & (events[:, 2] <= MAX_PICTURE)]
        owner = self.subject if int(self.session) % 2 else "shared"
        images = tuple(f"{owner}/{code:04d}" for code in events[:, 2])
        raw.filter(self.config.l_freq, self.config.h_freq, picks="data", **FIR, verbose="error")
        raw, events = raw.resample(self.config.sfreq, events=events, verbose="error")
        metadata = EpochMetadata(
            image=images,
            concept=("",) * len(images),
            split=("",) * len(images),
            session=(self.session,) * len(images),
            run=("",) * len(images),
            repetition=count_repetitions(images, Counter()),
        )
        cut = plain_cut(self.config.tmin, self.config.tmax)
        yield from recording_blocks(raw, np.asarray(events[:, 0]), metadata, self.subject, cut, str(self.file))
