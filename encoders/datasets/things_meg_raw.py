"""THINGS-MEG (OpenNeuro ds004212) from its continuous CTF recordings.

References
----------
Hebart et al. 2023, eLife 12, e82580, and ViCCo-Group/THINGS-data.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np
from pydantic import BaseModel, ConfigDict

from encoders.datasets.recording_blocks import recording_blocks
from encoders.datasets.subject_folders import subject_folders
from encoders.datasets.tables import number, read_table
from encoders.datasets.things_meg_trials import MegTrials, check_numbers, image_number, read_trials
from encoders.epoch_source import EpochMetadata, EpochPart, EpochSource
from encoders.epochs import SignalEpochs
from encoders.things_meg import continuous_things_meg, cut_things_meg

TRIGGER_CHANNEL, TRIGGER = "UPPT001", 64
DROPOUTS = {("sub-BIGMEG1", "11", "05"): 13.4, ("sub-BIGMEG2", "10", "03"): 59.8}
"""Start in seconds of a loss of signal. The authors' script counts runs from 0: its 4 and 2 are run-05 and run-03."""
DROPOUT_SECONDS = 0.2
_RUN = re.compile(r"(sub-[^_]+)_ses-([^_]+)_task-main_run-([^_]+)_meg\.(ds|fif)")


class ThingsMegRaw(BaseModel):
    """Where the data set is and what of it is read.

    Attributes
    ----------
    root : Path
        Folder of ds004212, with ``sub-BIGMEGn/ses-YY/meg`` and ``sourcedata``.
    subjects : tuple of str
        People to read; empty for all.
    with_unassigned : bool
        Also catch trials and the training pictures of tested concepts, with an empty split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    subjects: tuple[str, ...] = ()
    with_unassigned: bool = False

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return "things_meg"

    def source(self) -> EpochSource:
        """Return what the epochs are read from: one part per run."""
        return self

    def parts(self) -> list[EpochPart]:
        """List the runs; reads the tables of trials, no signal."""
        parts: list[EpochPart] = []
        for folder in subject_folders(self.root, self.subjects, "ses-*/meg/*_task-main_run-*_meg.*"):
            table = self.root / "sourcedata" / f"sample_attributes_P{folder.name.removeprefix('sub-BIGMEG')}.csv"
            trials = read_trials(table)
            for file in sorted(folder.glob("ses-*/meg/*_meg.*")):
                match = _RUN.fullmatch(file.name)
                if match:
                    _, session, run, _ = match.groups()
                    own = trials.take(trials.where(session, run))
                    parts.append(MegRun(folder.name, session, run, file, table, own, self.with_unassigned))
        if len({part.name for part in parts}) != len(parts):
            raise ValueError(f"{self.root} has a run both as .ds and as .fif; keep one of them")
        return parts


@dataclass(frozen=True)
class MegRun:
    """One run of one person, and the trials that the table gives for it."""

    subject: str
    session: str
    run: str
    file: Path
    table: Path
    trials: MegTrials
    with_unassigned: bool

    @property
    def name(self) -> str:
        """Unique name."""
        return f"{self.subject}_ses-{self.session}_run-{self.run}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The recording, its events, and the table of trials."""
        return str(self.file), str(self._events_file), str(self.table)

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        """Filter the run, then cut it at the onsets of the optical sensor."""
        raw = read_meg_recording(self.file)
        rows = read_table(self._events_file, ("value", "sample"))
        triggers = mne.find_events(raw, TRIGGER_CHANNEL, initial_event=True, verbose="error")
        check_numbers(
            [image_number(row["value"]) for row in rows],
            self.trials,
            str(self._events_file),
            {f"triggers {TRIGGER}": int((triggers[:, 2] == TRIGGER).sum())},
        )
        samples = np.asarray([round(number(row, "sample", self._events_file)) for row in rows]) + raw.first_samp
        kept = [i for i, split in enumerate(self.trials.metadata.split) if split or self.with_unassigned]
        raw = continuous_things_meg(mend_dropout(raw, (self.subject, self.session, self.run)))
        metadata = self.trials.take(kept).metadata
        yield from recording_blocks(raw, samples[kept], metadata, self.subject, cut_things_meg, str(self.file))

    @property
    def _events_file(self) -> Path:
        return self.file.with_name(re.sub(r"_meg\.(ds|fif)$", "_events.tsv", self.file.name))


def read_meg_recording(file: Path) -> "mne.io.BaseRaw":
    """Open a CTF folder, or a FIF file made of one."""
    if file.suffix == ".ds":
        raw = mne.io.read_raw_ctf(file, verbose="error")
    else:
        raw = mne.io.read_raw_fif(file, verbose="error")
    if TRIGGER_CHANNEL not in raw.ch_names:
        raise ValueError(f"{file} has no channel {TRIGGER_CHANNEL} to check its events with; take the original file")
    return raw


def mend_dropout(raw: "mne.io.BaseRaw", run: tuple[str, str, str]) -> "mne.io.BaseRaw":
    """Replace a known loss of signal by the median of each channel, as the authors do; return other runs as is."""
    start = DROPOUTS.get(run)
    if start is None:
        return raw
    raw = raw.copy().load_data(verbose="error")
    first = int(np.argmin(np.abs(raw.times - start)))
    last = first + int(DROPOUT_SECONDS * raw.info["sfreq"])

    def mend(signal: np.ndarray) -> np.ndarray:
        signal[first:last] = np.median(signal)
        return signal

    return raw.apply_function(mend, picks="all", channel_wise=True, verbose="error")
