"""Galleries of one size out of a larger set of pictures, so that answers of two sets choose among equally many."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def deal_galleries(concepts: Sequence[str], size: int, per_concept: int = 1, seed: int = 0) -> list[tuple[Ints, int]]:
    """Deal pictures into galleries; each picture is asked for in one of them.

    Parameters
    ----------
    concepts : sequence of str, (m,)
        Of each picture.
    size : int
        2 to m.
    per_concept : int
        Pictures of one concept that stand together in a gallery as far as there are enough concepts: a gallery of one
        picture each is easier than one of many of a kind.
    seed : int

    Returns
    -------
    list of (ndarray, int)
        Pictures (size,) of each gallery, and how many of them, the first ones, are asked for in it. The others fill up
        the last gallery; they are asked for in an earlier one.
    """
    m = len(concepts)
    if not 2 <= size <= m or per_concept < 1:
        raise ValueError(
            f"galleries of {size} with {per_concept} of a concept out of {m} pictures, expected 2 to {m} and at least 1"
        )
    generator = np.random.default_rng([seed, 13])
    drawn = generator.permutation(m)
    names, concept = np.unique(np.asarray(concepts)[drawn], return_inverse=True)
    turn = generator.permutation(len(names))[concept]
    earlier: dict[int, int] = {}
    nth = np.empty(m, np.int64)
    for row, one in enumerate(concept.tolist()):
        nth[row] = earlier.get(one, 0)
        earlier[one] = nth[row] + 1
    order = drawn[np.lexsort((nth, turn, nth // per_concept))]
    galleries = []
    for first in range(0, m, size):
        own = order[first : first + size]
        galleries.append((np.concatenate([own, order[: size - len(own)]]), len(own)))
    return galleries
