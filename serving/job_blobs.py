"""What belongs to a job and does not fit into a row: its upload, its result, a preview; files through fsspec.

Writing returns when the bytes are on disk (local folders: file and folder are synced before and after the rename) or
the object store has confirmed them. Names are the service's own; nothing a client said is part of one. With a vault
what is written is encrypted with its owner's key first, bound to its kind and name.
"""

import errno
import json
import logging
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import fsspec
from fsspec.implementations.local import LocalFileSystem

from serving.job_table import Job
from serving.schema import GenerationFields
from serving.settings import JobSettings
from serving.vault import MAGIC, KeyDestroyed, Vault

logger = logging.getLogger(__name__)

Kind = Literal["uploads", "results", "previews"]
KINDS: tuple[Kind, ...] = ("uploads", "results", "previews")
# So many of a kind tell how all were stored: nothing is mixed, since a service does not start on the other kind.
_LOOKED_AT = 20
_LENGTH = struct.Struct("!I")


class JobBlobs:
    """Bytes by kind and name.

    Parameters
    ----------
    root : str
        A local folder, or a URL of fsspec such as ``s3://bucket/jobs``.
    vault : Vault, optional
        Keys of the owners; without it everything is stored as it is.
    """

    def __init__(self, root: str, vault: Vault | None = None) -> None:
        self._vault = vault
        self._files, self._root = fsspec.core.url_to_fs(root)
        self._local = isinstance(self._files, LocalFileSystem)
        self._prepared = False

    def prepare(self) -> None:
        """Make the folders once; a folder that is taken away later counts as a failure, it is not made again."""
        if self._prepared:
            return
        with _reporting():
            if self._local:
                Path(self._root).mkdir(mode=0o700, parents=True, exist_ok=True)
            for kind in KINDS:
                self._files.makedirs(f"{self._root}/{kind}", exist_ok=True)
        self._prepared = True

    def write(self, kind: Kind, name: str, content: bytes, *, owner: str = "") -> None:
        """Store bytes of an owner under a name, whole or not at all; OSError if that fails.

        An upload makes the key of an owner who has none. Whatever else comes later: it raises `KeyDestroyed` if the
        key was destroyed meanwhile, so that nothing of an owner who left is kept.
        """
        self.prepare()
        if self._vault is not None:
            cipher = self._vault.cipher(owner, create=kind == "uploads")
            content = cipher.encrypt(content, context=f"{name}/{kind}")
        with _reporting():
            if self._local:
                self._write_local(Path(self._root) / kind, name, content)
            else:
                self._files.pipe_file(f"{self._root}/{kind}/{name}", content)

    def read(self, kind: Kind, name: str, *, owner: str = "") -> bytes:
        """Return the bytes of a name.

        Raises
        ------
        FileNotFoundError
            If there are none.
        KeyDestroyed
            If nobody can read them any more: there is no key, or they are not what was encrypted with this one for
            this name and kind. Whoever was forgotten and came back has another key, so that the two look the same.
        ValueError
            If they are encrypted and there is no vault, or the vault's master key is not the one of this owner's key.
        OSError
            If the store cannot be used.
        """
        content = self._stored(kind, name)
        if self._vault is not None:
            cipher = self._vault.cipher(owner, create=False)
            try:
                return cipher.decrypt(content, context=f"{name}/{kind}")
            except ValueError as error:
                logger.warning("one of the %s of jobs cannot be read, its key may be destroyed: %s", kind, error)
                raise KeyDestroyed(str(error)) from None
        if content.startswith(MAGIC):
            raise ValueError(
                f"one of the {kind} of jobs is encrypted, and jobs.encryption is off; set it as it was when they came"
            )
        return content

    def check_encryption(self) -> None:
        """Refuse what was stored with encryption on where it is off now, or the other way: its jobs would be lost.

        A store that cannot be reached is left to whoever uses it.

        Raises
        ------
        ValueError
            If there is an upload or a result of the other kind.
        """
        on = self._vault is not None
        self._files.invalidate_cache()
        for kind in ("uploads", "results"):
            folder = f"{self._root}/{kind}"
            try:
                with _reporting():
                    paths = self._files.ls(folder, detail=False) if self._files.isdir(folder) else []
                    heads = [self._files.cat_file(path, start=0, end=len(MAGIC)) for path in paths[:_LOOKED_AT]]
            except OSError:
                return
            if any(head.startswith(MAGIC) != on for head in heads if head):
                was, now = ("off", "on") if on else ("on", "off")
                raise ValueError(
                    f"the jobs folder holds {kind} from when jobs.encryption was {was}, and it is {now}: they would be "
                    "lost; set it as it was until they are done and expired, or take another jobs.folder"
                )

    def destroy_key(self, owner: str) -> bool:
        """Make everything of an owner unreadable; return whether there was a key."""
        return self._vault is not None and self._vault.destroy(owner)

    def _stored(self, kind: Kind, name: str) -> bytes:
        with _reporting():
            try:
                content: bytes = self._files.cat_file(f"{self._root}/{kind}/{name}")
            except FileNotFoundError:
                if self._local and not Path(self._root, kind).is_dir():
                    raise OSError(errno.EIO, "the folder of the blobs of jobs is gone") from None
                raise
            return content

    def remove(self, kind: Kind, name: str) -> None:
        """Remove a name; nothing happens if it is not there."""
        with _reporting():
            try:
                self._files.rm_file(f"{self._root}/{kind}/{name}")
            except FileNotFoundError:
                return

    def names(self, kind: Kind) -> list[str]:
        """List the names of a kind, half-written files included."""
        self.prepare()
        with _reporting():
            self._files.invalidate_cache()
            try:
                paths = self._files.ls(f"{self._root}/{kind}", detail=False)
            except FileNotFoundError:
                if self._local:
                    raise
                return []  # object stores know no empty folders
            return [str(path).rsplit("/", 1)[-1] for path in paths]

    def age_s(self, kind: Kind, name: str) -> float:
        """Return the seconds since a name was written; 0 if it is gone."""
        with _reporting():
            try:
                modified: datetime = self._files.modified(f"{self._root}/{kind}/{name}")
            except FileNotFoundError:
                return 0.0
            return (datetime.now(UTC) - modified.astimezone(UTC)).total_seconds()

    @staticmethod
    def _write_local(folder: Path, name: str, content: bytes) -> None:
        scratch = folder / f"{name}.part"
        try:
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, folder / name)
        except OSError:
            scratch.unlink(missing_ok=True)
            raise
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(place)
        finally:
            os.close(place)


