"""THINGS-EEG1 (OpenNeuro ds003825): BrainVision recordings of 50 people, with the events in tables.

Onsets of the tables are samples at 1 kHz, not seconds, and paths have back-slashes. The 200 pictures that were repeated
12 times are the test set; training pictures of their concepts belong to neither split and are left out by default.
Pictures follow each other every 100 ms, so an epoch of 1.1 s contains eleven of them.

References
----------
Grootswagers et al. 2022, Scientific Data 9, 3.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mne
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from encoders.companion_input import read_brainvision
from encoders.datasets.recording_blocks import count_repetitions, recording_blocks, take_rows
from encoders.datasets.stimulus_names import concept_of, image_id
from encoders.datasets.subject_folders import subject_folders
from encoders.datasets.tables import number, read_list, read_table, truth
from encoders.epoch_source import EpochMetadata, EpochPart, EpochSource
from encoders.epochs import SignalEpochs
from encoders.part_bounds import own_files
from encoders.things_eeg import continuous_things_eeg, cut_things_eeg

ONSET_RATE = 1000.0
THINGS_EEG1_CHANNELS = tuple(
    "Fp1 Fz F3 F7 FT9 FC5 FC1 C3 T7 TP9 CP5 CP1 Pz P3 P7 O1 Oz O2 P4 P8 TP10 CP6 CP2 C4 T8 FT10 FC6 FC2 F4 F8 Fp2 AF7 "
    "AF3 AFz F1 F5 FT7 FC3 C1 C5 TP7 CP3 P1 P5 PO7 PO3 POz PO4 PO8 P6 P2 CPz CP4 TP8 C6 C2 FC4 FT8 F6 AF8 AF4 F2 "
    "FCz".split()
)
"""The 63 channels of people 1-48; 49 and 50 were recorded with a cap of 127 that has the same ones among others."""
_COLUMNS = ("onset", "isteststim", "stim")


class ThingsEeg1(BaseModel):
    """Where the data set is and what of it is read.

    Attributes
    ----------
    root : Path
        Folder of ds003825, with ``sub-XX/eeg`` and, where downloaded, ``test_images.csv`` and ``participants.tsv``.
    subjects : tuple of str
        People to read; empty for all.
    with_excluded : bool
        Also the people that ``participants.tsv`` suggests to exclude; they are kept if they are named in ``subjects``.
    with_unassigned : bool
        Also the training pictures of tested concepts, with an empty split.
    drop_last_sample : bool
        275 samples as EEGLAB cuts, instead of 276.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    subjects: tuple[str, ...] = ()
    with_excluded: bool = False
    with_unassigned: bool = False
    drop_last_sample: bool = False

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return "things_eeg1"

    def source(self) -> EpochSource:
        """Return what the epochs are read from: one part per person."""
        return self

    def parts(self) -> list[EpochPart]:
        """List the people without reading signals or events."""
        folders = subject_folders(self.root, self.subjects, "eeg/*_task-rsvp_eeg.vhdr")
        people = self.root / "participants.tsv"
        excluded: set[str] = set()
        if people.is_file() and not self.with_excluded and not self.subjects:
            rows = read_table(people, ("participant_id", "exclude"))
            excluded = {row["participant_id"] for row in rows if truth(row["exclude"])}
        return [RsvpPart(self, folder) for folder in folders if folder.name not in excluded]


