"""The text files of a CTF folder, walked before the reader sees them.

MNE's search for the parts of a marker file goes on for ever behind its end, and every line of all takes its time.
"""

from collections.abc import Iterator
from pathlib import Path

from encoders.epochs import EpochsMismatch
from encoders.part_bounds import at_most

MAX_LINES = 10_000
MAX_LINE_LETTERS = 10_000
_MARKERS = "MarkerFile.mrk"
_NAMES, _SUFFIXES = {_MARKERS, "bad.segments", "BadChannels"}, {".hc", ".eeg", ".pos"}


def check_ctf_companions(folder: Path) -> None:
    """Check the markers, bad channels and stretches, coils and electrodes in the folder around a CTF header.

    Raises
    ------
    EpochsMismatch
        If a file has too many or too long lines, or the marker file does not hold what it announces.
    """
    for file in folder.iterdir():
        if file.name not in _NAMES and file.suffix not in _SUFFIXES:
            continue
        n_lines = 0
        with file.open(errors="replace") as text:
            while line := text.readline(MAX_LINE_LETTERS + 1):
                n_lines += 1
                if n_lines > (most := at_most(MAX_LINES)) or len(line) > MAX_LINE_LETTERS:
                    raise EpochsMismatch(
                        f"a text file of the CTF folder has more than {most} lines, or a line of more than "
                        f"{MAX_LINE_LETTERS} characters; leave it out, or send a part"
                    )
        if file.name == _MARKERS:
            with file.open(errors="replace") as text:
                _check_markers(text)


def _check_markers(lines: Iterator[str]) -> None:
    try:
        _skip_to(lines, "NUMBER OF MARKERS:")
        for _ in range(int(next(lines))):
            _skip_to(lines, "NAME:")
            next(lines)
            _skip_to(lines, "NUMBER OF SAMPLES:")
            n_samples = int(next(lines))
            _skip_to(lines, "LIST OF SAMPLES:")
            for _ in range(n_samples + 1):
                next(lines)
    except (StopIteration, ValueError) as error:
        raise EpochsMismatch(
            "the marker file of the CTF folder ends before what it announces; leave it out, or pack the folder again"
        ) from error


def _skip_to(lines: Iterator[str], start: str) -> None:
    while not next(lines).startswith(start):
        pass
