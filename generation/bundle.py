"""A whole trained chain as one folder that cannot change unnoticed: manifest, models, gallery and null scores.

Checksums detect damage and mix-ups; they do not prove who made a bundle. Reading a bundle needs neither torch nor a
model, so a process that only describes one stays small.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ValidationError

from alignment.calibrate import ConfidenceNull
from alignment.stored_calibrations import Calibrations
from encoders.durable_files import sync
from encoders.epochs import SignalEpochs
from generation.gallery import GALLERY_FILES, Gallery
from generation.manifest import SCHEMA_VERSION, CutWindow, FileEntry, Manifest

__all__ = ["Bundle", "BundleError", "BundleFacts", "BundleParts", "CutWindow", "Manifest", "write_bundle"]

MANIFEST_FILE = "manifest.json"
NULL_FILE = "null.safetensors"
CALIBRATION_FILE = "calibration.json"
EXAMPLE_FILE = "example.npz"
BRAIN_FOLDER, DECODER_FOLDER, CLIP_FOLDER = "brain", "unclip", "clip"
SAFETY_FOLDER = "safety"


class BundleError(ValueError):
    """A bundle is incomplete, damaged or of another version; the message names the file."""


@dataclass(frozen=True)
class BundleParts:
    """What goes into a bundle.

    Parameters
    ----------
    brain : Path
        Folder that ``BrainModel.save`` or ``CategoryModel.save`` wrote.
    decoder : Path, optional
        Diffusers folder, see ``generation.image_decoder``; none if pictures are only retrieved.
    gallery : Gallery
        Pictures that an embedding is compared with.
    null : ConfidenceNull
        Best gallery similarities of surrogate recordings.
    clip : Path, optional
        Folder of the CLIP model whose space is used; not needed to reconstruct.
    example : SignalEpochs, optional
        A recording to try the bundle with.
    calibrations : Calibrations, optional
        Of the chance that an answer is right.
    unused : tuple of str
        Names inside ``decoder`` that are not copied.
    safety : Path, optional
        Folder of a Stable Diffusion safety checker, see ``generation.picture_safety``.
    """

    brain: Path
    decoder: Path | None
    gallery: Gallery
    null: ConfidenceNull
    clip: Path | None = None
    example: SignalEpochs | None = None
    calibrations: Calibrations | None = None
    unused: tuple[str, ...] = ()
    safety: Path | None = None


@dataclass(frozen=True)
class BundleFacts:
    """What the models of a bundle take and give; the manifest repeats it, so that no model need be loaded to know."""

    modalities: tuple[str, ...]
    subjects: tuple[str, ...]
    embed_dim: int
    image_size: int
    preprocessing_hash: str
    window: CutWindow


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, folder: str | Path) -> Bundle:
        """Open a bundle after comparing every byte with its manifest.

        Raises
        ------
        BundleError
            If a file is missing, extra, linked, changed or outside the folder, or the schema version is another.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        for name in manifest.files:
            _check_name(name)
        _check_listing(folder, set(manifest.files), has_decoder=manifest.decoder.get("name") != "retrieval")
        for name, entry in manifest.files.items():
            _check_file(folder / name, name, entry)
        return cls(folder, manifest)

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def brain_folder(self) -> Path:
        return self.folder / BRAIN_FOLDER

    @property
    def decoder_folder(self) -> Path:
        return self.folder / DECODER_FOLDER

    @property
    def safety_folder(self) -> Path | None:
        """Folder of the checker of generated pictures, if there is one."""
        return self.folder / SAFETY_FOLDER if f"{SAFETY_FOLDER}/config.json" in self.manifest.files else None

    @property
    def clip_folder(self) -> Path:
        return self.folder / CLIP_FOLDER

    def gallery(self) -> Gallery:
        """Read the gallery."""
        return Gallery.load(self.folder)

    @property
    def example(self) -> Path | None:
        """Path of the example recording (``.npz``), if there is one."""
        return self.folder / EXAMPLE_FILE if EXAMPLE_FILE in self.manifest.files else None

    def null(self) -> ConfidenceNull:
        """Read the null scores per combination of modalities."""
        return ConfidenceNull.load(self.folder / NULL_FILE)

    def calibrations(self) -> Calibrations | None:
        """Read the calibrations of the chance that an answer is right, if there are any."""
        if CALIBRATION_FILE not in self.manifest.files:
            return None
        return Calibrations.model_validate_json((self.folder / CALIBRATION_FILE).read_text())