@dataclass(frozen=True)
class RsvpPart:
    """One person's recording."""

    config: ThingsEeg1
    folder: Path

    @property
    def name(self) -> str:
        """Unique name."""
        return self.folder.name

    @property
    def inputs(self) -> tuple[str, ...]:
        """Header of the recording, and the table of events."""
        return str(self._file("eeg.vhdr")), str(self._file("events.tsv"))

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        """Filter the whole recording, then cut it."""
        header, table = (Path(path) for path in self.inputs)
        with own_files():
            raw = pick_channels(read_brainvision(header), header)
        onsets, metadata = read_rsvp_events(table, self.config.root / "test_images.csv")
        samples = onset_samples(onsets, raw, table)
        kept = [i for i, split in enumerate(metadata.split) if split or self.config.with_unassigned]
        samples, metadata = samples[kept], take_rows(metadata, kept)
        codes = np.arange(len(samples))
        raw, events = continuous_things_eeg(raw, np.column_stack([samples, np.zeros_like(codes), codes]))
        cut = partial(cut_things_eeg, drop_last_sample=self.config.drop_last_sample)
        yield from recording_blocks(raw, events[:, 0], metadata, self.name, cut, str(header))

    def _file(self, end: str) -> Path:
        return self.folder / "eeg" / f"{self.folder.name}_task-rsvp_{end}"


def pick_channels(raw: "mne.io.BaseRaw", where: Path) -> "mne.io.BaseRaw":
    """Return the 63 channels that all people have, in one order.

    Raises
    ------
    ValueError
        If one is missing; the message names it.
    """
    missing = [name for name in THINGS_EEG1_CHANNELS if name not in raw.ch_names]
    if missing:
        raise ValueError(
            f"{where} lacks the channels {missing} of the 63 of THINGS-EEG1, it has {len(raw.ch_names)}: "
            f"{raw.ch_names[:130]}; leave this person out with 'subjects'"
        )
    return raw.copy().pick(list(THINGS_EEG1_CHANNELS), verbose="error")


def read_rsvp_events(table: Path, test_list: Path) -> tuple[NDArray[np.float64], EpochMetadata]:
    """Return onsets as they stand in a table of events, and what was shown.

    Raises
    ------
    ValueError
        If a test picture is not in ``test_images.csv`` (where that file exists) or also a training picture.
    """
    rows = read_table(table, _COLUMNS)
    images = [image_id(row["stim"]) for row in rows]
    tested = {image for image, row in zip(images, rows, strict=True) if truth(row["isteststim"])}
    if test_list.is_file():
        listed = {image_id(path) for path in read_list(test_list)}
        unknown = sorted(tested - listed)
        if unknown:
            raise ValueError(
                f"{table} tests pictures {unknown[:5]} that {test_list} does not list; the files do not match"
            )
        tested = listed  # somebody who did not finish saw no test picture, and must not train on their concepts either
    concepts = {concept_of(image) for image in tested}
    splits = []
    for image, row in zip(images, rows, strict=True):
        if truth(row["isteststim"]):
            splits.append("test")
        else:
            splits.append("" if concept_of(image) in concepts else "train")
    metadata = EpochMetadata(
        image=tuple(images),
        concept=tuple(concept_of(image) for image in images),
        split=tuple(splits),
        session=("",) * len(rows),
        run=tuple(row.get("sequencenumber", "") for row in rows),
        repetition=count_repetitions(images, Counter()),
    )
    return np.asarray([number(row, "onset", table) for row in rows]), metadata


def onset_samples(onsets: NDArray[np.float64], raw: "mne.io.BaseRaw", table: Path) -> NDArray[np.int64]:
    """Return MNE samples of onsets that count samples at 1 kHz.

    Raises
    ------
    ValueError
        If they are no whole numbers (seconds, as BIDS wants them) or lie outside the recording.
    """
    samples = np.round(onsets * raw.info["sfreq"] / ONSET_RATE).astype(np.int64)
    if (onsets != np.round(onsets)).any() or len(set(onsets)) != len(onsets):
        raise ValueError(f"{table}: onsets are not different whole numbers; expected samples at 1 kHz, as in ds003825")
    if len(samples) and not 0 <= samples.min() <= samples.max() < raw.n_times:
        raise ValueError(
            f"{table}: onsets from {onsets.min():g} to {onsets.max():g} samples at 1 kHz leave a recording of "
            f"{raw.n_times / raw.info['sfreq']:g} s; the table belongs to another recording"
        )
    return np.asarray(samples + raw.first_samp)
