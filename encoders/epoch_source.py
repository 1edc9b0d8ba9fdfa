"""What a converter of a public data set gives and a store is built from: parts that can be read one by one.

A part (a session of a person, say) is read on its own, so parts are converted in parallel and a conversion that was
stopped goes on with the parts that are missing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from encoders.epochs import SignalEpochs

SPLITS = ("train", "test", "")
"""``""`` is for epochs that the data set assigns to neither; a validation split is cut later, by concept."""


@dataclass(frozen=True)
class EpochMetadata:
    """What is known about each of n epochs beside the signal; every field has n entries.

    Attributes
    ----------
    image : tuple of str
        Id of the picture, the same for all people and modalities of the data set (its relative path with forward
        slashes, where there is one); empty for epochs without a picture (catch trials, sounds).
    concept : tuple of str
        Object concept of the picture, for example ``aardvark``; empty where unknown.
    split : tuple of str
        One of `SPLITS`, as the data set's own protocol says.
    session, run : tuple of str
        Labels; empty where there are none.
    repetition : tuple of int
        0, 1, ...: which presentation of this picture to this person it is, over all sessions; kept for averages too
        (the first one).

    Raises
    ------
    ValueError
        If lengths differ or a split is unknown.
    """

    image: tuple[str, ...]
    concept: tuple[str, ...]
    split: tuple[str, ...]
    session: tuple[str, ...]
    run: tuple[str, ...]
    repetition: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that the columns belong together."""
        columns = ("image", "concept", "split", "session", "run", "repetition")
        lengths = {name: len(getattr(self, name)) for name in columns}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"metadata columns have lengths {lengths}, expected equal ones; give one entry per epoch")
        unknown = sorted(set(self.split) - set(SPLITS))
        if unknown:
            raise ValueError(f"splits {unknown} are unknown, allowed are {list(SPLITS)}; change the converter")

    def __len__(self) -> int:
        return len(self.image)


class EpochPart(Protocol):
    """One independently readable piece of a data set."""

    @property
    def name(self) -> str:
        """Unique within the data set, stable, usable as a file name: ``sub-01_ses-02_train``."""
        ...

    @property
    def inputs(self) -> Sequence[str]:
        """Paths of the files that are read, for provenance."""
        ...

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        """Read the part in blocks that fit into memory (some hundred MB each); one person per block."""
        ...


class EpochSource(Protocol):
    """A data set on disk; must be picklable, since parts are read in other processes."""

    @property
    def dataset(self) -> str:
        """Name of the data set, for example ``things_eeg2``."""
        ...

    def parts(self) -> Sequence[EpochPart]:
        """List the parts without reading signals; raises ValueError when the folder is not such a data set."""
        ...
