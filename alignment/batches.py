"""Batches in which all people's responses to the same pictures stand together, for losses with several positives.

A batch is a pure function of the step, as in `alignment.pairs.batch_rows`, so a resumed run draws what the
uninterrupted one would have drawn.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class GroupedBatches:
    """Rows grouped by picture.

    In each pass over the data the rows of a picture are dealt into groups of at most ``group_size``, as many different
    people as possible in each, and the groups are shuffled. Every row comes once per pass, apart from fewer than
    ``batch_size`` at its end; a group is cut only where a batch is full, so at most one at each end of a batch.

    Attributes
    ----------
    target, subject : ndarray, (n,), int64
        Picture and person of each row.
    batch_size : int
        Rows of the joint batch of all processes.
    group_size : int
        Most rows of one picture in a group; the number of people is usual. 0 for no limit.
    seed : int

    Raises
    ------
    ValueError
        If lengths differ, or the batch exceeds the data.
    """

    target: Ints
    subject: Ints
    batch_size: int
    group_size: int = 0
    seed: int = 0
    _orders: dict[int, Ints] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check sizes once."""
        n = len(self.target)
        if self.target.shape != (n,) or self.subject.shape != (n,):
            raise ValueError(f"target {self.target.shape} and subject {self.subject.shape} must both be (n,)")
        if not 0 < self.batch_size <= n:
            raise ValueError(f"batch_size {self.batch_size} must be 1 to {n}, the number of rows")
        if self.group_size < 0:
            raise ValueError(f"group_size {self.group_size} must be positive, or 0 for no limit")

    @property
    def n_batches(self) -> int:
        """Batches per pass."""
        return len(self.target) // self.batch_size

    def rows(self, step: int, rank: int, world: int) -> Ints:
        """Give one process's share of the batch of a step, (batch_size / world,) int64.

        Shares are neighbouring slices, so a group stays on one process unless it is cut between two.

        Raises
        ------
        ValueError
            If the batch does not divide among the processes.
        """
        if self.batch_size % world or not 0 <= rank < world:
            raise ValueError(
                f"a batch cannot be shared: got batch_size {self.batch_size} for rank {rank} of {world} processes, "
                f"expected a multiple of {world} and a rank of 0 to {world - 1}; change batch_size or the processes"
            )
        turn, place = divmod(step, self.n_batches)
        share = self.batch_size // world
        first = place * self.batch_size + rank * share
        return self._order(turn)[first : first + share]

    def _order(self, turn: int) -> Ints:
        """Order of all rows in one pass; the last one is kept because sorting a million rows takes a second."""
        kept = self._orders.get(turn)  # taken once: another thread may be at another pass
        if kept is None:
            kept = _deal(self.target, self.subject, self.group_size, np.random.default_rng([self.seed, turn]))
            self._orders.clear()
            self._orders[turn] = kept
        return kept


def _deal(target: Ints, subject: Ints, group_size: int, generator: np.random.Generator) -> Ints:
    n = len(target)
    first_draw, second_draw = generator.random((2, n))
    # which of a person's responses to the picture a row is, in random order
    order = np.lexsort((first_draw, subject, target))
    turn_of = np.empty(n, np.int64)
    turn_of[order] = _place_in_run((target[order], subject[order]))
    # first one response of everybody, then the second of everybody, and so on
    order = np.lexsort((second_draw, turn_of, target))
    place = _place_in_run((target[order],))
    starts = place % group_size == 0 if group_size else place == 0
    group = np.cumsum(starts) - 1
    shuffled = generator.permutation(group[-1] + 1)
    dealt: Ints = order[np.argsort(shuffled[group], kind="stable")]
    return dealt


def _place_in_run(columns: tuple[Ints, ...]) -> Ints:
    """Count 0, 1, ... within each run of equal rows of ``columns``."""
    n = len(columns[0])
    changed = np.zeros(n, bool)
    changed[0] = True
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
    starts = np.flatnonzero(changed)
    place: Ints = np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n)))
    return place
