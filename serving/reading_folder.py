"""The folder in which uploads are read: made, proven to be in memory where it must be, and removed when its owner died.

The marker in a folder is a file that its service and its parse server keep locked for as long as they live. The kernel
frees the lock when both are gone, however they ended, so a folder whose marker can be locked is nobody's. Unlike the
number of a process this holds across containers that share a temporary folder, and for numbers that are used again.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PREFIX = "phosphene-read-"
_MARKER = ".alive"
_MEMORY = {"tmpfs", "ramfs"}


@dataclass(frozen=True)
class ReadingFolder:
    """A folder, and its marker, open and locked: the sign that it is in use."""

    path: Path
    alive: BinaryIO

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.alive.close()

    def clear(self) -> None:
        """Remove what is in the folder."""
        for old in self.path.iterdir():
            if old.name != _MARKER:
                shutil.rmtree(old, ignore_errors=True) if old.is_dir() and not old.is_symlink() else old.unlink()


def new_folder(parent: Path | None = None, *, in_memory: bool = False) -> ReadingFolder:
    """Make a folder for uploads.

    Parameters
    ----------
    parent : Path, optional
        Where; default: the temporary folder.
    in_memory : bool
        Whether `parent` must be in memory.

    Raises
    ------
    OSError
        If it cannot be made, or `parent` is on a disk and must not be.
    """
    parent = parent or Path(tempfile.gettempdir())
    if in_memory:
        require_memory(parent)
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    # locked before it has its name: nobody finds a marker that only looks abandoned
    alive = open(path / ".draft", "xb")
    fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.rename(path / ".draft", path / _MARKER)
    return ReadingFolder(path, alive)


def remove_abandoned(parent: Path) -> int:
    """Remove folders in `parent` that processes of this user left behind when they were killed; return how many.

    What has no marker, belongs to somebody else, can be entered by others, or is in use, is left alone.
    """
    n_removed = 0
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                continue
            marker = os.open(path / _MARKER, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
                n_removed += 1
            finally:
                os.close(marker)
    return n_removed


def require_memory(folder: Path) -> None:
    """Refuse a folder that is not on a file system in memory, or not there; OSError."""
    if not _is_in_memory(folder):
        raise OSError(
            f"{folder} is not in memory, expected a tmpfs: with jobs.encryption no upload may lie on a disk while it "
            "is read; mount one, and name it in jobs.encryption.memory_folder"
        )


def _is_in_memory(path: Path) -> bool:
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if fields.split(" ")[2] == number:
            return kind.split(" ")[0] in _MEMORY
    return False
