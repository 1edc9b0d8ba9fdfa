"""Pairs show the same picture, every epoch is visited once per pass, and nothing depends on the number of processes."""

from collections import Counter

import numpy as np
import pytest

from alignment.joined_pairs import JoinedPairs, ModalityEpochs, distinct_pairs

SHAPES = {"eeg": (3, 5), "meg": (4, 6)}
N_SHARED = 12


def part(name: str, pictures: list[int], repeats: int, n_people: int, seed: int) -> ModalityEpochs:
    """Epochs whose every value is their own row number."""
    target = np.random.default_rng(seed).permutation(np.repeat(pictures, repeats * n_people)).astype(np.int64)
    data = np.broadcast_to(np.arange(len(target), dtype=np.float16)[:, None, None], (len(target), *SHAPES[name]))
    people = np.random.default_rng(seed + 1).integers(n_people, size=len(target))
    return ModalityEpochs(data, people, target)


def joined() -> JoinedPairs:
    return JoinedPairs(
        {
            "eeg": part("eeg", [*range(N_SHARED), 20, 21, 22, 23], 2, 3, seed=0),  # 4 pictures of its own
            "meg": part("meg", [*range(N_SHARED), 30, 31], 2, 1, seed=1),
        }
    )


def rows(batch: object, name: str) -> np.ndarray:
    data = batch.data[name]  # type: ignore[attr-defined]
    has = batch.available.get(name, np.ones(len(data), bool))  # type: ignore[attr-defined]
    return np.where(has, data[:, 0, 0], -1).astype(int)


def test_pairs_show_one_picture_and_each_has_its_own_person() -> None:
    pairs = joined()
    for step in range(6):
        batch = pairs.batch(20, step, 0, 1, seed=3)
        for place, (name, one) in enumerate(pairs.parts.items()):
            mine = rows(batch, name)
            has = mine >= 0
            assert (batch.data[name][~has] == 0).all()
            assert np.array_equal(one.target[mine[has]], batch.target[has])
            assert np.array_equal(one.subject[mine[has]], batch.subject[has, place])
        both = (rows(batch, "eeg") >= 0) & (rows(batch, "meg") >= 0)
        assert both.sum() > 10 and (rows(batch, "eeg")[~both] >= 0).any() and (rows(batch, "meg")[~both] >= 0).any()


def test_a_pass_visits_every_epoch_of_the_modality_with_more_and_pairs_are_drawn_anew() -> None:
    pairs = joined()
    one, other = pairs.pairing(0), pairs.pairing(1)
    shared = [np.flatnonzero(part.target < N_SHARED) for part in pairs.parts.values()]
    for found in (one, other):
        assert np.array_equal(np.sort(found[:, 0]), shared[0])  # 6 epochs of each picture, once each
        assert set(Counter(found[:, 1]).values()) == {3} and set(found[:, 1]) == set(shared[1])  # 2, three times each
    assert {tuple(pair) for pair in one} != {tuple(pair) for pair in other}
    assert np.array_equal(pairs.pairing(0), one)