def write_bundle(
    folder: str | Path,
    parts: BundleParts,
    *,
    data_statement: str,
    facts: BundleFacts,
    decoder: BaseModel,
    configs: Mapping[str, Any],
    scores: Mapping[str, Any],
    created: str | None = None,
    replace: bool = False,
) -> Bundle:
    """Write a bundle beside its place and move it there when it is complete and verified.

    ``generation.assemble.assemble_bundle`` finds ``facts`` by loading the models, and is what scripts should call.

    Parameters
    ----------
    folder : path
        Where the bundle appears.
    parts : BundleParts
        Models and arrays.
    data_statement : str
        What the chain was trained on, for instance that it was simulated.
    facts : BundleFacts
        What the models in it take and give.
    decoder : ImageDecoderConfig
        Backend and its default settings.
    configs, scores : mapping
        JSON values: how the chain was trained and how well it does.
    created : str, optional
        ISO time; now when left out. It is not part of the id.
    replace : bool
        Whether a bundle that is already there gives way.

    Raises
    ------
    BundleError
        If ``folder`` is taken and ``replace`` is false.
    """
    folder = Path(folder)
    if folder.exists() and not replace and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists, expected a free place; choose another folder or pass replace=True")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        draft = Path(scratch) / "new"
        draft.mkdir()
        _copy_parts(parts, draft)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            created=created or datetime.now(UTC).isoformat(timespec="seconds"),
            data_statement=data_statement,
            **vars(facts),
            decoder=decoder.model_dump(mode="json"),
            configs=dict(configs),
            scores=dict(scores),
            files={name: FileEntry.of(draft / name) for name in sorted(_listing(draft))},
        ).sealed()
        (draft / MANIFEST_FILE).write_text(manifest.text(), encoding="ascii")
        Bundle.load(draft)
        _sync(draft)
        if folder.exists():
            os.rename(folder, Path(scratch) / "old")
        os.rename(draft, folder)
    return Bundle(folder, manifest)


def _copy_parts(parts: BundleParts, draft: Path) -> None:
    folders = {
        BRAIN_FOLDER: parts.brain,
        DECODER_FOLDER: parts.decoder,
        CLIP_FOLDER: parts.clip,
        SAFETY_FOLDER: parts.safety,
    }
    for name, source in folders.items():
        if source is not None:
            left_out = shutil.ignore_patterns(*parts.unused) if name == DECODER_FOLDER else None
            shutil.copytree(source, draft / name, ignore=left_out)
    parts.gallery.save(draft)
    parts.null.save(draft / NULL_FILE)
    if parts.example is not None:
        parts.example.save(draft / EXAMPLE_FILE)
    if parts.calibrations is not None:
        (draft / CALIBRATION_FILE).write_text(parts.calibrations.model_dump_json(indent=1))


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_FILE
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"no {MANIFEST_FILE} in {folder}, expected a bundle folder; check the path")
    content = path.read_bytes()
    try:
        raw = json.loads(content)
        version = raw["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{MANIFEST_FILE} is not readable ({error}), expected JSON; {_RENEW}") from error
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{MANIFEST_FILE} has schema_version {version!r}, expected {SCHEMA_VERSION}; "
            "use the phosphene release that wrote the bundle, or write it again"
        )
    try:
        manifest = Manifest.model_validate(raw)
        intact = manifest == manifest.sealed() and manifest.text().encode() == content
    except (ValidationError, ValueError) as error:
        raise BundleError(f"{MANIFEST_FILE} does not follow schema {SCHEMA_VERSION}: {error}; {_RENEW}") from error
    if not intact:
        raise BundleError(f"{MANIFEST_FILE} does not match its seal, expected the file as written; {_RENEW}")
    return manifest


_RENEW = "copy or build the bundle again"
_REQUIRED = (*GALLERY_FILES, NULL_FILE)


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    inside = not path.is_absolute() and ".." not in path.parts and str(path) == name and path.parts
    if not inside or "\\" in name or ":" in name or "\0" in name or name == MANIFEST_FILE:
        raise BundleError(
            f"{MANIFEST_FILE} lists {name!r}, expected plain paths inside the bundle; do not use this bundle"
        )


def _listing(folder: Path) -> set[str]:
    """List all files below ``folder`` with their paths relative to it; links are refused."""
    names = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BundleError(f"{name} is a link or device, expected plain files only; replace it by its content")
        if path.is_file():
            names.add(name)
    return names


def _check_listing(folder: Path, expected: set[str], *, has_decoder: bool) -> None:
    found = _listing(folder) - {MANIFEST_FILE}
    missing = sorted((expected - found) | {name for name in _REQUIRED if name not in expected})
    if missing:
        raise BundleError(f"{missing[0]} is missing ({len(missing)} files in all); {_RENEW}")
    extra = sorted(found - expected)
    if extra:
        raise BundleError(f"{extra[0]} is not in {MANIFEST_FILE} ({len(extra)} files in all); remove it, or {_RENEW}")
    for part in (BRAIN_FOLDER, DECODER_FOLDER) if has_decoder else (BRAIN_FOLDER,):
        if not any(name.startswith(f"{part}/") for name in found):
            raise BundleError(f"{part}/ is missing, expected the folder of this part; {_RENEW}")


def _check_file(path: Path, name: str, entry: FileEntry) -> None:
    found = FileEntry.of(path)
    if found.size != entry.size:
        raise BundleError(f"{name} has {found.size} bytes, expected {entry.size}; {_RENEW}")
    if found.sha256 != entry.sha256:
        raise BundleError(f"{name} has sha256 {found.sha256[:12]}, expected {entry.sha256[:12]}; {_RENEW}")


def _sync(folder: Path) -> None:
    """Flush all files and folders below ``folder`` to the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)
