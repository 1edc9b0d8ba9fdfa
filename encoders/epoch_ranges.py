"""Epochs of a whole data set, a range at a time: an `EpochStore`, a ``-epo.fif`` file, or a folder of such files.

Only the epochs of a range are ever in memory: shards are memory-mapped and files are opened without their signal.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import mne

from encoders.epochs import EpochsMismatch, SignalEpochs, own_description
from encoders.store import EpochStore
from encoders.store_manifest import MANIFEST

_EPOCHS_FILE = re.compile(r"[-_]epo\.fif(\.gz)?$")
# Later parts of a file that was split at 2 GB in the BIDS way; MNE reads them through the first.
_LATER_SPLIT = re.compile(r"_split-(?!0*1_)\d+_epo\.fif(\.gz)?$")
_EXPECTED = "expected a store of `phosphene convert`, a file named -epo.fif, or a folder of such files"


@dataclass(frozen=True)
class EpochRange:
    """Epochs ``start`` to ``stop`` of one person in a store or file; ``name`` says which, wherever the data lies."""

    path: str
    name: str
    start: int
    stop: int

    def one(self, index: int) -> "EpochRange":
        """Return a range of the single epoch ``index``."""
        return replace(self, start=index, stop=index + 1)


@dataclass(frozen=True)
class SourceSummary:
    """What a data set is, without its signal: how many epochs, and a sha256 that tells another data set apart."""

    kind: str
    n_epochs: int
    sha256: str


def summarise(source: Path) -> SourceSummary:
    """Say what a source holds.

    Raises
    ------
    ValueError
        If it is neither a store nor a file or folder of epochs, or a file cannot be opened.
    """
    digest, n_epochs = hashlib.sha256(), 0
    if _is_store(source):
        digest.update((source / MANIFEST).read_bytes())
        return SourceSummary("store", len(EpochStore.open(source)), digest.hexdigest())
    for path, name in _files(source):
        n_epochs += len(_opened(path, name))
        digest.update(f"{name}:{path.stat().st_size}\n".encode())
    return SourceSummary("files", n_epochs, digest.hexdigest())


def ranges(source: Path, n_epochs: int) -> Iterator[EpochRange]:
    """Yield ranges of at most ``n_epochs`` epochs of one person, always the same ones in the same order."""
    for path, name, start, stop in _stretches(source):
        for first in range(start, stop, n_epochs):
            yield EpochRange(str(path), name, first, min(first + n_epochs, stop))


def read_range(wanted: EpochRange) -> SignalEpochs:
    """Read the epochs of a range in SI units.

    Raises
    ------
    EpochsMismatch
        If one of them cannot be used; read the others apart with `EpochRange.one`.
    """
    path = Path(wanted.path)
    if path.is_dir():
        return EpochStore.open(path).epochs(slice(wanted.start, wanted.stop))
    whole = _opened(path, wanted.name)
    epochs = SignalEpochs.from_mne(whole[wanted.start : wanted.stop])
    notes = own_description(whole.info["description"], len(whole))
    kept: dict[str, Any] = {name: tuple(values[wanted.start : wanted.stop]) for name, values in notes.items()}
    return replace(epochs, **kept)


def _stretches(source: Path) -> Iterator[tuple[Path, str, int, int]]:
    """Yield path, name, first and last + 1 of runs of epochs that one person gave in one file or part."""
    if not _is_store(source):
        for path, name in _files(source):
            yield path, name, 0, len(_opened(path, name))
        return
    store = EpochStore.open(source)
    columns = (store.metadata["subject"].to_pylist(), store.metadata["part"].to_pylist())
    start = 0
    for _, rows in groupby(zip(*columns, strict=True)):
        stop = start + sum(1 for _ in rows)
        yield source, store.info.dataset, start, stop
        start = stop


def _is_store(source: Path) -> bool:
    return (source / MANIFEST).is_file()


def _files(source: Path) -> list[tuple[Path, str]]:
    if source.is_file() and _EPOCHS_FILE.search(source.name):
        return [(source, source.name)]
    if not source.is_dir():
        found = "a file of another name" if source.is_file() else "nothing"
        raise ValueError(f"found {found} at {source}, {_EXPECTED}; look at the path")
    paths = [path for path in sorted(source.rglob("*")) if path.is_file() and _EPOCHS_FILE.search(path.name)]
    paths = [path for path in paths if not _LATER_SPLIT.search(path.name)]
    if not paths:
        raise ValueError(f"no {MANIFEST} and no -epo.fif file in {source}, {_EXPECTED}; look at the path")
    return [(path, path.relative_to(source).as_posix()) for path in paths]


def _opened(path: Path, name: str) -> "mne.Epochs":
    """Open a file without its signal."""
    try:
        return mne.read_epochs(path, proj=False, preload=False, verbose="error")
    except Exception as error:
        raise EpochsMismatch(
            f"{name} cannot be opened as a file of epochs ({type(error).__name__}); write it again, or take it out"
        ) from error
