"""``store.json``: what a store of epochs holds, file by file, with sizes and sha256.

The text must be exactly what `StoreManifest.to_text` renders, its own digest included, so a change of any byte is
noticed. Positions are kept per part, since a head sits elsewhere in the helmet in every session.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from encoders.durable_files import sync

MANIFEST, METADATA, SHARDS = "store.json", "epochs.parquet", "shards"
REBUILD = "copy the store anew from its origin, or build it again"
_PART_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$"
_CHUNK = 1 << 22

StoredDtype = Literal["float16", "float32"]
Positions = tuple[tuple[float | None, float | None, float | None], ...]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredFile(_Frozen):
    """One file of a store: its name inside its folder, its size and its sha256."""

    file: str = Field(pattern=_FILE_NAME)
    n_bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Shard(StoredFile):
    """A file of epochs (n_epochs, n_channels, n_times)."""

    n_epochs: int = Field(gt=0)


class InputFile(_Frozen):
    """A file (or folder, summed) that was read; the path is relative to the folder that all inputs share."""

    path: str
    n_bytes: int = Field(ge=0)
    mtime_ns: int


class PlannedPart(_Frozen):
    """A part's name and the state of its inputs before it was read."""

    name: str = Field(pattern=_PART_NAME)
    inputs: tuple[InputFile, ...]


class BuildPlan(_Frozen):
    """Everything that decides the bytes of a store beside the code; a resumed build must have the same."""

    dataset: str
    settings: str
    dtype: StoredDtype
    shard_bytes: int = Field(gt=0)
    parts: tuple[PlannedPart, ...] = Field(min_length=1)


class SignalDescription(_Frozen):
    """What all epochs of a store share."""

    sfreq: float = Field(gt=0)
    tmin: float
    n_times: int = Field(gt=0)
    ch_names: tuple[str, ...] = Field(min_length=1)
    ch_types: tuple[str, ...]


class StoreManifest(_Frozen):
    """The content of ``store.json``.

    Attributes
    ----------
    plan : BuildPlan
        Data set, settings, parts and their inputs.
    signal : SignalDescription
        Rate, window and channels.
    scales : tuple of float
        SI value of 1 in the shards, per channel.
    metadata : StoredFile
        The Parquet table with one row per epoch.
    shards : tuple of Shard
        In the order of the rows.
    part_epochs, part_positions : tuple of int
        Per part of the plan: how many epochs it gave, and the index of its sensor positions.
    positions : tuple
        Sets of sensor positions in metres, head frame, (n_channels, 3); None where unknown.
    """

    format: Literal["phosphene-epochs/1"] = "phosphene-epochs/1"
    plan: BuildPlan
    signal: SignalDescription
    scales: tuple[float, ...]
    metadata: StoredFile
    shards: tuple[Shard, ...] = Field(min_length=1)
    part_epochs: tuple[int, ...]
    part_positions: tuple[int, ...]
    positions: tuple[Positions, ...]

    @model_validator(mode="after")
    def _consistent(self) -> "StoreManifest":
        n_channels, n_parts = len(self.signal.ch_names), len(self.plan.parts)
        lengths = (len(self.signal.ch_types), len(self.scales), *(len(one) for one in self.positions))
        if set(lengths) != {n_channels}:
            raise ValueError(f"{n_channels} channel names, but types, scales and positions of lengths {lengths}")
        if len(self.part_epochs) != n_parts or len(self.part_positions) != n_parts:
            raise ValueError(f"{n_parts} parts, but {len(self.part_epochs)} counts, {len(self.part_positions)} indices")
        if not all(0 <= index < len(self.positions) for index in self.part_positions):
            raise ValueError(f"part_positions {self.part_positions} point outside {len(self.positions)} positions")
        if sum(self.part_epochs) != self.n_epochs:
            raise ValueError(f"parts hold {sum(self.part_epochs)} epochs, shards {self.n_epochs}")
        return self

    @property
    def n_epochs(self) -> int:
        """Number of epochs in all shards."""
        return sum(shard.n_epochs for shard in self.shards)

    @property
    def row_shape(self) -> tuple[int, int]:
        """Shape of one epoch, (n_channels, n_times)."""
        return len(self.signal.ch_names), self.signal.n_times

    def to_text(self) -> str:
        """Render ``store.json``."""
        return _rendered(self.model_dump(mode="json"))

    @classmethod
    def from_text(cls, text: str) -> "StoreManifest":
        """Read what `to_text` rendered.

        Raises
        ------
        ValueError
            If one byte differs, or a field is missing, unknown or contradicts another.
        """
        try:
            content = json.loads(text)["store"]
            unchanged = _rendered(content) == text
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{MANIFEST} is damaged ({type(error).__name__}: {error}); {REBUILD}") from error
        if not unchanged:
            raise ValueError(f"{MANIFEST} does not match its own sha256; it was changed or damaged, {REBUILD}")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{MANIFEST} cannot be used: {where} {first['msg']}; {REBUILD}") from error


def positions_to_json(positions: NDArray[np.float32]) -> Positions:
    """Write positions so that `positions_from_json` gives back the same float32 values; NaN becomes None."""
    rows = [[None if np.isnan(value) else float(str(value)) for value in row] for row in positions]
    return tuple((row[0], row[1], row[2]) for row in rows)


def positions_from_json(positions: Positions) -> NDArray[np.float32]:
    """Return the positions, (n_channels, 3), float32; None becomes NaN."""
    return np.asarray(positions, dtype=np.float32).reshape(-1, 3)


def write_durably(path: Path, pieces: Iterable[bytes | memoryview], *, name: str = "") -> StoredFile:
    """Write a file through to the disk and describe it, under ``name`` if it is moved there.

    The sha256 is of what was to be written, so a disk that stores something else is found out.
    """
    digest, n_bytes = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            for start in range(0, len(view), _CHUNK):
                chunk = view[start : start + _CHUNK]
                file.write(chunk)
                digest.update(chunk)
            n_bytes += len(view)
        file.flush()
        os.fsync(file.fileno())
    return StoredFile(file=name or path.name, n_bytes=n_bytes, sha256=digest.hexdigest())


def replace_durably(path: Path, content: bytes, aside_folder: Path) -> StoredFile:
    """Write a file in ``aside_folder`` and move it into place: readers see the old or the new, never a part."""
    aside = aside_folder / f".{path.name}.{os.getpid()}"
    try:
        written = write_durably(aside, [content], name=path.name)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)
    return written


def _rendered(content: object) -> str:
    compact = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    digest = hashlib.sha256(compact.encode()).hexdigest()
    return json.dumps({"sha256": digest, "store": content}, sort_keys=True, indent=1, allow_nan=False) + "\n"