def open_blobs(settings: JobSettings) -> JobBlobs:
    """Open the blobs of a service; ValueError if its master key cannot be used."""
    keys = settings.encryption
    return JobBlobs(settings.folder, Vault(keys.master_key_file, keys.key_folder) if keys.on else None)


def erase_blobs(blobs: JobBlobs, job: Job) -> None:
    """Remove everything of a job but its row."""
    blobs.remove("uploads", job.id)
    blobs.remove("previews", job.id)
    if job.result:
        blobs.remove("results", job.result)


@contextmanager
def _reporting() -> Iterator[None]:
    """Turn what the libraries of object stores raise into OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"the blobs of jobs cannot be used: {type(error).__name__}") from error


def pack_upload(fields: GenerationFields, contents: Sequence[bytes]) -> bytes:
    """Put form fields and files into one blob."""
    head = json.dumps({"fields": fields.model_dump(), "sizes": [len(content) for content in contents]}).encode()
    return b"".join([_LENGTH.pack(len(head)), head, *contents])


def unpack_upload(blob: bytes) -> tuple[GenerationFields, list[bytes]]:
    """Undo `pack_upload`."""
    (n_head,) = _LENGTH.unpack_from(blob)
    head = json.loads(blob[_LENGTH.size : _LENGTH.size + n_head])
    contents, start = [], _LENGTH.size + n_head
    for size in head["sizes"]:
        contents.append(blob[start : start + size])
        start += size
    return GenerationFields.model_validate(head["fields"]), contents
