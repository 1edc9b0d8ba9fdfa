"""Where the files of a store are: a folder of this machine, or a URL whose files are fetched into a local cache.

The cache is addressed by content: a file is called by its sha256, so stores share it, and a file that is there is
whole, since it is checked before it gets its name.
"""

import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec

from encoders.store_manifest import REBUILD, StoredFile

_CHUNK = 1 << 22


@dataclass(frozen=True)
class StoreLocation:
    """A store's root and, for URLs, the folder that its files are fetched into; picklable, opens nothing.

    Attributes
    ----------
    root : str
        Folder, or URL that fsspec knows (``s3://bucket/store``, ``memory://``, ``file://``).
    cache : Path or None
        None for a folder.
    """

    root: str
    cache: Path | None

    @classmethod
    def of(cls, path_or_url: Path | str, cache_dir: Path | str | None) -> "StoreLocation":
        """Tell folders and URLs apart.

        The default cache is ``phosphene/stores`` in ``XDG_CACHE_HOME``, else in ``~/.cache``.

        Raises
        ------
        ValueError
            If a cache is given for a folder, which needs none.
        """
        root = str(path_or_url)
        if "://" not in root:
            if cache_dir is not None:
                raise ValueError(f"cache_dir has no effect for the folder {root!r}; leave it out, or give a URL")
            return cls(root, None)
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(root.rstrip("/"), Path(cache_dir) if cache_dir is not None else home / "phosphene" / "stores")

    def text(self, name: str) -> str:
        """Read a small file that has no digest yet.

        Raises
        ------
        FileNotFoundError
            If the store has no such file.
        OSError
            If the store cannot be reached.
        ValueError
            If it is no text.
        """
        try:
            if self.cache is None:
                return (Path(self.root) / name).read_bytes().decode()
            with _reporting():
                files, root = fsspec.core.url_to_fs(self.root)
                content: bytes = files.cat_file(f"{root}/{name}")
            return content.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} of {self.root} is damaged ({error.reason}); {REBUILD}") from error

    def file(self, folder: str, entry: StoredFile) -> Path:
        """Return where a file is on this machine, fetching it if need be.

        Raises
        ------
        ValueError
            If a fetched file does not match its size and sha256.
        OSError
            If it cannot be fetched, or the cache's disk is full.
        """
        inside = f"{folder}/{entry.file}" if folder else entry.file
        if self.cache is None:
            return Path(self.root) / inside
        target = self.cache / entry.sha256[:2] / entry.sha256
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.cache / "locks" / entry.sha256):
                if not target.exists():  # another process may have fetched it while this one waited
                    _fetch(self.root, inside, target, entry)
        return target


@dataclass(frozen=True)
class ShardLocator:
    """Gives the path of a shard; a class so that it can be pickled."""

    location: StoreLocation
    folder: str

    def __call__(self, entry: StoredFile) -> Path:
        """Return the path on this machine."""
        return self.location.file(self.folder, entry)


def _fetch(root: str, inside: str, target: Path, entry: StoredFile) -> None:
    aside = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}")
    digest, n_bytes = hashlib.sha256(), 0
    try:
        with _reporting(), ExitStack() as opened:
            files, base = fsspec.core.url_to_fs(root)
            source = opened.enter_context(files.open(f"{base}/{inside}", "rb"))
            copy = opened.enter_context(aside.open("wb"))
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                n_bytes += len(chunk)
                copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())
        if (n_bytes, digest.hexdigest()) != (entry.n_bytes, entry.sha256):
            raise ValueError(
                f"{inside} of {root} has {n_bytes} bytes and sha256 {digest.hexdigest()[:12]}, store.json says "
                f"{entry.n_bytes} and {entry.sha256[:12]}; {REBUILD}"
            )
        os.replace(aside, target)
    except FileNotFoundError as error:
        raise ValueError(f"{inside} is missing from {root}; {REBUILD}") from error
    except OSError as error:
        raise OSError(
            error.errno, f"{inside} of {root} ({entry.n_bytes} bytes) could not be fetched into {target.parent}: "
            f"{error.strerror or error}; free space, mend the connection or give another cache_dir",
        ) from error  # fmt: skip
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _reporting() -> Iterator[None]:
    """Turn what the libraries of object stores raise beside OSError into it."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, str(error)) from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock between processes and threads, so that a file is fetched once; a dead holder's lock is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
