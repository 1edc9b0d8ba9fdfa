"""What a bundle says about itself: the fields of ``manifest.json`` and the hashes that hold them together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from encoders.durable_files import file_sha256

SCHEMA_VERSION = 1


class CutWindow(BaseModel):
    """How a reader cuts a continuous recording for this bundle: seconds around the onset, and its band in hertz."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tmin: float
    tmax: float
    l_freq: float | None
    h_freq: float | None


class FileEntry(BaseModel):
    """Size in bytes and checksum of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Measure a file."""
        return cls(size=path.stat().st_size, sha256=file_sha256(path))


class Manifest(BaseModel):
    """What a bundle says about itself.

    ``id`` is the hash of everything but ``id``, ``seal`` and ``created``, so equal content has an equal id;
    ``seal`` is the hash of everything but itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    id: str = ""
    seal: str = ""
    created: str
    data_statement: str = Field(min_length=1)
    modalities: tuple[str, ...] = Field(min_length=1)
    subjects: tuple[str, ...]
    embed_dim: int = Field(ge=1)
    image_size: int = Field(ge=1)
    preprocessing_hash: str
    window: CutWindow
    decoder: dict[str, JsonValue]
    configs: dict[str, JsonValue]
    scores: dict[str, JsonValue]
    files: dict[str, FileEntry]

    def sealed(self) -> Manifest:
        """Fill in ``id`` and ``seal``."""
        content_id = _hash(self.model_dump(mode="json", exclude={"id", "seal", "created"}))
        named = self.model_copy(update={"id": content_id})
        return named.model_copy(update={"seal": _hash(named.model_dump(mode="json", exclude={"seal"}))})

    def text(self) -> str:
        """Render the one valid form of ``manifest.json``."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n"


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
