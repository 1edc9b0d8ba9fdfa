"""A small part of a store that still has every concept, for searches over settings before the full training."""

import hashlib
from collections.abc import Collection

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def subset(
    metadata: pa.Table, fraction: float, seed: int, *, split: str = "train", subjects: Collection[str] = ()
) -> NDArray[np.int64]:
    """Choose epochs at random, concept by concept.

    Each concept gives ``fraction`` of its epochs, rounded up or down at random, and at least one, so a fraction below
    one epoch per concept gives more epochs than asked for. A larger fraction with the same seed contains the smaller,
    as successive halving wants. What is chosen of a concept depends on the seed, the concept and its epochs alone.

    Parameters
    ----------
    metadata : pyarrow.Table
        `encoders.store.EpochStore.metadata`.
    fraction : float
        In (0, 1].
    seed : int
        Same seed, same rows.
    split : str
        Take epochs of this split alone; searching on test epochs would choose the settings by them.
    subjects : collection of str
        Take these people alone; empty means all.

    Returns
    -------
    ndarray, (n,), int64
        Rows of the store, ascending. Epochs without a concept are left out.

    Raises
    ------
    ValueError
        If the fraction is outside (0, 1], a person is unknown, or no epoch with a concept is left.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}, expected above 0 and at most 1")
    columns = {name: np.asarray(metadata[name].to_pylist()) for name in ("split", "subject", "concept")}
    unknown = sorted(set(subjects) - set(columns["subject"].tolist()))
    if unknown:
        raise ValueError(f"no epochs of people {unknown}; the store has {sorted(set(columns['subject'].tolist()))}")
    wanted = (columns["split"] == split) & (columns["concept"] != "")
    if subjects:
        wanted &= np.isin(columns["subject"], list(subjects))
    if not wanted.any():
        raise ValueError(
            f"no epoch with a concept in split {split!r}; the store has splits {sorted(set(columns['split'].tolist()))}"
        )
    rows = np.flatnonzero(wanted)
    concepts, index = np.unique(columns["concept"][rows], return_inverse=True)
    groups = np.split(rows[np.argsort(index, kind="stable")], np.cumsum(np.bincount(index))[:-1])
    chosen = [
        _share(group, fraction, _generator(seed, concept))
        for group, concept in zip(groups, concepts.tolist(), strict=True)
    ]
    numbers: NDArray[np.int64] = metadata["row"].to_numpy()[np.sort(np.concatenate(chosen))].astype(np.int64)
    return numbers


def _share(group: NDArray[np.int64], fraction: float, generator: np.random.Generator) -> NDArray[np.int64]:
    order = generator.permutation(group)
    n = int(np.floor(round(fraction * len(group), 9) + generator.random()))
    return order[: min(max(n, 1), len(group))]


def _generator(seed: int, concept: str) -> np.random.Generator:
    words = np.frombuffer(hashlib.sha256(concept.encode()).digest(), dtype=np.uint32)
    return np.random.default_rng([seed, *words.tolist()])
