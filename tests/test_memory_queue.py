import pytest
import torch

from alignment.memory_queue import MemoryQueue


def rows(first: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(first, first + n)
    return ids[:, None] * torch.ones(n, 3), ids


def test_the_last_rows_are_kept() -> None:
    queue = MemoryQueue(5, 3)
    assert len(queue.contents()[1]) == 0
    for first in range(0, 12, 3):
        queue.push(*rows(first, 3))
        embeds, ids = queue.contents()
        assert set(ids.tolist()) == set(range(first + 3)[-5:]) and torch.equal(embeds[:, 0], ids.float())
    queue.push(*rows(50, 9))
    assert set(queue.contents()[1].tolist()) == set(range(54, 59))


def test_state_goes_on_after_loading() -> None:
    one, two = MemoryQueue(5, 3), MemoryQueue(5, 3)
    one.push(*rows(0, 4))
    two.load_state_dict(one.state_dict())
    for queue in (one, two):
        queue.push(*rows(4, 3))
    assert torch.equal(one.contents()[0], two.contents()[0])


def test_non_finite_batches_are_left_out_and_contents_are_copies() -> None:
    queue = MemoryQueue(4, 3)
    embeds, ids = rows(0, 2)
    queue.push(embeds, ids)
    kept = queue.contents()[0]
    embeds[0, 0] = torch.nan
    queue.push(embeds, ids)
    assert len(queue.contents()[1]) == 2 and queue.contents()[0].isfinite().all()
    queue.push(*rows(7, 4))
    assert kept[1, 0] == 1


def test_refusals() -> None:
    with pytest.raises(ValueError, match="holds nothing"):
        MemoryQueue(0, 3)
    with pytest.raises(ValueError, match=r"\(n, 3\)"):
        MemoryQueue(2, 3).push(torch.ones(2, 4), torch.arange(2))