def test_single_epochs_are_visited_once_per_pass_too() -> None:
    pairs = joined()
    first = pairs.batch(20, 0, 0, 1, seed=0)
    alone = {name: int((rows(first, other) < 0).sum()) for name, other in (("eeg", "meg"), ("meg", "eeg"))}
    for name, other in (("eeg", "meg"), ("meg", "eeg")):
        own = np.flatnonzero(pairs.parts[name].target >= N_SHARED)
        seen: list[int] = []
        for step in range(len(own) // alone[name]):
            batch = pairs.batch(20, step, 0, 1, seed=0)
            seen += rows(batch, name)[rows(batch, other) < 0].tolist()
        assert len(set(seen)) == len(seen) and set(seen) <= set(own.tolist())


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batch_that_one_would_have(world: int) -> None:
    pairs = joined()
    for step in (0, 3, 11):
        shares = [pairs.batch(20, step, rank, world, seed=5) for rank in range(world)]
        assert len({len(one.target) for one in shares}) == 1
        masks = [{name: mask.tolist() for name, mask in one.available.items()} for one in shares]
        assert all(mask == masks[0] for mask in masks)
        found = [pair for one in shares for pair in zip(rows(one, "eeg"), rows(one, "meg"), strict=True)]
        assert len(found) == 20


@pytest.mark.parametrize("batch_size", [40, 64, 60])
def test_the_joint_batch_is_the_same_for_one_process_and_for_two(batch_size: int) -> None:
    """All composition that a power of two allows; 40 rows of three kinds are cut into two equal parts for everybody."""
    pairs = joined()
    for step in range(5):
        joint = pairs.batch(batch_size, step, 0, 1, seed=5)
        shares = [pairs.batch(batch_size, step, rank, 2, seed=5) for rank in (0, 1)]
        expected = sorted(zip(rows(joint, "eeg"), rows(joint, "meg"), strict=True))
        found = [pair for one in shares for pair in zip(rows(one, "eeg"), rows(one, "meg"), strict=True)]
        assert sorted(found) == expected and len(found) == batch_size


@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_pair_comes_once_per_pass_over_all_processes(world: int) -> None:
    pairs = joined()
    seen: Counter[tuple[int, int]] = Counter()
    batches = [pairs.batch(24, 0, rank, world, seed=5) for rank in range(world)]
    per_step = sum(int(((rows(one, "eeg") >= 0) & (rows(one, "meg") >= 0)).sum()) for one in batches)
    for step in range(pairs.n_pairs // per_step):
        for rank in range(world):
            batch = pairs.batch(24, step, rank, world, seed=5)
            found = zip(rows(batch, "eeg").tolist(), rows(batch, "meg").tolist(), strict=True)
            seen.update(pair for pair in found if min(pair) >= 0)
    assert set(seen.values()) == {1} and set(seen) <= {tuple(pair) for pair in pairs.pairing(0).tolist()}
    assert pairs.n_pairs - len(seen) < per_step  # what is left over sits out this pass


def test_one_modality_is_the_plain_case() -> None:
    pairs = JoinedPairs({"eeg": part("eeg", list(range(8)), 2, 2, seed=0)})
    assert len(pairs) == 32
    seen = np.concatenate([rows(pairs.batch(8, step, 0, 1, seed=1), "eeg") for step in range(4)])
    assert sorted(seen) == list(range(32))
    batch = pairs.batch(8, 0, 0, 1, seed=1)
    assert batch.available == {} and batch.subject.shape == (8,)


def test_views_read_one_modality_or_one_pairing() -> None:
    pairs = joined()
    eeg = pairs.view(("eeg",))
    assert len(eeg) == len(pairs.parts["eeg"].target) and eeg.subject.ndim == 1
    both = pairs.view(("eeg", "meg"))
    assert len(both) == pairs.n_pairs and both.subject.shape == (len(both), 2)
    found = both.data["meg"][np.array([4, 0])][:, 0, 0].astype(int)
    assert np.array_equal(found, pairs.pairing(0)[[4, 0], 1])
    assert np.array_equal(pairs.parts["meg"].target[pairs.pairing(0)[:, 1]], both.target)


def test_impossible_requests_are_refused() -> None:
    pairs = joined()
    with pytest.raises(ValueError, match="ask for all or for one"):
        pairs.view(("meg", "eeg"))
    apart = JoinedPairs({"eeg": part("eeg", [1, 2], 2, 1, 0), "meg": part("meg", [3, 4], 2, 1, 1)})
    with pytest.raises(ValueError, match="no picture was shown in all of"):
        apart.view(("eeg", "meg"))
    assert len(apart.batch(4, 0, 0, 1, seed=0).target) == 4
    with pytest.raises(ValueError, match="cannot hold each of"):
        pairs.batch(2, 0, 0, 1, seed=0)
    with pytest.raises(ValueError, match="expected one of each per epoch"):
        ModalityEpochs(np.zeros((3, 2, 2)), np.zeros(3, np.int64), np.zeros(2, np.int64))


def test_distinct_pairs_show_the_same_picture_and_use_no_row_twice() -> None:
    generator = np.random.default_rng(0)
    targets = [generator.permutation(np.repeat(np.arange(6), n)) for n in (5, 3)]
    targets[1][targets[1] == 0] = 7
    pairs = distinct_pairs(targets)
    assert len(pairs) == 5 * 3 and np.array_equal(targets[0][pairs[:, 0]], targets[1][pairs[:, 1]])
    assert all(len(set(column)) == len(column) for column in pairs.T.tolist())
    assert np.array_equal(pairs, distinct_pairs(targets)) and not np.array_equal(pairs, distinct_pairs(targets, 1))
    assert distinct_pairs([np.array([0, 1]), np.array([2, 3])]).shape == (0, 2)
