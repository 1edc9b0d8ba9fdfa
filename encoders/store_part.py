"""One part of a data set on its way into a store: read block by block, written aside, put in place when whole.

A finished part is a folder with its shards, its table and ``part.json``; it gets its name by one rename after
everything is on the disk, so a part is either whole or absent.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from encoders.durable_files import sync
from encoders.epoch_source import EpochMetadata, EpochPart
from encoders.epochs import SignalEpochs
from encoders.store import COLUMNS
from encoders.store_manifest import (
    METADATA,
    BuildPlan,
    InputFile,
    PlannedPart,
    Positions,
    Shard,
    SignalDescription,
    positions_to_json,
    write_durably,
)
from encoders.store_shards import to_stored, write_shard

PART = "part.json"
PART_COLUMNS = pa.schema([field for field in COLUMNS if field.name not in ("row", "part")])
_EPOCHS_AT_ONCE = 256


class FinishedPart(BaseModel):
    """The content of ``part.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    signal: SignalDescription
    positions: Positions
    shards: tuple[Shard, ...]

    @property
    def n_epochs(self) -> int:
        """Number of epochs in all shards."""
        return sum(shard.n_epochs for shard in self.shards)


class _PartWriter:
    """Collects the blocks of a part into shards of bounded size."""

    def __init__(self, folder: Path, plan: BuildPlan, name: str) -> None:
        self.folder, self.plan, self.name = folder, plan, name
        self.signal: SignalDescription | None = None
        self.shards: list[Shard] = []
        self.rows: dict[str, list[Any]] = {column: [] for column in PART_COLUMNS.names}
        self.n_epochs, self.filled = 0, 0
        self.buffer: NDArray[Any] = np.empty(0)
        self.positions: NDArray[np.float64] = np.empty(0)

    def add(self, block: SignalEpochs, metadata: EpochMetadata) -> None:
        """Append a block."""
        if len(metadata) != block.n_epochs:
            raise ValueError(
                f"a block has {block.n_epochs} epochs, its metadata {len(metadata)} rows; change the source"
            )
        if self.signal is None:
            self._start(block)
        check_agreement("this block", describe(block), "the first block of the part", self.signal)
        self.positions += block.positions.astype(np.float64) * block.n_epochs
        for first in range(0, block.n_epochs, _EPOCHS_AT_ONCE):
            data = block.data[first : first + _EPOCHS_AT_ONCE]
            at = self.n_epochs + first
            self._append(to_stored(data, block.ch_names, block.ch_types, self.plan.dtype, at))
        for name in ("image", "concept", "split", "session", "run", "repetition"):
            self.rows[name].extend(getattr(metadata, name))
        self.rows["subject"].extend([block.subject] * block.n_epochs)
        self.rows["n_averaged"].extend(block.n_averaged)
        self.n_epochs += block.n_epochs

    def finish(self) -> FinishedPart:
        """Write what is left, the table and ``part.json``."""
        if self.signal is None:
            raise ValueError("it gives no epochs; leave it out of the source's parts")
        self._flush()
        table = pa.table(self.rows, schema=PART_COLUMNS)
        write_durably(self.folder / METADATA, [table_bytes(table)])
        mean = (self.positions / self.n_epochs).astype(np.float32)
        finished = FinishedPart(
            name=self.name, signal=self.signal, positions=positions_to_json(mean), shards=tuple(self.shards)
        )
        write_durably(self.folder / PART, [finished.model_dump_json(indent=1).encode()])
        sync(self.folder)
        return finished

    def _start(self, block: SignalEpochs) -> None:
        self.signal = describe(block)
        row_bytes = block.n_channels * block.n_times * np.dtype(self.plan.dtype).itemsize
        room = max(1, self.plan.shard_bytes // row_bytes)
        self.buffer = np.empty((room, block.n_channels, block.n_times), self.plan.dtype)
        self.positions = np.zeros((block.n_channels, 3))

    def _append(self, stored: NDArray[Any]) -> None:
        while len(stored):
            n = min(len(stored), len(self.buffer) - self.filled)
            self.buffer[self.filled : self.filled + n] = stored[:n]
            self.rows["shard"].extend([len(self.shards)] * n)
            self.rows["offset"].extend(range(self.filled, self.filled + n))
            self.filled += n
            stored = stored[n:]
            if self.filled == len(self.buffer):
                self._flush()

    def _flush(self) -> None:
        if self.filled:
            path = self.folder / f"{self.name}-{len(self.shards):04d}.npy"
            self.shards.append(write_shard(path, self.buffer[: self.filled]))
            self.filled = 0


def convert_part(part: EpochPart, planned: PlannedPart, root: str, plan: BuildPlan, building: Path) -> None:
    """Read one part and put it, whole, into ``building/<name>``.

    Parameters
    ----------
    part : EpochPart
        What to read.
    planned : PlannedPart
        State of its inputs when the build began.
    root : str
        Folder that the paths in ``planned`` are relative to.
    plan : BuildPlan
        Dtype and size of shards.
    building : Path
        Folder of finished parts.

    Raises
    ------
    ValueError
        If its epochs cannot be stored or its inputs changed meanwhile; the message names the part.
    OSError
        If the disk is full or a file is beyond a limit; nothing of the part is left.
    """
    aside = building / f".{part.name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    with _naming(part.name, building):
        try:
            aside.mkdir()
            writer = _PartWriter(aside, plan, part.name)
            for block, metadata in part.blocks():
                writer.add(block, metadata)
            writer.finish()
            if plan_part(part, root) != planned:
                raise ValueError("its input files changed while they were read; start again when they are complete")
            try:
                os.rename(aside, building / part.name)
            except OSError:
                if not (building / part.name / PART).is_file():  # else another process was faster, with the same result
                    raise
            sync(building)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def read_finished(folder: Path) -> FinishedPart:
    """Read ``part.json`` of a finished part."""
    return FinishedPart.model_validate_json((folder / PART).read_bytes())


def plan_part(part: EpochPart, root: str) -> PlannedPart:
    """Record the state of a part's inputs.

    Raises
    ------
    ValueError
        If an input does not exist, or the name is no file name.
    """
    return PlannedPart(name=part.name, inputs=tuple(_input_state(Path(path), root) for path in sorted(part.inputs)))


def describe(epochs: SignalEpochs) -> SignalDescription:
    """Return what all epochs of a store must share."""
    return SignalDescription(
        sfreq=epochs.sfreq,
        tmin=epochs.tmin,
        n_times=epochs.n_times,
        ch_names=epochs.ch_names,
        ch_types=epochs.ch_types,
    )


def check_agreement(name: str, got: SignalDescription, other: str, expected: SignalDescription | None) -> None:
    """Refuse signals that differ in rate, window or channels; times may differ by rounding (1 ns).

    Raises
    ------
    ValueError
        If they differ; the message names both and the difference.
    """
    assert expected is not None
    for field in ("sfreq", "tmin", "n_times"):
        mine, theirs = getattr(got, field), getattr(expected, field)
        if abs(mine - theirs) > 1e-9:
            raise ValueError(
                f"{name} has {field} {mine}, {other} has {theirs}, expected the same in all parts; resample or crop "
                "in the source, or build two stores"
            )
    if (got.ch_names, got.ch_types) != (expected.ch_names, expected.ch_types):
        raise ValueError(
            f"{name} has {len(got.ch_names)} channels, {other} has {len(expected.ch_names)}, expected the same names, "
            f"kinds and order in all parts: {_channel_difference(got, expected)}; pick and order channels in the "
            "source, or build two stores"
        )


def table_bytes(table: pa.Table) -> bytes:
    """Render a table as Parquet; the same table always gives the same bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _channel_difference(got: SignalDescription, expected: SignalDescription) -> str:
    mine, theirs = set(got.ch_names), set(expected.ch_names)
    if mine != theirs:
        return f"only the one has {sorted(mine - theirs)[:5]}, only the other {sorted(theirs - mine)[:5]}"
    place = next(
        i
        for i, pair in enumerate(zip(got.ch_names, expected.ch_names, strict=True))
        if pair[0] != pair[1] or got.ch_types[i] != expected.ch_types[i]
    )
    return (
        f"channel {place} is {got.ch_names[place]} ({got.ch_types[place]}) and {expected.ch_names[place]} "
        f"({expected.ch_types[place]})"
    )


def _input_state(path: Path, root: str) -> InputFile:
    try:
        files = [path] if not path.is_dir() else sorted(file for file in path.rglob("*") if file.is_file())
        states = [file.stat() for file in files]
    except FileNotFoundError:
        raise ValueError(f"input {path} does not exist; complete the download, or change the source") from None
    return InputFile(
        path=Path(os.path.relpath(path, root)).as_posix(),
        n_bytes=sum(state.st_size for state in states),
        mtime_ns=max((state.st_mtime_ns for state in states), default=0),
    )


@contextmanager
def _naming(part: str, building: Path) -> Iterator[None]:
    """Add the part's name, and for a full disk what to do, to what goes wrong inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"part {part}: {error}") from error
    except OSError as error:
        free = shutil.disk_usage(building).free
        raise OSError(
            error.errno,
            f"part {part} could not be converted into {building}: {error.strerror or error} ({free / 1e9:.1f} GB free)"
            "; free space or mend the input, then run the same build again: finished parts are kept",
            error.filename,
        ) from error
