"""Subsets keep every concept, come out the same every time, and never touch the test split."""

import numpy as np
import pyarrow as pa
import pytest

from encoders.store_subset import subset

CONCEPTS = tuple(f"concept{i:04d}" for i in range(1654))


def metadata(n_subjects: int = 4, n_images: int = 10, concepts: tuple[str, ...] = CONCEPTS) -> pa.Table:
    """The shape of THINGS-EEG2: ten pictures per concept in training, some test epochs and catch trials."""
    rows = [
        (f"sub-{subject:02d}", concept, "train")
        for subject in range(n_subjects)
        for concept in concepts
        for _ in range(n_images)
    ]
    rows += [("sub-00", f"test{i}", "test") for i in range(200)] + [("sub-00", "", "train")] * 50
    subject, concept, split = zip(*rows, strict=True)
    return pa.table({"row": np.arange(len(rows)), "subject": subject, "concept": concept, "split": split})


@pytest.mark.parametrize("fraction", [0.0001, 0.05, 0.1, 0.333, 1.0])
def test_every_concept_is_covered(fraction: float) -> None:
    table = metadata()
    rows = subset(table, fraction, seed=0)
    assert set(table["concept"].take(rows).to_pylist()) == set(CONCEPTS)  # coverage 100 %
    assert set(table["split"].take(rows).to_pylist()) == {"train"}
    assert len(set(rows.tolist())) == len(rows) and (np.diff(rows) > 0).all()
    expected = max(fraction * 40, 1) * len(CONCEPTS)
    assert abs(len(rows) / expected - 1) < 0.02


def test_same_seed_same_rows_other_seed_other_rows() -> None:
    table = metadata(2)
    first, again, other = (subset(table, 0.1, seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert len(np.intersect1d(first, other)) < 0.3 * len(first)


def test_pinned_rows() -> None:
    assert subset(metadata(1, 5, ("a", "b")), 0.4, seed=0).tolist() == [3, 4, 6, 8]


def test_larger_fractions_contain_smaller_ones() -> None:
    table = metadata(1)
    sizes = [set(subset(table, fraction, seed=1).tolist()) for fraction in (0.02, 0.1, 0.25, 0.6, 1.0)]
    assert all(small <= large for small, large in zip(sizes, sizes[1:], strict=False))
    assert len(sizes[-1]) == 16540


def test_a_concept_is_drawn_alike_whatever_stands_beside_it() -> None:
    both, alone = metadata(1, 20, ("a", "b")), metadata(1, 20, ("a",))
    rows = subset(both, 0.5, seed=0)
    assert np.array_equal(rows[rows < 20], subset(alone, 0.5, seed=0))


def test_people_can_be_chosen() -> None:
    table = metadata()
    rows = subset(table, 0.1, 0, subjects=("sub-01", "sub-03"))
    assert set(table["subject"].take(rows).to_pylist()) == {"sub-01", "sub-03"}
    assert set(table["concept"].take(rows).to_pylist()) == set(CONCEPTS)


def test_rows_are_those_of_the_store_when_the_table_is_cut() -> None:
    table = metadata(1, 5, ("a", "b")).slice(5)
    assert set(subset(table, 1.0, 0).tolist()) == {5, 6, 7, 8, 9}


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
def test_impossible_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="expected above 0 and at most 1"):
        subset(metadata(1), fraction, 0)


def test_unknown_people_and_splits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no epochs of people \['sub-99'\]"):
        subset(metadata(1), 0.1, 0, subjects=("sub-99",))
    with pytest.raises(ValueError, match=r"in split 'val'; the store has splits \['test', 'train'\]"):
        subset(metadata(1), 0.1, 0, split="val")
