"""Preprocessed training and validation epochs on disk, made once from stores and read at random by every run.

``<folder>/<digest>/``: ``prepared.json``, one safetensors file of statistics per modality, and shards of float16
epochs per modality, split and person. Test epochs are not in there, so neither trainer nor selector can read them.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors.numpy import load_file, save
from tqdm import tqdm

from alignment.joined_pairs import JoinedPairs, ModalityEpochs
from alignment.recorded_data import RecordedSplits
from alignment.runtime import STORED_SIGNAL
from encoders.durable_files import file_sha256, write_atomic
from encoders.epochs import SignalEpochs
from encoders.preprocess import Preprocessor
from encoders.store import EpochStore
from encoders.store_array import StoreArray
from encoders.store_manifest import Shard, StoredFile
from encoders.store_shards import ShardFiles, write_shard

INDEX = "prepared.json"
SPLITS = ("train", "val")
BLOCK_BYTES = 256 << 20
Ints = NDArray[np.int64]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PreparedSplit(_Frozen):
    """Shards of one modality and split, and which person each shard is of."""

    shards: tuple[Shard, ...]
    people: tuple[int, ...]
    images: tuple[tuple[int, ...], ...]
    n_averaged: int


class PreparedModality(_Frozen):
    """One modality: preprocessing, its statistics' file, people and splits."""

    preprocess: dict[str, Any]
    statistics: str
    statistics_sha256: str
    people: tuple[str, ...]
    splits: dict[str, PreparedSplit]


class PreparedIndex(_Frozen):
    """The content of ``prepared.json``."""

    format: str = "phosphene-prepared/1"
    digest: str
    images: dict[str, tuple[str, ...]]
    modalities: dict[str, PreparedModality]


@dataclass(frozen=True)
class PreparedEpochs:
    """Opened prepared data.

    Attributes
    ----------
    preprocessors : mapping of str to Preprocessor
    people : mapping of str to tuple of str
        In the order of their indices.
    images : mapping of str to tuple of str
        Pictures of ``train`` and ``val``; the targets of the pairs count these.
    train, val : JoinedPairs
    """

    preprocessors: Mapping[str, Preprocessor]
    people: Mapping[str, tuple[str, ...]]
    images: Mapping[str, tuple[str, ...]]
    train: JoinedPairs
    val: JoinedPairs


@dataclass(frozen=True)
class _Task:
    """Shards of one person in one split: everything another process needs."""

    store: str
    cache_dir: str | None
    rows: Ints
    average: bool
    state: tuple[dict[str, Any], dict[str, NDArray[np.float32]]]
    folder: Path
    stem: str


def prepare_epochs(
    root: Path,
    digest: str,
    stores: Mapping[str, EpochStore],
    splits: RecordedSplits,
    preprocessors: Mapping[str, Preprocessor],
    *,
    average_train: bool,
    n_fit_epochs: int,
    n_workers: int = 1,
    progress: bool = False,
) -> Path:
    """Preprocess training and validation epochs; a stopped run goes on with the people that are missing.

    Parameters
    ----------
    root, digest
        The data goes to ``root / digest[:16]``.
    stores, splits
        See `alignment.recorded_data.split_rows`.
    preprocessors : mapping of str to Preprocessor
        Those not fitted yet are fitted on training epochs of all people.
    average_train : bool
        Average each person's repetitions of a training picture. Those of validation pictures always are.
    n_fit_epochs : int
        Training epochs for the fit.
    n_workers : int
        Processes.
    progress : bool

    Returns
    -------
    Path
        The finished folder.
    """
    folder = root / digest[:16]
    if (folder / INDEX).exists():
        return folder
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    row_of = {split: {image: i for i, image in enumerate(splits.images[split])} for split in SPLITS}
    tasks: list[tuple[str, str, int, _Task]] = []
    statistics = {}
    for name, chosen in splits.modalities.items():
        preprocessor = _fitted(preprocessors[name], stores[name], chosen.rows["train"], n_fit_epochs, average_train)
        state = preprocessor.state()
        arrays = save({key: np.ascontiguousarray(value) for key, value in state[1].items()})
        write_atomic(folder / f"{name}.safetensors", arrays)
        statistics[name] = state[0]
        subject = np.array(stores[name].metadata["subject"].to_pylist())
        location = stores[name].location
        for split in SPLITS:
            rows = chosen.rows[split]
            for index, person in enumerate(chosen.people):
                mine = rows[subject[rows] == person]
                if len(mine):
                    cache = None if location.cache is None else str(location.cache)
                    average = average_train or split == "val"
                    stem = f"{name}-{split}-{index:04d}"
                    task = _Task(str(location.root), cache, mine, average, state, folder / "shards", stem)
                    tasks.append((name, split, index, task))
    done = _run([task for *_, task in tasks], n_workers, progress)
    modalities = {}
    for name, chosen in splits.modalities.items():
        parts = {}
        for split in SPLITS:
            some = [(i, one) for (n, s, i, _), one in zip(tasks, done, strict=True) if (n, s) == (name, split)]
            shards = [(i, shard, images) for i, one in some for shard, images in one.shards]
            parts[split] = PreparedSplit(
                shards=tuple(shard for _, shard, _ in shards),
                people=tuple(i for i, _, _ in shards),
                images=tuple(tuple(row_of[split][image] for image in images) for _, _, images in shards),
                n_averaged=max((one.n_averaged for _, one in some), default=1),
            )
        modalities[name] = PreparedModality(
            preprocess=statistics[name], statistics=f"{name}.safetensors",
            statistics_sha256=file_sha256(folder / f"{name}.safetensors"), people=chosen.people, splits=parts,
        )  # fmt: skip
    images = {split: splits.images[split] for split in SPLITS}
    content = PreparedIndex(digest=digest, images=images, modalities=modalities)
    write_atomic(folder / INDEX, _rendered(content).encode())
    return folder


