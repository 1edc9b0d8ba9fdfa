"""Pairs of brain signal and image embedding, with splits whose concepts (and pictures) do not overlap.

Recordings are simulated here from a file of targets; a public data set would fill the same `Pairs`. Signals are kept
in half precision after preprocessing, where values lie within +-20, to halve the memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from alignment.runtime import STORED_SIGNAL
from encoders.epochs import SignalEpochs
from encoders.preprocess import Preprocessor

SPLITS = ("train", "val", "test")
Float = NDArray[np.float32]
Ints = NDArray[np.int64]


class Signals(Protocol):
    """Epochs (n, n_channels, n_times) by row: an ndarray, a memory-map, `encoders.store_array.StoreArray`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class Recorder(Protocol):
    """Whatever can play pictures to a person: `encoders.simulate.BrainSimulator` does."""

    def record(
        self, image_embeds: Float, *, modality: str, layout: str, subject: int, n_repetitions: int = 1,
        seed: int = 0, stimulus: Sequence[str] = (),
    ) -> SignalEpochs: ...  # fmt: skip


@dataclass(frozen=True)
class TargetSplit:
    """Raw image embeddings (n, d), float32, and the concept (n,), int64, of each picture."""

    embeds: Float
    concepts: Ints


@dataclass(frozen=True)
class Pairs:
    """Preprocessed epochs of one split; all modalities were recorded at the same presentations.

    Attributes
    ----------
    data : mapping of str to array, (n, n_channels, n_times), ``STORED_SIGNAL``
        Per modality; anything that gives rows by integers or a slice.
    subject : ndarray, (n,) or (n, m), int64
        Index of the person; one column per modality of the model where they differ.
    target : ndarray, (n,), int64
        Row of the picture among the split's embeddings.
    n_averaged : int
        Presentations averaged in each row.
    """

    data: Mapping[str, "Signals"]
    subject: Ints
    target: Ints
    n_averaged: int

    def __len__(self) -> int:
        return len(self.target)

    def view(self, names: Sequence[str]) -> "Pairs":
        """Return the same presentations with some of the modalities."""
        return replace(self, data={name: self.data[name] for name in names})

    def select(self, rows: NDArray[np.int64]) -> "Pairs":
        """Return some rows, read into memory."""
        data = {name: one[rows] for name, one in self.data.items()}
        return replace(self, data=data, subject=self.subject[rows], target=self.target[rows])

    def batch(self, batch_size: int, step: int, rank: int, world: int, seed: int) -> "PairBatch":
        """Give one process's share of a step's batch, as a pure function of the step; see `batch_rows`."""
        return self.take(batch_rows(len(self), batch_size, step, rank, world, seed))

    def take(self, rows: Ints) -> "PairBatch":
        """Read a batch of chosen rows."""
        data = {name: one[rows].astype(np.float32) for name, one in self.data.items()}
        return PairBatch(data, self.subject[rows], self.target[rows])


@dataclass(frozen=True)
class PairBatch:
    """Epochs of one step: ``data`` (b, n_channels, n_times), float32, the rest as in `Pairs`.

    ``available`` (b,), bool, says which rows have a modality, for those modalities that some rows lack.
    """

    data: Mapping[str, Float]
    subject: Ints
    target: Ints
    available: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)


def read_targets(path: Path) -> dict[str, TargetSplit]:
    """Read a file of targets and check it.

    Parameters
    ----------
    path : Path
        safetensors with ``<split>_embeds`` (n, d) float32 raw and ``<split>_concepts`` (n,) int64 for the splits
        train, val and test.

    Returns
    -------
    dict of str to TargetSplit

    Raises
    ------
    ValueError
        If a tensor is missing or misshapen, a value is not finite, or a concept or a picture is in two splits.
    """
    tensors = load_file(path)
    expected = [f"{split}_{what}" for split in SPLITS for what in ("embeds", "concepts")]
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise ValueError(f"{path.name} lacks {missing}, it has {sorted(tensors)}; write it with write_targets")
    splits = {
        name: TargetSplit(tensors[f"{name}_embeds"].astype(np.float32), tensors[f"{name}_concepts"].astype(np.int64))
        for name in SPLITS
    }
    width = splits["train"].embeds.shape[-1]
    for name, split in splits.items():
        n = len(split.embeds)
        if n == 0 or split.embeds.shape != (n, width) or split.concepts.shape != (n,):
            raise ValueError(
                f"{path.name}: {name}_embeds {split.embeds.shape} and {name}_concepts {split.concepts.shape} must be "
                f"(n, {width}) and (n,) with n > 0"
            )
        if not np.isfinite(split.embeds).all():
            raise ValueError(f"{path.name}: {name}_embeds has non-finite values; encode the pictures again")
    _check_disjoint(path.name, splits)
    return splits


