"""The Parquet table of a decoded data set: one row per epoch, refused ones too; written whole or not at all."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from encoders.durable_files import replacing

NEIGHBOUR = pa.struct([("name", pa.string()), ("caption", pa.string()), ("similarity", pa.float64())])
ANSWER_COLUMNS = pa.schema(
    [
        ("source", pa.string()),
        ("epoch", pa.int64()),
        ("subject", pa.string()),
        ("stimulus", pa.string()),
        ("n_averaged", pa.int32()),
        ("seed", pa.int64()),
        ("pictures", pa.list_(pa.string())),
        ("safety", pa.list_(pa.string())),
        ("confidence", pa.float64()),
        ("probability", pa.float64()),
        ("noise_floor", pa.float64()),
        ("neighbours", pa.list_(NEIGHBOUR)),
        ("flags", pa.list_(pa.string())),
        ("refused", pa.string()),
    ]
)


def write_answers(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with `ANSWER_COLUMNS`; what a row leaves out is null. The file appears when it is on the disk."""
    _write(path, [pa.Table.from_pylist([dict(row) for row in rows], schema=ANSWER_COLUMNS)])


def join_answers(paths: Iterable[Path], path: Path) -> None:
    """Write one table of several, one after the other, with no more than one of them in memory."""
    _write(path, (pq.read_table(part, use_threads=False, memory_map=False) for part in paths))


def count_answers(path: Path) -> tuple[int, int]:
    """Return how many rows a table has, and how many of them are refused epochs."""
    refused = pq.read_table(path, columns=["refused"], use_threads=False, memory_map=False)["refused"]
    return len(refused), len(refused) - refused.null_count


def _write(path: Path, tables: Iterable[pa.Table]) -> None:
    with replacing(path) as file, pq.ParquetWriter(file, ANSWER_COLUMNS) as writer:
        for table in tables:
            writer.write_table(table)
