"""Encryption at rest: one data key per person, itself encrypted with the operator's master key.

What is stored for a person can be made unreadable at once, backups included, by destroying that person's key: a file
of 60 bytes. Everything is AES-256-GCM of the library cryptography. Every blob is bound to a context, such as the job
and the kind of blob, so that one cannot be put in another's place. Files of keys are named by a keyed hash, so their
names tell nobody who they are about. Whoever overwrites a file on a copy-on-write or flash disk does not know that the
old block is gone: what is left there is encrypted with the master key, which must lie elsewhere.

`serving.job_blobs` asks for the cipher each time it writes or reads, so that a key that was destroyed is gone for every
process at once. A person is whoever is deleted as one: the owner of a request (`serving.access.Caller.owner`).
"""

import contextlib
import errno
import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"phe1"
_NONCE_BYTES, _KEY_BYTES, _TAG_BYTES = 12, 32, 16
_WRAPPED_BYTES = _NONCE_BYTES + _KEY_BYTES + _TAG_BYTES
_DOOMED = ".destroyed-"


class KeyDestroyed(LookupError):
    """The key of a person does not exist (any more): what was encrypted with it cannot be read by anybody."""


@dataclass(frozen=True)
class PersonCipher:
    """Encrypts and decrypts blobs of one person; get one from `Vault.cipher`."""

    key: bytes = field(repr=False)

    def encrypt(self, content: bytes, *, context: str) -> bytes:
        """Encrypt a blob; it is 32 bytes longer."""
        # random nonces are safe for 2**32 blobs per key, and a person's key sees thousands
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return MAGIC + nonce + AESGCM(self.key).encrypt(nonce, content, MAGIC + context.encode())

    def decrypt(self, blob: bytes, *, context: str) -> bytes:
        """Decrypt a blob.

        Raises
        ------
        ValueError
            If it was changed, is somebody else's, or stood in another context.
        """
        nonce, sealed = blob[len(MAGIC) :][:_NONCE_BYTES], blob[len(MAGIC) + _NONCE_BYTES :]
        try:
            if not blob.startswith(MAGIC) or len(sealed) < _TAG_BYTES:
                raise InvalidTag
            return AESGCM(self.key).decrypt(nonce, sealed, MAGIC + context.encode())
        except InvalidTag:
            raise ValueError(
                f"a stored blob ({len(blob)} bytes) is not what was encrypted here, expected one of this person and "
                "place; it was changed, moved, or belongs to another key"
            ) from None


class Vault:
    """Keep the keys of people.

    Parameters
    ----------
    master_key_file : path
        32 bytes as 64 hex digits, readable by its owner only; keep it off the disk that holds the data.
    folder : path
        Where the keys of people lie; on a cluster a folder that all nodes see.

    Raises
    ------
    ValueError
        If the master key is none, others may read it, or the folder was made with another one.
    """

    def __init__(self, master_key_file: str | Path, folder: str | Path) -> None:
        self._master = _read_master_key(Path(master_key_file))
        self._folder = Path(folder)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check_master(master_key_file)
        self._shred()

    def cipher(self, person: str, *, create: bool = True) -> PersonCipher:
        """Return the cipher of a person, whose key is made on first use.

        Raises
        ------
        KeyDestroyed
            If there is no key and `create` is false: say so when reading.
        OSError
            If the folder of keys cannot be used.
        ValueError
            If the key is damaged, or was encrypted with another master key.
        """
        path, damaged = self._path(person), b""
        while True:
            wrapped = self._wrapped(path, create=create)
            try:
                key = self._unwrap(path, wrapped)
            except (InvalidTag, ValueError):
                if wrapped != damaged:
                    damaged = wrapped  # it may have been overwritten while it was read, then there is another or none
                    continue
                raise ValueError(
                    f"{path} is damaged or belongs to another master key, expected {_WRAPPED_BYTES} bytes of this one; "
                    "give the master key that the folder was made with"
                ) from None
            return PersonCipher(key)

    def destroy(self, person: str) -> bool:
        """Destroy a person's key, on the disk when this returns; return whether there was one."""
        path = self._path(person)
        try:
            # first out of everybody's sight, so that nobody finds half a key at its place
            os.rename(path, self._folder / f"{_DOOMED}{secrets.token_hex(16)}")
            found = True
        except FileNotFoundError:
            self._check_folder()
            found = False
        self._shred()
        return found

    def _check_master(self, master_key_file: str | Path) -> None:
        """Refuse a master key that opens none of the keys: all people would seem to have been forgotten."""
        stored = list(self._folder.glob("*.key"))
        if stored and not any(map(self._opens, stored)):
            raise ValueError(
                f"the master key {master_key_file} opens none of the {len(stored)} keys in {self._folder}; give the "
                "one that they were made with, or another folder"
            )

    def _opens(self, path: Path) -> bool:
        try:
            self._unwrap(path, path.read_bytes())
        except (InvalidTag, ValueError):
            return False
        except FileNotFoundError:  # destroyed just now, by a process that knows its name
            return True
        return True

    def _unwrap(self, path: Path, wrapped: bytes) -> bytes:
        return AESGCM(self._master).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], path.name.encode())

    def _shred(self) -> None:
        """Overwrite and remove the keys that were put aside, by this process, another, or one that crashed on it."""
        doomed = list(self._folder.glob(f"{_DOOMED}*"))
        for path in doomed:
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                descriptor = os.open(path, os.O_WRONLY)
                try:
                    os.pwrite(descriptor, secrets.token_bytes(_WRAPPED_BYTES), 0)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                path.unlink()
        if doomed:
            self._sync_folder()

    def _wrapped(self, path: Path, *, create: bool) -> bytes:
        """Read a key as it is stored, and make it if need be; one that is destroyed right then is made again."""
        while True:
            try:
                return path.read_bytes()
            except FileNotFoundError:
                self._check_folder()
                if not create:
                    raise KeyDestroyed("the key of this person was destroyed, or never made") from None
            self._make(path)

    def _path(self, person: str) -> Path:
        name = hmac.new(self._master, b"name\0" + person.encode(), hashlib.sha256).hexdigest()
        return self._folder / f"{name}.key"

    def _make(self, path: Path) -> None:
        """Make a key; of several processes that do so at once one wins, and all use its key."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        wrapped = nonce + AESGCM(self._master).encrypt(nonce, secrets.token_bytes(_KEY_BYTES), path.name.encode())
        descriptor, draft = tempfile.mkstemp(prefix=".draft-", dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(wrapped)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            os.unlink(draft)
        self._sync_folder()

    def _check_folder(self) -> None:
        if not self._folder.is_dir():  # what is away is not destroyed
            raise OSError(errno.EIO, "the folder of keys is gone") from None

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def new_master_key(path: str | Path) -> None:
    """Write a new master key for its owner's eyes only; a file that exists is left alone and raises."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(_KEY_BYTES) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read_master_key(path: Path) -> bytes:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ValueError(f"the master key {path} can be read by others, expected mode 600; run chmod 600 and renew it")
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise ValueError(f"{path} is no master key, expected {2 * _KEY_BYTES} hex digits; make one with new_master_key")
    return key
