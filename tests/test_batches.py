import time

import numpy as np
import pytest

from alignment.batches import GroupedBatches


def people(n_pictures: int = 30, n_people: int = 4, n_repetitions: int = 2) -> tuple[np.ndarray, np.ndarray]:
    target, subject, _ = np.meshgrid(range(n_pictures), range(n_people), range(n_repetitions), indexing="ij")
    order = np.random.default_rng(0).permutation(target.size)
    return target.ravel()[order], subject.ravel()[order]


def uneven() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return generator.integers(0, 40, 301) ** 2 % 37, generator.integers(0, 5, 301)


@pytest.mark.parametrize("make", [people, uneven])
@pytest.mark.parametrize("group_size", [0, 3, 4])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_row_comes_once_per_pass(make, group_size: int, world: int) -> None:
    target, subject = make()
    batches = GroupedBatches(target, subject, batch_size=24, group_size=group_size, seed=3)
    for turn in range(2):
        steps = range(turn * batches.n_batches, (turn + 1) * batches.n_batches)
        rows = np.concatenate([batches.rows(step, rank, world) for step in steps for rank in range(world)])
        assert len(rows) == len(np.unique(rows)) == len(target) // 24 * 24


@pytest.mark.parametrize("make", [people, uneven])
def test_pictures_stay_together_but_for_one_at_each_end(make) -> None:
    target, subject = make()
    batches = GroupedBatches(target, subject, batch_size=24)
    joint = [target[batches.rows(step, 0, 1)] for step in range(batches.n_batches)]
    for batch in joint:
        assert (np.diff(batch) != 0).sum() == len(np.unique(batch)) - 1  # equal pictures are neighbours
        torn = [picture for picture in np.unique(batch) if (batch == picture).sum() < (target == picture).sum()]
        assert len(torn) <= 2


def test_groups_hold_everybody_once_where_sizes_allow() -> None:
    target, subject = people()
    batches = GroupedBatches(target, subject, batch_size=24, group_size=4)
    for step in range(2 * batches.n_batches):
        rows = batches.rows(step, 0, 1)
        for group in rows.reshape(6, 4):
            assert len(np.unique(target[group])) == 1 and sorted(subject[group]) == [0, 1, 2, 3]


def test_shares_are_the_joint_batch_in_order() -> None:
    target, subject = uneven()
    batches = GroupedBatches(target, subject, batch_size=24, group_size=3)
    for step in (0, 5, 40):
        parts = [batches.rows(step, rank, 4) for rank in range(4)]
        assert np.array_equal(np.concatenate(parts), batches.rows(step, 0, 1))


def test_batches_are_a_pure_function_of_the_step() -> None:
    target, subject = uneven()
    make = lambda seed: GroupedBatches(target, subject, batch_size=24, group_size=3, seed=seed)  # noqa: E731
    forward, fresh = make(0), make(0)
    there = {step: forward.rows(step, 0, 1).copy() for step in range(40)}
    assert all(np.array_equal(fresh.rows(step, 0, 1), there[step]) for step in reversed(range(40)))
    assert not np.array_equal(make(1).rows(0, 0, 1), there[0])
    assert not np.array_equal(there[0], there[forward.n_batches])
    assert len(forward._orders) == 1  # memory does not grow with the passes


def test_which_rows_meet_changes_from_pass_to_pass() -> None:
    target, subject = people()
    batches = GroupedBatches(target, subject, batch_size=24, group_size=4)
    met = set()
    for step in range(20 * batches.n_batches):
        for group in batches.rows(step, 0, 1).reshape(6, 4):
            met |= {(min(a, b), max(a, b)) for a in group for b in group if a != b}
    rows = range(len(target))
    possible = {(a, b) for a in rows for b in rows if a < b and target[a] == target[b] and subject[a] != subject[b]}
    assert met == possible


def test_a_million_rows_are_dealt_once_per_pass() -> None:
    target, subject = np.repeat(np.arange(16_000), 40), np.tile(np.repeat(np.arange(10), 4), 16_000)
    batches = GroupedBatches(target, subject, batch_size=1000, group_size=10)
    batches.rows(0, 0, 1)
    start = time.perf_counter()
    for step in range(1, 200):
        batches.rows(step, 0, 1)
    assert time.perf_counter() - start < 1


def test_refusals() -> None:
    target, subject = people()
    for settings, said in (
        ({"batch_size": 500}, "must be 1 to 240"),
        ({"batch_size": 24, "group_size": -1}, "no limit"),
        ({"batch_size": 24, "subject": subject[:3]}, r"must both be \(n,\)"),
    ):
        with pytest.raises(ValueError, match=said):
            GroupedBatches(**{"target": target, "subject": subject, **settings})
    with pytest.raises(ValueError, match="multiple of 5 and .*; change batch_size"):
        GroupedBatches(target, subject, 24).rows(0, 0, 5)
