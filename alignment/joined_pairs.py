"""Recordings of different people, joined on the picture that was shown.

No public data set has EEG and MEG of the same presentation, so a pair is an epoch of each modality that shows the same
picture, usually to different people, and every pass over the data draws new pairs. Pictures that only one modality has
still train that modality.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.pairs import Ints, PairBatch, Pairs, Signals, batch_rows
from alignment.runtime import STORED_SIGNAL


@dataclass(frozen=True)
class ModalityEpochs:
    """Preprocessed epochs of one modality.

    Attributes
    ----------
    data : array, (n, n_channels, n_times)
    subject : ndarray, (n,), int64
        Index among the people of this modality.
    target : ndarray, (n,), int64
        Row of the picture among the split's embeddings.
    n_averaged : int
    """

    data: Signals
    subject: Ints
    target: Ints
    n_averaged: int = 1

    def __post_init__(self) -> None:
        n = len(self.data)
        if self.subject.shape != (n,) or self.target.shape != (n,) or n == 0:
            raise ValueError(
                f"{n} epochs with subjects {self.subject.shape} and targets {self.target.shape}, expected one of each "
                "per epoch and at least one epoch; prepare the data again"
            )


class JoinedPairs:
    """Training or validation epochs of one or more modalities, whose people may differ.

    Parameters
    ----------
    parts : mapping of str to ModalityEpochs
        In the order of the model's modalities.
    seed : int
        Of the pairing.
    """

    def __init__(self, parts: Mapping[str, ModalityEpochs], seed: int = 0) -> None:
        self.parts = dict(parts)
        self.seed = seed
        shared = set.intersection(*(set(np.unique(part.target).tolist()) for part in self.parts.values()))
        self._shared = np.array(sorted(shared), dtype=np.int64)
        self._alone = {name: np.flatnonzero(~np.isin(part.target, self._shared)) for name, part in self.parts.items()}
        self._pairing: tuple[int, NDArray[np.int64]] = (-1, np.empty((0, len(self.parts)), np.int64))

    @property
    def n_pairs(self) -> int:
        """Pairs in one pass."""
        return len(self.pairing(0))

    def __len__(self) -> int:
        """Rows of one pass: pairs, and epochs of pictures that the other modalities lack."""
        return self.n_pairs + sum(len(rows) for rows in self._alone.values())

    def pairing(self, turn: int) -> NDArray[np.int64]:
        """Pair the epochs of every shared picture for one pass over the data.

        Returns
        -------
        ndarray, (n_pairs, m), int64
            Row of each modality. Every epoch of a shared picture comes at least once; where a modality has fewer of a
            picture than another, its epochs come again.
        """
        kept = self._pairing  # taken once: another thread may be at another pass
        if kept[0] == turn:
            return kept[1]
        targets = [part.target for part in self.parts.values()]
        orders, counts = _shuffled_by_picture(targets, self._shared, [self.seed, turn])
        most = np.max(counts, axis=0) if len(self._shared) else np.zeros(0, np.int64)
        picture = np.repeat(np.arange(len(self._shared)), most)
        nth = np.arange(len(picture)) - np.repeat(np.cumsum(most) - most, most)
        columns = []
        for order, count in zip(orders, counts, strict=True):
            first = np.cumsum(count) - count
            columns.append(order[first[picture] + nth % count[picture]])
        found = np.stack(columns, axis=1) if columns else np.empty((0, 0), np.int64)
        self._pairing = (turn, found)
        return found

    def view(self, names: Sequence[str]) -> Pairs:
        """Return the epochs of one modality, or one fixed pairing of all of them.

        Raises
        ------
        ValueError
            If several but not all modalities are asked for, or no picture is shared.
        """
        if len(names) == 1:
            part = self.parts[names[0]]
            return Pairs({names[0]: part.data}, part.subject, part.target, part.n_averaged)
        if tuple(names) != tuple(self.parts):
            raise ValueError(f"pairs of {list(names)} are not kept, only of {list(self.parts)}; ask for all or for one")
        rows = self.pairing(0)
        if len(rows) == 0:
            raise ValueError(
                f"no picture was shown in all of {list(self.parts)}, expected at least one; train them apart"
            )
        parts = list(self.parts.items())
        data = {name: ChosenRows(part.data, rows[:, place]) for place, (name, part) in enumerate(parts)}
        subject = np.stack([part.subject[rows[:, place]] for place, (_, part) in enumerate(parts)], axis=1)
        return Pairs(data, subject, parts[0][1].target[rows[:, 0]], min(part.n_averaged for _, part in parts))

    def batch(self, batch_size: int, step: int, rank: int, world: int, seed: int) -> PairBatch:
        """Give one process's share of a step's batch, as a pure function of the step.

        Every batch has the same numbers of pairs and of single epochs of each modality, in proportion to the data, so
        that all processes hold equal numbers of rows. The joint batch of 2, 4, ... processes is that of one process as
        long as each kind's number can be rounded to fit both, see `_units`.

        Raises
        ------
        ValueError
            If the batch is too small for its parts, or larger than the data.
        """
        shares = []
        units = self._units(batch_size, world)
        for place, (n, count) in enumerate(zip(self._sizes, self._composition(batch_size // units), strict=True)):
            if count:
                rows = batch_rows(n, count * units, step, rank, world, seed + place)
                shares.append(self._rows_of(place, step // (n // (count * units)), rows))
        return self._gather(np.concatenate(shares))

    def take(self, rows: Ints) -> PairBatch:
        """Read a batch of chosen rows of the only modality.

        Raises
        ------
        ValueError
            If there are several modalities, whose rows have no common number.
        """
        if len(self.parts) > 1:
            raise ValueError(f"rows of {list(self.parts)} cannot be chosen together; train one modality, or shuffle")
        return self._gather(rows[:, None])

    @property
    def _sizes(self) -> list[int]:
        """Number of pairs, then of single epochs of each modality."""
        return [self.n_pairs, *(len(rows) for rows in self._alone.values())]

    def _units(self, batch_size: int, world: int) -> int:
        """Cut a joint batch into equal parts, as many for one process as for several.

        Each part has at least one row of every kind, so there are as many parts as a power of two allows without
        rare kinds taking more than a sixth of the batch, and for more processes than that one part for each.
        """
        n_kinds, units = sum(size > 0 for size in self._sizes), 1
        while batch_size % (2 * units) == 0 and 2 * units * n_kinds * 6 <= batch_size:
            units *= 2
        return units if units % world == 0 else world

    def _composition(self, n: int) -> list[int]:
        """Divide n rows among pairs and single epochs in proportion, at least one of each kind that there is."""
        sizes = np.array(self._sizes)
        exact = n * sizes / sizes.sum()
        counts = np.maximum(exact.astype(int), sizes > 0)
        while counts.sum() < n:
            counts[np.argmax(np.where(sizes > 0, exact - counts, -np.inf))] += 1
        counts[np.argmax(counts)] -= counts.sum() - n
        if (counts < (sizes > 0)).any():
            raise ValueError(f"a share of {n} rows cannot hold each of {sizes.tolist()} kinds of rows; enlarge batches")
        return [int(count) for count in counts]

    def _rows_of(self, place: int, turn: int, rows: Ints) -> NDArray[np.int64]:
        """Give the row of each modality (k, m), -1 where there is none."""
        if place == 0:
            return self.pairing(turn)[rows]
        found = np.full((len(rows), len(self.parts)), -1, np.int64)
        found[:, place - 1] = list(self._alone.values())[place - 1][rows]
        return found

    def _gather(self, rows: NDArray[np.int64]) -> PairBatch:
        """Read the epochs at ``rows`` (k, m)."""
        data, available, people = {}, {}, []
        target = np.full(len(rows), -1, np.int64)
        for place, (name, part) in enumerate(self.parts.items()):
            mine = rows[:, place]
            has = mine >= 0
            data[name] = np.zeros((len(mine), *part.data.shape[1:]), np.float32)
            data[name][has] = part.data[mine[has]]
            people.append(np.where(has, part.subject[mine], 0))
            target[has] = part.target[mine[has]]
            if not has.all():
                available[name] = has
        return PairBatch(data, people[0] if len(people) == 1 else np.stack(people, axis=1), target, available)


def distinct_pairs(targets: Sequence[Ints], seed: int = 0) -> NDArray[np.int64]:
    """Pair rows that show the same picture, each row in one pair at most: for measuring, where training reuses rows.

    Parameters
    ----------
    targets : sequence of ndarray, (n_i,), int64
        Picture of each row of each modality.
    seed : int
        Of the pairing, which is random within a picture.

    Returns
    -------
    ndarray, (n_pairs, m), int64
        Row of each modality; of a picture as many pairs as the modality with the fewest rows of it has.
    """
    shared = np.array(sorted(set.intersection(*(set(one.tolist()) for one in targets))), dtype=np.int64)
    orders, counts = _shuffled_by_picture(targets, shared, [seed])
    fewest = np.min(counts, axis=0) if len(shared) else np.zeros(0, np.int64)
    picture = np.repeat(np.arange(len(shared)), fewest)
    nth = np.arange(len(picture)) - np.repeat(np.cumsum(fewest) - fewest, fewest)
    columns = [
        order[(np.cumsum(count) - count)[picture] + nth] for order, count in zip(orders, counts, strict=True)
    ]
    return np.stack(columns, axis=1)


def _shuffled_by_picture(
    targets: Sequence[Ints], shared: Ints, seed: Sequence[int]
) -> tuple[list[Ints], list[NDArray[np.int64]]]:
    """Order each modality's rows of shared pictures by picture, at random within it; and count them by picture."""
    orders, counts = [], []
    for place, target in enumerate(targets):
        rows = np.flatnonzero(np.isin(target, shared))
        key = np.random.default_rng([*seed, place]).random(len(rows))
        orders.append(rows[np.lexsort((key, target[rows]))])
        counts.append(np.bincount(np.searchsorted(shared, target[rows]), minlength=len(shared)))
    return orders, counts


@dataclass(frozen=True)
class ChosenRows:
    """Some rows of an array, in some order, read when asked for."""

    array: Signals
    rows: Ints

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    @property
    def dtype(self) -> Any:
        return STORED_SIGNAL

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any, /) -> NDArray[Any]:
        found: NDArray[Any] = self.array[self.rows[rows]]
        return found
