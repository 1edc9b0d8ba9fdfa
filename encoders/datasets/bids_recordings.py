"""Any BIDS data set of EEG or MEG with tables of events, for example ds004078 (stories) and ds004483 (sequences).

Nothing here knows what the events of a data set mean: which column holds the stimulus, and which trial types count, is
said by the configuration. Session and run go into the metadata, so that a set with one story per run can be split by
story.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mne
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from encoders.datasets.recording_blocks import count_repetitions, plain_cut, recording_blocks
from encoders.datasets.tables import number, read_table
from encoders.epoch_source import SPLITS, EpochMetadata, EpochPart, EpochSource
from encoders.epochs import SignalEpochs
from encoders.modality import MODALITIES
from encoders.resample import FIR


class BidsRecordings(BaseModel):
    """Where the data set is, which events count, and how they are cut.

    Attributes
    ----------
    root : Path
        Folder with ``dataset_description.json``.
    stimulus_column : str
        Column of the tables of events that identifies what was shown.
    trial_types : tuple of str
        Values of ``trial_type`` that count; empty for all events.
    concept_column, split_column : str
        Columns with the concept and with ``train`` or ``test``; empty for none.
    tmin, tmax : float
        Limits of the epochs in seconds.
    l_freq, h_freq : float, optional
        Pass band in Hz, applied to the continuous recording.
    sfreq : float, optional
        Rate of the epochs in Hz; needs an ``h_freq`` below half of it.
    subjects, tasks : tuple of str
        What to read, without ``sub-`` and ``task-``; empty for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    stimulus_column: str = "trial_type"
    trial_types: tuple[str, ...] = ()
    concept_column: str = ""
    split_column: str = ""
    tmin: float = -0.2
    tmax: float = 1.0
    l_freq: float | None = None
    h_freq: float | None = None
    sfreq: float | None = None
    subjects: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_band(self) -> "BidsRecordings":
        if self.tmax <= self.tmin:
            raise ValueError(f"tmin={self.tmin} is not before tmax={self.tmax}; give limits in seconds")
        if self.sfreq is not None and (self.h_freq is None or self.h_freq >= self.sfreq / 2):
            raise ValueError(f"sfreq={self.sfreq} needs an h_freq below {self.sfreq / 2:g} Hz, got {self.h_freq}")
        return self

    @property
    def dataset(self) -> str:
        """Name of the data set: that of its folder."""
        return self.root.resolve().name

    def source(self) -> EpochSource:
        """Return what the epochs are read from: one part per recording."""
        return self

    def parts(self) -> list[EpochPart]:
        """List the recordings; reads the tables of events, no signal."""
        parts: list[EpochPart] = []
        shown: dict[str, Counter[str]] = {}
        for path in list_recordings(self.root, self.subjects, self.tasks):
            events = read_events(path)
            onsets, metadata = self._metadata(events, path, shown.setdefault(path.subject, Counter()))
            if onsets:
                parts.append(BidsPart(self, path.basename.rsplit("_", 1)[0], path.subject, path, onsets, metadata))
        if not parts:
            raise ValueError(
                f"no event of {self.root} counts (trial_types={list(self.trial_types)}); name values of the column "
                "trial_type"
            )
        return parts

    def _metadata(
        self, events: list[dict[str, str]], path: Any, shown: Counter[str]
    ) -> tuple[tuple[float, ...], EpochMetadata]:
        file = events_file(path)
        columns = [name for name in (self.stimulus_column, self.concept_column, self.split_column) if name]
        columns += ["trial_type"] if self.trial_types else []
        absent = [name for name in columns if events and name not in events[0]]
        if absent:
            raise ValueError(f"{file} lacks the columns {absent}, it has {list(events[0])}; name other columns")
        rows = [row for row in events if not self.trial_types or row["trial_type"] in self.trial_types]
        splits = tuple(row[self.split_column] if self.split_column else "" for row in rows)
        unknown = sorted(set(splits) - set(SPLITS))
        if unknown:
            raise ValueError(f"{file}: column {self.split_column!r} has {unknown[:5]}, allowed are {list(SPLITS)}")
        images = tuple(row[self.stimulus_column].replace("\\", "/") for row in rows)
        metadata = EpochMetadata(
            image=images,
            concept=tuple(row[self.concept_column] if self.concept_column else "" for row in rows),
            split=splits,
            session=(path.session or "",) * len(rows),
            run=(path.run or "",) * len(rows),
            repetition=count_repetitions(images, shown),
        )
        return tuple(number(row, "onset", file) for row in rows), metadata


