"""Tables of text beside recordings: tab or comma separated, with or without a byte-order mark."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MISSING = frozenset({"", "n/a", "N/A", "nan", "NaN", "NA", "None", "<NA>"})


def read_table(path: Path, required: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return the rows of a ``.tsv`` or ``.csv`` file; values are text, and missing ones (``n/a``) are empty.

    Parameters
    ----------
    path : Path
        UTF-8 with or without a byte-order mark; the first line names the columns.
    required : sequence of str
        Columns that must be there.

    Raises
    ------
    ValueError
        If the file is absent or empty, a column is missing, or a line has another number of values.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; download the whole data set, with its tables")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="," if path.suffix.lower() == ".csv" else "\t", strict=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        absent = [name for name in required if name not in columns]
        if absent:
            raise ValueError(
                f"{path} lacks the columns {absent}, it has {columns}; name another column or another file"
            )
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}, line {reader.line_num} has another number of values than {len(columns)}")
            rows.append({name: _text(value) for name, value in row.items()})
    return rows


def metadata_rows(metadata: Any) -> list[dict[str, str]] | None:
    """Return the rows of MNE's metadata of epochs as text, missing values empty; None where there is no metadata.

    MNE gives a data frame, or a list of dictionaries where pandas is not installed.
    """
    if metadata is None:
        return None
    rows = metadata if isinstance(metadata, list) else metadata.to_dict("records")
    return [{str(name): _text(value) for name, value in row.items()} for row in rows]


def _text(value: Any) -> str:
    text = "" if value is None else str(value).strip()
    return "" if text in MISSING else text


def read_list(path: Path) -> tuple[str, ...]:
    """Return the first value of each line of a table without a header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return tuple(row[0].strip() for row in csv.reader(file) if row and row[0].strip())


def number(row: dict[str, str], column: str, path: Path) -> float:
    """Return a value of a table as a number."""
    try:
        return float(row[column])
    except ValueError:
        raise ValueError(
            f"{path}: column {column!r} has {row[column]!r}, expected a number; repair the table"
        ) from None


def truth(text: str) -> bool:
    """Return whether a table says yes: ``1``, ``1.0``, ``true`` or ``yes``."""
    return text.lower() in ("1", "1.0", "true", "yes")
