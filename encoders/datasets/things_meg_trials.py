"""What was shown when in THINGS-MEG: the table ``sample_attributes_P1.csv``, which is also the metadata of the epochs.

Catch trials have no picture and number 999999. Pictures that one person saw 12 times are the test set; training
pictures of their concepts are in neither split (of 22,248 training epochs, 19,848 remain).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from encoders.datasets.image_lists import zero_shot_split
from encoders.datasets.recording_blocks import count_repetitions, take_rows
from encoders.datasets.stimulus_names import concept_of, image_id
from encoders.datasets.tables import MISSING, read_table
from encoders.epoch_source import EpochMetadata

CATCH = 999999
COLUMNS = ("trial_type", "session_nr", "run_nr", "things_image_nr", "image_path")


@dataclass(frozen=True)
class MegTrials:
    """All trials of one person in the order of presentation; ``numbers`` are THINGS image numbers, or `CATCH`."""

    numbers: tuple[int, ...]
    metadata: EpochMetadata

    def where(self, session: str, run: str | None = None) -> list[int]:
        """Return the rows of a session, or of one run of it."""
        meta = self.metadata
        return [row for row in range(len(meta)) if meta.session[row] == session and run in (None, meta.run[row])]

    def take(self, rows: Sequence[int]) -> "MegTrials":
        """Return some of the trials."""
        return MegTrials(tuple(self.numbers[row] for row in rows), take_rows(self.metadata, rows))


def read_trials(table: Path) -> MegTrials:
    """Read the trials of one person from ``sourcedata/sample_attributes_P1.csv``."""
    return trials_of_rows(read_table(table, COLUMNS))


def trials_of_rows(rows: Sequence[dict[str, str]]) -> MegTrials:
    """Return the trials that rows with the columns of the table describe."""
    numbers = tuple(CATCH if row["trial_type"] == "catch" else image_number(row["things_image_nr"]) for row in rows)
    images = tuple("" if n == CATCH else image_id(row["image_path"]) for n, row in zip(numbers, rows, strict=True))
    of_number = dict(zip(numbers, images, strict=True))
    train, test = zero_shot_split([number for number in numbers if number != CATCH], of_number)
    metadata = EpochMetadata(
        image=images,
        concept=tuple(concept_of(image) for image in images),
        split=tuple("train" if number in train else "test" if number in test else "" for number in numbers),
        session=tuple(_label(row["session_nr"]) for row in rows),
        run=tuple(_label(row["run_nr"]) for row in rows),
        repetition=count_repetitions(images, Counter()),
    )
    return MegTrials(numbers, metadata)


def image_number(text: str) -> int:
    """Return a THINGS image number as it stands in a table (``24812.0``); missing ones are catch trials."""
    return CATCH if text in MISSING else int(float(text))


def check_numbers(found: Sequence[int], trials: MegTrials, where: str, also: dict[str, int] | None = None) -> None:
    """Check that two lists of trials are the same, catch trials included.

    Tables write catch trials as ``N/A``, so a comparison that does not know them finds 20 differences in each run.

    Parameters
    ----------
    found : sequence of int
        Image numbers of the file, `CATCH` for catch trials.
    trials : MegTrials
        What the table says.
    where : str
        File to name in the message.
    also : dict of str to int
        Other counts that must be the same.

    Raises
    ------
    ValueError
        If numbers or counts differ; the message has the counts.
    """
    counts = {"events": len(found), "rows of sample_attributes": len(trials.numbers)} | (also or {})
    if len(set(counts.values())) != 1:
        raise ValueError(f"{where}: {counts}, expected equal counts; leave out this run or repair its tables")
    differ = [i for i, (one, other) in enumerate(zip(found, trials.numbers, strict=True)) if one != other]
    if differ:
        raise ValueError(
            f"{where}: {len(differ)} of {len(found)} events show another picture than sample_attributes says (the "
            f"first is event {differ[0]}: {found[differ[0]]}, not {trials.numbers[differ[0]]}); leave out this run"
        )


def _label(text: str) -> str:
    return f"{int(float(text)):02d}"