@dataclass(frozen=True)
class BidsPart:
    """One recording and its events."""

    config: BidsRecordings
    name: str
    subject: str
    path: Any
    onsets: tuple[float, ...]
    metadata: EpochMetadata

    @property
    def inputs(self) -> tuple[str, ...]:
        """The recording and its table of events."""
        return str(self.path.fpath), str(events_file(self.path))

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        """Filter and resample the whole recording as configured, then cut it."""
        config = self.config
        raw = read_recording(self.path)
        samples = np.round(np.asarray(self.onsets) * raw.info["sfreq"]).astype(np.int64) + raw.first_samp
        raw, samples = _prepared(raw, samples, config)
        cut = plain_cut(config.tmin, config.tmax)
        subject = f"sub-{self.subject}"
        yield from recording_blocks(raw, samples, self.metadata, subject, cut, self.inputs[0])


def list_recordings(root: Path, subjects: tuple[str, ...] = (), tasks: tuple[str, ...] = ()) -> list[Any]:
    """Return the BIDS paths of all recordings of brain signals that have a table of events, sorted.

    Raises
    ------
    ValueError
        If the folder is no BIDS data set, or has no such recording.
    """
    mne_bids = _mne_bids()
    if not (root / "dataset_description.json").is_file():
        raise ValueError(
            f"{root} has no dataset_description.json, so it is no BIDS data set; give the folder that has it"
        )
    paths = mne_bids.find_matching_paths(
        root,
        datatypes=list(MODALITIES),
        suffixes=list(MODALITIES),
        subjects=[subject.removeprefix("sub-") for subject in subjects] or None,
        tasks=list(tasks) or None,
        extensions=[".vhdr", ".edf", ".bdf", ".set", ".fif", ".ds", ".sqd", ".con"],
    )
    # a recording that goes on in a second file is read through its first
    paths = [path for path in paths if path.split in (None, "01", "1") and events_file(path).is_file()]
    if not paths:
        raise ValueError(
            f"{root} has no recording with a table of events for {subjects or 'any person'}; download them"
        )
    return sorted(paths, key=lambda path: (path.subject, path.session or "", path.task or "", path.run or ""))


def read_recording(path: Any) -> "mne.io.BaseRaw":
    """Open a recording of a BIDS path, with the channel types and bad channels of its sidecars."""
    return _mne_bids().read_raw_bids(path, verbose="error")


def read_events(path: Any) -> list[dict[str, str]]:
    """Return the rows of the table of events that belongs to a BIDS path; values are text."""
    return read_table(events_file(path), ("onset",))


def events_file(path: Any) -> Path:
    """Return the table of events that belongs to a BIDS path."""
    return Path(path.copy().update(suffix="events", extension=".tsv", split=None, check=False).fpath)


def _prepared(
    raw: "mne.io.BaseRaw", samples: NDArray[np.int64], config: BidsRecordings
) -> tuple["mne.io.BaseRaw", NDArray[np.int64]]:
    if config.l_freq is None and config.h_freq is None:
        return raw, samples
    raw = raw.load_data(verbose="error").filter(config.l_freq, config.h_freq, picks="data", **FIR, verbose="error")
    if config.sfreq is None:
        return raw, samples
    codes = np.arange(len(samples))
    events = np.column_stack([samples, np.zeros_like(codes), codes])
    raw, events = raw.resample(config.sfreq, events=events, verbose="error")
    return raw, events[:, 0]


def _mne_bids() -> Any:
    try:
        import mne_bids
    except ImportError as error:
        raise ValueError(
            "reading BIDS data sets needs mne-bids, which is not installed; install the extra: "
            "pip install 'phosphene[train]'"
        ) from error
    return mne_bids
