"""Where calibrations to persons lie, and what their names say; reading names needs neither torch nor a model.

They are what `phosphene calibrate` writes, in ``<folder>/<bundle id>/<group>/``: who belongs to a group of users may
use and see those of that group alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

KINDS = ("label-free", "few-shot")
"""Of several calibrations of one person for the same modalities the last of these is used."""


@dataclass(frozen=True)
class PersonFile:
    """Where a calibration lies, and what its name says."""

    path: str
    group: str
    subject: str
    modalities: str
    kind: str


def list_people(folder: Path, bundle_id: str) -> tuple[PersonFile, ...]:
    """List the calibrations for a bundle, by their names alone; files that have no such name are passed over."""
    found = []
    for path in sorted((folder / bundle_id).glob("*/*.json")):
        parts = path.name.removesuffix(".json").rsplit(".", 2)
        if len(parts) == 3 and parts[2] in KINDS and path.is_file():
            found.append(PersonFile(str(path), path.parent.name, *parts))
    return tuple(found)