def open_prepared(root: Path, digest: str, seed: int = 0) -> PreparedEpochs:
    """Open what `prepare_epochs` wrote; shards are compared with their sha256 when they are first read.

    Raises
    ------
    ValueError
        If it is not there, belongs to other settings, or a file does not match its checksum.
    """
    folder = root / digest[:16]
    if not (folder / INDEX).exists():
        raise ValueError(
            f"no prepared epochs for these settings in {root}; run `phosphene prepare` with the same config first"
        )
    index = _read_index(folder / INDEX)
    if index.digest != digest:
        raise ValueError(f"{folder / INDEX} was made with other settings; delete the folder and prepare again")
    preprocessors: dict[str, Preprocessor] = {}
    parts: dict[str, dict[str, ModalityEpochs]] = {split: {} for split in SPLITS}
    for name, one in index.modalities.items():
        path = folder / one.statistics
        if file_sha256(path) != one.statistics_sha256:
            raise ValueError(f"{path} does not match its sha256; delete {folder} and prepare again")
        preprocessors[name] = Preprocessor.from_state(one.preprocess, load_file(path))
        shape = (preprocessors[name].layout.n_channels, preprocessors[name].config.n_times)
        for split, content in one.splits.items():
            if content.shards:
                parts[split][name] = _epochs(content, shape, folder)
    for split in SPLITS:
        lacking = [name for name in preprocessors if name not in parts[split]]
        if lacking:
            raise ValueError(f"split {split!r} has no epochs of {lacking}; change n_val_concepts or the people")
    people = {name: one.people for name, one in index.modalities.items()}
    joined = {split: JoinedPairs(parts[split], seed) for split in SPLITS}
    return PreparedEpochs(preprocessors, people, index.images, joined["train"], joined["val"])


def _rendered(index: PreparedIndex) -> str:
    """Write the index with its own sha256: it says which picture an epoch shows, so no byte of it may change."""
    content = index.model_dump_json()
    return f'{{"sha256": "{hashlib.sha256(content.encode()).hexdigest()}", "prepared":\n{content}}}\n'


def _read_index(path: Path) -> PreparedIndex:
    try:
        text = path.read_text()
        index = PreparedIndex.model_validate(json.loads(text)["prepared"])
        unchanged = _rendered(index) == text
    except (ValueError, TypeError, KeyError) as error:
        kind = type(error).__name__
        raise ValueError(f"{path} is damaged ({kind}); delete {path.parent} and prepare again") from error
    if not unchanged:
        raise ValueError(f"{path} does not match its own sha256; delete {path.parent} and prepare again")
    return index


