"""A laboratory's own epochs: a folder of MNE ``-epo.fif`` files, one per person, with a table of metadata in each."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mne
from pydantic import BaseModel, ConfigDict

from encoders.datasets.recording_blocks import BLOCK_EPOCHS, count_repetitions, take_rows
from encoders.datasets.stimulus_names import concept_of, image_id
from encoders.datasets.tables import metadata_rows
from encoders.epoch_source import SPLITS, EpochMetadata, EpochPart, EpochSource
from encoders.epochs import SignalEpochs


class OwnLab(BaseModel):
    """Where the files are and what the columns of their metadata mean.

    Attributes
    ----------
    root : Path
        Folder of the files; folders below it are searched too.
    stimulus_column : str
        What was shown: the picture's path, for example.
    concept_column, split_column, session_column, run_column : str
        Other columns; empty for none. A split is ``train``, ``test`` or empty.
    things_names : bool
        Pictures are of THINGS: write their ids and concepts as those of the public sets, so that both can be joined.
    ch_names : tuple of str
        Channels to read, in this order; empty for all, which must then be the same in every file.
    name : str
        Name of the data set; empty for that of the folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    stimulus_column: str = "stimulus"
    concept_column: str = ""
    split_column: str = ""
    session_column: str = ""
    run_column: str = ""
    things_names: bool = False
    ch_names: tuple[str, ...] = ()
    name: str = ""

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.name or self.root.resolve().name

    def source(self) -> EpochSource:
        """Return what the epochs are read from: one part per file."""
        return self

    def parts(self) -> list[EpochPart]:
        """List the files; reads their headers and metadata, no signal."""
        if self.things_names and self.concept_column:
            raise ValueError("things_names gives the concepts, so concept_column has no effect; leave one of them out")
        files = sorted(file for file in self.root.rglob("*-epo.fif"))
        if not files:
            raise ValueError(
                f"{self.root} has no files whose names end in -epo.fif; save epochs with MNE under such names"
            )
        parts: list[EpochPart] = []
        channels: dict[Path, list[str]] = {}
        for file in files:
            epochs = _open(file)
            channels[file] = list(epochs.ch_names)
            name = file.relative_to(self.root).as_posix().removesuffix("-epo.fif").replace("/", "_")
            person = str((epochs.info["subject_info"] or {}).get("his_id") or name)
            parts.append(OwnLabPart(name, person, file, self._metadata(epochs, file), self.ch_names))
        if not self.ch_names:
            _check_channels(channels)
        twice = [name for name, n in Counter(part.subject for part in parts).items() if n > 1]  # type: ignore[attr-defined]
        if twice:
            raise ValueError(
                f"people {twice} have several files under {self.root}; join the epochs of each person first"
            )
        return parts

    def _metadata(self, epochs: "mne.BaseEpochs", file: Path) -> EpochMetadata:
        columns = [self.stimulus_column, self.concept_column, self.split_column, self.session_column, self.run_column]
        rows = metadata_rows(epochs.metadata)
        if rows is None:
            raise ValueError(
                f"{file} has no metadata; set epochs.metadata to a table with a column {self.stimulus_column!r} and "
                "save again"
            )
        missing = [name for name in columns if name and rows and name not in rows[0]]
        if missing:
            raise ValueError(
                f"{file}: the metadata lacks the columns {missing}, it has {list(rows[0])}; say which column holds "
                "what, for example stimulus_column"
            )
        stimulus, concept, split, session, run = (tuple(row[name] if name else "" for row in rows) for name in columns)
        unknown = sorted(set(split) - set(SPLITS))
        if unknown:
            raise ValueError(f"{file}: column {self.split_column!r} has {unknown[:5]}, allowed are {list(SPLITS)}")
        images = tuple((image_id(s) if self.things_names else s.replace("\\", "/")) if s else "" for s in stimulus)
        concepts = tuple(concept_of(image) for image in images) if self.things_names else concept
        return EpochMetadata(images, concepts, split, session, run, count_repetitions(images, Counter()))


@dataclass(frozen=True)
class OwnLabPart:
    """One file."""

    name: str
    subject: str
    file: Path
    metadata: EpochMetadata
    ch_names: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The file."""
        return (str(self.file),)

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        """Read the file, some hundred epochs at a time."""
        stored = _open(self.file)
        for start in range(0, len(stored), BLOCK_EPOCHS):
            rows = list(range(start, min(start + BLOCK_EPOCHS, len(stored))))
            metadata = take_rows(self.metadata, rows)
            epochs = SignalEpochs.from_mne(stored[rows])
            epochs = epochs.pick(self.ch_names) if self.ch_names else epochs
            yield replace(epochs, subject=self.subject, stimulus=metadata.image), metadata


def _open(file: Path) -> "mne.BaseEpochs":
    return mne.read_epochs(file, proj=False, preload=False, verbose="error")


def _check_channels(channels: dict[Path, list[str]]) -> None:
    first, *others = channels
    for file in others:
        missing = [name for name in channels[first] if name not in channels[file]]
        extra = [name for name in channels[file] if name not in channels[first]]
        if channels[file] != channels[first]:
            what = f"lacks {missing} and has {extra} besides" if missing or extra else "has the same in another order"
            raise ValueError(
                f"the channels of {file} are not those of {first}: it {what}; name the channels to read as ch_names, "
                "or interpolate what is missing before saving"
            )
