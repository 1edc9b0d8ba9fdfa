"""Every picture is asked for once, galleries have one size, and concepts stand together as they are meant to."""

import numpy as np
import pytest

from alignment.dealt_galleries import deal_galleries


@pytest.mark.parametrize(("m", "size"), [(12, 12), (12, 4), (13, 5), (7, 6)])
def test_every_picture_is_asked_for_in_one_gallery_of_the_size(m: int, size: int) -> None:
    dealt = deal_galleries([str(i // 2) for i in range(m)], size)
    assert sorted(np.concatenate([columns[:n] for columns, n in dealt])) == list(range(m))
    for columns, n_own in dealt:
        assert len(set(columns.tolist())) == len(columns) == size and 1 <= n_own <= size


def test_galleries_have_as_many_of_a_concept_as_the_other_side() -> None:
    concepts = np.repeat(np.arange(10), 4)
    for per_concept in (1, 2, 4):
        for columns, _ in deal_galleries(concepts.astype(str).tolist(), 8, per_concept):
            assert set(np.bincount(concepts[columns], minlength=10)) == {0, per_concept}


def test_seeds_deal_otherwise_and_nonsense_is_refused() -> None:
    concepts = [str(i) for i in range(20)]
    one, same, other = (deal_galleries(concepts, 10, seed=seed)[0][0].tolist() for seed in (0, 0, 1))
    assert one == same != other
    for size in (1, 21):
        with pytest.raises(ValueError, match="expected 2 to 20"):
            deal_galleries(concepts, size)