def _epochs(content: PreparedSplit, shape: tuple[int, int], folder: Path) -> ModalityEpochs:
    files = ShardFiles(content.shards, shape, np.dtype(STORED_SIGNAL).name, _Locator(folder / "shards"))
    array = StoreArray(files, shape, np.dtype(STORED_SIGNAL).name, np.ones(shape[0], np.float32))
    subject = np.repeat(np.array(content.people, dtype=np.int64), [shard.n_epochs for shard in content.shards])
    target = np.concatenate([np.array(images, dtype=np.int64) for images in content.images])
    return ModalityEpochs(array, subject, target, content.n_averaged)


@dataclass(frozen=True)
class _Locator:
    folder: Path

    def __call__(self, file: StoredFile) -> Path:
        return self.folder / file.file


class _Done(_Frozen):
    """What one task wrote: shards with the image of each epoch."""

    shards: tuple[tuple[Shard, tuple[str, ...]], ...]
    n_averaged: int


def _run(tasks: Sequence[_Task], n_workers: int, progress: bool) -> list[_Done]:
    bar = tqdm(total=len(tasks), desc="prepare", disable=not progress, mininterval=1.0)
    done: list[_Done] = []
    if n_workers <= 1:
        for task in tasks:
            done.append(_prepare_person(task))
            bar.update()
    else:
        # fresh processes: a fork would inherit the threads of torch and of Arrow
        with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
            for one in pool.map(_prepare_person, tasks):
                done.append(one)
                bar.update()
    bar.close()
    return done


def _prepare_person(task: _Task) -> _Done:
    """Write one person's shards, or read what a stopped run wrote; module level, for other processes."""
    note = task.folder / f"{task.stem}.json"
    if note.exists():
        return _Done.model_validate_json(note.read_text())
    store = EpochStore.open(task.store, cache_dir=task.cache_dir)
    preprocessor = Preprocessor.from_state(*task.state)
    images = np.array(store.metadata["image"].take(task.rows).to_pylist())
    order = np.lexsort((task.rows, images)) if task.average else np.arange(len(images))
    rows, images = task.rows[order], images[order]
    shards, n_averaged = [], 1
    for number, block in enumerate(_blocks(images, store, task.average)):
        epochs = store.epochs(rows[block])
        epochs = epochs.average_repetitions() if task.average else epochs
        data = preprocessor(epochs).data.astype(STORED_SIGNAL)
        temporary = task.folder / f"{task.stem}-{number:04d}.npy.tmp"
        shard = write_shard(temporary, data)
        name = temporary.name.removesuffix(".tmp")
        os.replace(temporary, task.folder / name)
        shards.append((shard.model_copy(update={"file": name}), epochs.stimulus))
        n_averaged = max(n_averaged, int(np.median(epochs.n_averaged)))
    done = _Done(shards=tuple(shards), n_averaged=n_averaged)
    write_atomic(note, done.model_dump_json().encode())
    return done


def _blocks(images: NDArray[np.str_], store: EpochStore, average: bool) -> list[slice]:
    """Cut rows into blocks that fit into memory; with averaging, never inside a picture's repetitions."""
    per_epoch = 4 * len(store.info.ch_names) * store.info.n_times
    size = max(BLOCK_BYTES // per_epoch, 1)
    starts = [0]
    for row in range(1, len(images)):
        if row - starts[-1] >= size and not (average and images[row] == images[row - 1]):
            starts.append(row)
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(images)], strict=True)]


def _fitted(preprocessor: Preprocessor, store: EpochStore, rows: Ints, n_epochs: int, average: bool) -> Preprocessor:
    """Fit on training epochs of all people, the same number of pictures of each as far as there are."""
    if preprocessor.fitted:
        return preprocessor
    columns = {one: np.array(store.metadata[one].take(rows).to_pylist()) for one in ("subject", "image")}
    people = sorted(set(columns["subject"].tolist()))
    parts: list[SignalEpochs] = []
    for index, person in enumerate(people):
        mine = columns["subject"] == person
        pictures = sorted(set(columns["image"][mine].tolist()))
        n = min(max(n_epochs // len(people), 1), len(pictures))
        drawn = np.random.default_rng([0, index]).permutation(len(pictures))[:n]
        wanted = mine & np.isin(columns["image"], [pictures[i] for i in drawn])
        epochs = store.epochs(rows[wanted])
        parts.append(epochs.average_repetitions() if average else epochs)
    joint = replace(
        parts[0],
        data=np.concatenate([part.data for part in parts]),
        subject="",
        stimulus=tuple(name for part in parts for name in part.stimulus),
        n_averaged=tuple(n for part in parts for n in part.n_averaged),
    )
    return preprocessor.fit(joint)