def write_targets(path: Path, splits: Mapping[str, TargetSplit], metadata: Mapping[str, str]) -> None:
    """Write what `read_targets` reads; ``metadata`` should name the CLIP space (its digest)."""
    tensors: dict[str, NDArray[Any]] = {}
    for name, split in splits.items():
        tensors[f"{name}_embeds"] = np.ascontiguousarray(split.embeds, dtype=np.float32)
        tensors[f"{name}_concepts"] = np.ascontiguousarray(split.concepts, dtype=np.int64)
    save_file(tensors, path, metadata=dict(metadata))


def presentations(
    recorder: Recorder, embeds: Float, modality: str, layout: str, subject: int, n_repetitions: int, seed: int
) -> SignalEpochs:
    """Record every picture ``n_repetitions`` times; the stimulus id is the row of the picture."""
    stimulus = [str(row) for row in range(len(embeds))]
    return recorder.record(
        embeds,
        modality=modality,
        layout=layout,
        subject=subject,
        n_repetitions=n_repetitions,
        seed=seed,
        stimulus=stimulus,
    )


def record_pairs(
    recorder: Recorder,
    preprocessors: Mapping[str, Preprocessor],
    embeds: Float,
    n_subjects: int,
    *,
    n_repetitions: int,
    average: bool,
    seed: int,
    progress: bool = False,
) -> Pairs:
    """Record and preprocess every picture for every person.

    Parameters
    ----------
    recorder : Recorder
    preprocessors : mapping of str to Preprocessor
        One per modality; those not fitted yet are fitted on the first person's epochs, which must be training ones.
    embeds : ndarray, (n, d), float32
        Raw embeddings of the pictures.
    n_subjects : int
    n_repetitions : int
        Presentations per picture and person.
    average : bool
        One row per picture and person, averaged before preprocessing, instead of one per presentation.
    seed : int
        Of the noise; different splits need different ones.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Pairs
        Person by person, then picture by picture, then repetition by repetition.
    """
    rows = len(embeds) * (1 if average else n_repetitions)
    target = np.repeat(np.arange(len(embeds)), 1 if average else n_repetitions)
    data: dict[str, NDArray[Any]] = {}
    bar = tqdm(total=len(preprocessors) * n_subjects, desc="recordings", disable=not progress, mininterval=1.0)
    for modality, preprocessor in preprocessors.items():
        layout = preprocessor.layout.name
        shape = (n_subjects * rows, preprocessor.layout.n_channels, preprocessor.config.n_times)
        data[modality] = np.empty(shape, STORED_SIGNAL)
        for subject in range(n_subjects):
            epochs = presentations(recorder, embeds, modality, layout, subject, n_repetitions, seed)
            epochs = epochs.average_repetitions() if average else epochs
            if not preprocessor.fitted:
                preprocessor.fit(epochs)
            data[modality][subject * rows : (subject + 1) * rows] = preprocessor(epochs).data
            bar.update()
    bar.close()
    return Pairs(
        data=data,
        subject=np.repeat(np.arange(n_subjects), rows),
        target=np.tile(target, n_subjects),
        n_averaged=n_repetitions if average else 1,
    )


def batch_rows(n: int, batch_size: int, step: int, rank: int, world: int, seed: int) -> Ints:
    """Give the rows of one process's share of a batch, as a pure function of the step.

    Each pass over the data is a fresh permutation; rows left over at its end sit out that pass.

    Raises
    ------
    ValueError
        If the batch does not divide among the processes, or exceeds the data.
    """
    if batch_size % world or not 0 < batch_size <= n:
        most = min(max(batch_size, world), n) // world * world
        way_out = f"set batch_size to {most}" if most else f"give more rows, or at most {n} processes"
        raise ValueError(
            f"a batch cannot be drawn: got batch_size {batch_size} for {n} rows and {world} processes, "
            f"expected a multiple of {world} from {world} to {n}; {way_out}"
        )
    turn, place = divmod(step, n // batch_size)
    order = np.random.default_rng([seed, turn]).permutation(n)
    share = batch_size // world
    first = place * batch_size + rank * share
    rows: Ints = order[first : first + share]
    return rows


def _check_disjoint(name: str, splits: Mapping[str, TargetSplit]) -> None:
    for i, one in enumerate(SPLITS):
        for other in SPLITS[i + 1 :]:
            concepts = np.intersect1d(splits[one].concepts, splits[other].concepts)
            if len(concepts):
                raise ValueError(f"{name}: concepts {concepts[:5].tolist()} are in both {one} and {other}; split anew")
            both = {row.tobytes() for row in splits[one].embeds} & {row.tobytes() for row in splits[other].embeds}
            if both:
                raise ValueError(f"{name}: {len(both)} pictures are in both {one} and {other}; remove the copies")
