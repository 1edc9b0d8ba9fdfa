"""THINGS-MEG (OpenNeuro ds004212) from its preprocessed epochs: ``preprocessed_P1-epo.fif`` and its continuations.

Values are z-scores to the time before the onset, although the file calls them tesla.

References
----------
Hebart et al. 2023, eLife 12, e82580.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mne
import numpy as np
from pydantic import BaseModel, ConfigDict

from encoders.datasets.recording_blocks import BLOCK_EPOCHS, take_rows
from encoders.datasets.standard_unit import Unit, si_factor
from encoders.datasets.stimulus_names import bare_channel_name
from encoders.datasets.tables import metadata_rows
from encoders.datasets.things_meg_sensors import BROKEN_SENSOR
from encoders.datasets.things_meg_trials import COLUMNS, MegTrials, check_numbers, read_trials, trials_of_rows
from encoders.epoch_source import EpochMetadata, EpochPart, EpochSource
from encoders.epochs import SignalEpochs

_FILE = re.compile(r"preprocessed_P(\d+)-epo\.fif")


class ThingsMegEpochs(BaseModel):
    """Where the epochs are and what of them is read.

    Attributes
    ----------
    root : Path
        Folder of ds004212, or its ``derivatives/preprocessed``.
    subjects : tuple of str
        Numbers of the people to read (``1``); empty for all.
    with_unassigned : bool
        Also catch trials and the training pictures of tested concepts, with an empty split.
    unit : str
        ``standard`` (z-scored, as published) or ``SI`` (tesla).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    subjects: tuple[str, ...] = ()
    with_unassigned: bool = False
    unit: Unit = "standard"

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return "things_meg"

    def source(self) -> EpochSource:
        """Return what the epochs are read from: one part per person and session."""
        return self

    def parts(self) -> list[EpochPart]:
        """List the sessions; reads headers and metadata, no signal."""
        folder = self.root / "derivatives" / "preprocessed"
        folder = folder if folder.is_dir() else self.root
        files = {match[1]: file for file in sorted(folder.glob("*.fif")) if (match := _FILE.fullmatch(file.name))}
        missing = [subject for subject in self.subjects if subject not in files]
        if missing or not files:
            raise ValueError(
                f"{folder} has preprocessed_PX-epo.fif of {list(files)}, expected {list(self.subjects) or 'some'}"
                "; give the folder of ds004212 and download derivatives/preprocessed with all parts of each file"
            )
        parts: list[EpochPart] = []
        for person in self.subjects or files:
            trials = self._trials(files[person], person)
            for session in sorted(set(trials.metadata.session)):
                rows = trials.where(session)
                kept = [row for row in rows if trials.metadata.split[row] or self.with_unassigned]
                if kept:
                    metadata = take_rows(trials.metadata, kept)
                    subject = f"sub-BIGMEG{person}"
                    parts.append(MegSession(subject, session, files[person], tuple(kept), metadata, self.unit))
        return parts

    def _trials(self, file: Path, person: str) -> MegTrials:
        """Return the trials from the metadata of the epochs, or from the table if they have none."""
        epochs = _open(file)
        rows = metadata_rows(epochs.metadata)
        if rows is None:
            trials = read_trials(self.root / "sourcedata" / f"sample_attributes_P{person}.csv")
        else:
            missing = [name for name in COLUMNS if rows and name not in rows[0]]
            if missing:
                raise ValueError(
                    f"{file}: the metadata lacks {missing}, it has {list(rows[0])}; take the original files"
                )
            trials = trials_of_rows(rows)
        check_numbers([int(code) for code in epochs.events[:, 2]], trials, str(file))
        return trials


@dataclass(frozen=True)
class MegSession:
    """One session of one person: some rows of the person's file."""

    subject: str
    session: str
    file: Path
    rows: tuple[int, ...]
    metadata: EpochMetadata
    unit: Unit

    @property
    def name(self) -> str:
        """Unique name."""
        return f"{self.subject}_ses-{self.session}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The file and its continuations."""
        return tuple(str(path) for path in sorted(self.file.parent.glob(f"{self.file.stem}*.fif")))

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        """Read the session, some hundred epochs at a time."""
        stored = _open(self.file)
        factor = None
        for start in range(0, len(self.rows), BLOCK_EPOCHS):
            rows = self.rows[start : start + BLOCK_EPOCHS]
            epochs = SignalEpochs.from_mne(stored[list(rows)])
            names = tuple(bare_channel_name(name) for name in epochs.ch_names)
            if factor is None:
                (kind,) = set(epochs.ch_types)
                factor = np.float32(si_factor(epochs.data, kind, self.unit, str(self.file)))
            metadata = take_rows(self.metadata, range(start, start + len(rows)))
            epochs = replace(
                epochs, data=epochs.data * factor, subject=self.subject, ch_names=names, stimulus=metadata.image
            )
            if BROKEN_SENSOR in names:
                epochs = epochs.pick([name for name in names if name != BROKEN_SENSOR])
            yield epochs, metadata


def _open(file: Path) -> "mne.BaseEpochs":
    return mne.read_epochs(file, proj=False, preload=False, verbose="error")
