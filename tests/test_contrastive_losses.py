import math

import pytest
import torch
from torch.nn import functional

from alignment.contrastive_losses import (
    brain_module_loss,
    distilled_labels,
    image_similarity_labels,
    multi_positive_info_nce,
    siglip_loss,
    soft_label_loss,
)
from alignment.losses import cosine_loss, info_nce, mse


def embeds(n: int = 12, d: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator) * 3, torch.randn(n, d, generator=generator)


SCALE = torch.tensor(14.0)


def test_without_repeats_the_multi_positive_loss_is_info_nce() -> None:
    brain, image = embeds()
    expected = info_nce(brain, image, SCALE)
    assert torch.allclose(multi_positive_info_nce(brain, image, SCALE), expected, atol=1e-6)
    assert torch.allclose(multi_positive_info_nce(brain, image, SCALE, torch.arange(12) + 5), expected, atol=1e-6)


def test_masking_form_is_info_nce_with_repeats_too() -> None:
    brain, image = embeds()
    ids = torch.arange(12) % 5
    masked = multi_positive_info_nce(brain, image, SCALE, ids, positives=False)
    assert torch.allclose(masked, info_nce(brain, image, SCALE, ids), atol=1e-6)


def test_multi_positive_equals_the_sum_written_out() -> None:
    brain, image = embeds(6)
    ids = torch.tensor([0, 1, 0, 2, 1, 0])
    logits = 14 * functional.normalize(brain, dim=1) @ functional.normalize(image, dim=1).T
    total = 0.0
    for matrix in (logits, logits.T):
        for i in range(6):
            chosen = [j for j in range(6) if ids[j] == ids[i]]
            total -= sum(float(matrix[i, j] - matrix[i].logsumexp(0)) for j in chosen) / len(chosen) / 12
    assert multi_positive_info_nce(brain, image, SCALE, ids).item() == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("n", [2, 7, 64])
def test_identical_vectors_have_the_closed_form(n: int) -> None:
    ones = torch.ones(n, 4) / 2
    eye = torch.eye(n)
    same, apart = math.log(n), math.log(1 + (n - 1) * math.exp(-5.0))
    five = torch.tensor(5.0)
    for ids in (torch.arange(n), torch.zeros(n, dtype=torch.int64)):
        assert multi_positive_info_nce(ones, ones, five, ids).item() == pytest.approx(same, abs=1e-5)
    assert brain_module_loss(ones, ones).item() == pytest.approx(same, abs=1e-5)
    assert multi_positive_info_nce(eye, eye, five).item() == pytest.approx(apart, abs=1e-5)
    assert brain_module_loss(eye * 5, eye * 3).item() == pytest.approx(apart, abs=1e-5)
    pairwise = -math.log(1 / (1 + math.exp(-(10 - 10)))) - (n - 1) * math.log(1 / (1 + math.exp(-10)))
    assert siglip_loss(eye, eye, torch.tensor(10.0), torch.tensor(-10.0)).item() == pytest.approx(pairwise, rel=1e-5)
    assert cosine_loss(eye, eye * 7).item() == pytest.approx(0, abs=1e-6)
    assert cosine_loss(eye, -eye).item() == pytest.approx(2, abs=1e-6)


def test_chance_is_about_log_n() -> None:
    brain, image = embeds(256, 512)
    one, chance = torch.tensor(1.0), math.log(256)
    assert multi_positive_info_nce(brain, image, one).item() == pytest.approx(chance, abs=0.05)
    assert brain_module_loss(functional.normalize(brain, dim=1), image).item() == pytest.approx(chance, abs=0.05)
    labels = image_similarity_labels(image, None, top_k=10, temperature=0.1, soft_weight=0.5)
    assert soft_label_loss(brain, image, one, labels, labels).item() == pytest.approx(chance, abs=0.05)
    assert cosine_loss(brain, image).item() == pytest.approx(1, abs=0.05)


def test_brain_module_loss_is_cross_entropy_over_normalised_candidates() -> None:
    brain, image = embeds()
    logits = brain @ (image / image.norm(dim=1, keepdim=True)).T
    expected = functional.cross_entropy(logits, torch.arange(12))
    assert torch.allclose(brain_module_loss(brain, image), expected, atol=1e-5)
    assert torch.allclose(brain_module_loss(brain, image * 9), expected, atol=1e-5)
    assert not torch.allclose(brain_module_loss(brain * 2, image), expected, atol=1e-2)


def test_siglip_is_open_clips_and_binary_cross_entropy() -> None:
    from open_clip.loss import SigLipLoss

    brain, image = embeds()
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    unit = [functional.normalize(one, dim=-1) for one in (brain, image)]
    loss = siglip_loss(brain, image, scale, bias)
    assert loss.item() == pytest.approx(SigLipLoss()(*unit, scale, bias).item(), rel=1e-6)
    ids = torch.arange(12) % 7
    target = (ids[:, None] == ids[None, :]).float()
    logits = scale * unit[0] @ unit[1].T + bias
    expected = functional.binary_cross_entropy_with_logits(logits, target, reduction="sum") / 12
    assert siglip_loss(brain, image, scale, bias, ids).item() == pytest.approx(expected.item(), rel=1e-5)


def test_repeats_of_a_picture_are_no_negatives() -> None:
    """No loss may push a brain row away from another row that shows the same picture."""
    brain, image = embeds(6)
    image[3] = image[0] + 0.3 * image[3]  # a second view of the picture
    ids = torch.tensor([0, 1, 2, 0, 4, 5])
    bias = torch.tensor(-10.0)
    losses = {
        "multi_positive": lambda b, s: multi_positive_info_nce(b, image, SCALE, s),
        "masked": lambda b, s: multi_positive_info_nce(b, image, SCALE, s, positives=False),
        "brain_module": lambda b, s: brain_module_loss(b, image, s),
        "siglip": lambda b, s: siglip_loss(b, image, SCALE, bias, s),
    }
    for name, loss in losses.items():
        pulls = []
        for stimulus in (ids, torch.arange(6)):
            shown = brain.clone().requires_grad_()
            loss(shown, stimulus).backward()
            assert shown.grad is not None
            pulls.append(-float(shown.grad[0] @ image[3]))
        assert pulls[0] > pulls[1] + 1e-3, name


def test_label_distributions() -> None:
    brain, image = embeds()
    image[4] = image[1]
    ids = torch.arange(12)
    ids[4] = 1
    soft = image_similarity_labels(image, ids, top_k=3, temperature=0.1, soft_weight=1.0)
    assert torch.allclose(soft.sum(dim=1), torch.ones(12)) and torch.equal(soft[1], soft[4])
    n_kept = (soft > 0).sum(dim=1)
    assert (n_kept >= 3).all() and (n_kept[~(soft[:, 1] > 0)] == 3).all() and (soft[1, 1] == soft[1, 4])
    assert (soft.argmax(dim=1) == ids).logical_or(soft.diag() == soft.max(dim=1).values).all()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    moved = image_similarity_labels(image[order], ids[order], top_k=3, temperature=0.1, soft_weight=1.0)
    assert torch.allclose(moved, soft[order][:, order], atol=1e-6)
    views = torch.arange(12) // 2  # two targets of each picture, which need not resemble each other
    kept = image_similarity_labels(embeds()[1], views, top_k=1, temperature=0.1, soft_weight=1.0)
    assert torch.equal(kept > 0, views[:, None] == views[None, :])
    everyone = image_similarity_labels(image, ids, top_k=0, temperature=0.1, soft_weight=0.5)
    assert (everyone > 0).all()
    sharp = image_similarity_labels(image, ids, top_k=0, temperature=0.001, soft_weight=0.5)
    hard = (ids[:, None] == ids[None, :]).float()
    assert torch.allclose(sharp, hard / hard.sum(dim=1, keepdim=True), atol=1e-4)
    loss = soft_label_loss(brain, image, SCALE, sharp, sharp)
    assert torch.allclose(loss, multi_positive_info_nce(brain, image, SCALE, ids), atol=1e-3)


def test_distilled_labels_mix_the_teacher_and_the_truth() -> None:
    brain, image = embeds()
    there, back = distilled_labels(brain, image, SCALE, None, soft_weight=0.4)
    logits = 14 * functional.normalize(brain, dim=1) @ functional.normalize(image, dim=1).T
    assert torch.allclose(there, 0.4 * logits.softmax(1) + 0.6 * torch.eye(12), atol=1e-6)
    assert torch.allclose(back, 0.4 * logits.T.softmax(1) + 0.6 * torch.eye(12), atol=1e-6)
    perfect, _ = distilled_labels(image, image, torch.tensor(1000.0), None, soft_weight=0.4)
    assert torch.allclose(perfect, torch.eye(12), atol=1e-5)
    assert not distilled_labels(brain.requires_grad_(), image, SCALE, None, soft_weight=0.4)[0].requires_grad


def test_a_queue_is_more_candidates_without_the_own_picture() -> None:
    brain, image = embeds()
    further = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))
    ids = torch.arange(12)
    unit_brain, unit = functional.normalize(brain, dim=1), functional.normalize(torch.cat([image, further]), dim=1)
    there = functional.cross_entropy(14 * unit_brain @ unit.T, ids)
    back = functional.cross_entropy(14 * unit[:12] @ unit_brain.T, ids)
    loss = multi_positive_info_nce(brain, image, SCALE, ids, queue=(further, torch.arange(5) + 100))
    assert torch.allclose(loss, (there + back) / 2, atol=1e-5)
    own = (image.clone(), ids)
    assert multi_positive_info_nce(brain, image, SCALE, ids, queue=(image[:1], ids[:1])).isfinite()
    one = brain_module_loss(brain, image, ids, queue=own)
    logits = brain @ unit[:12].T
    doubled = (logits.exp().sum(dim=1) * 2 - logits.diag().exp()).log() - logits.diag()
    assert torch.allclose(one, doubled.mean(), atol=1e-4)
    with pytest.raises(ValueError, match="needs stimulus"):
        brain_module_loss(brain, image, queue=own)


def test_cosine_is_blind_to_lengths_and_mse_is_not() -> None:
    brain, image = embeds()
    for pair in ((brain * 5, image), (brain, image * 0.2)):
        assert torch.allclose(cosine_loss(*pair), cosine_loss(brain, image), atol=1e-6)
        assert not torch.allclose(mse(*pair), mse(brain, image), rtol=0.1)


def test_losses_are_float32_inside_autocast() -> None:
    brain, image = embeds()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [
            multi_positive_info_nce(brain, image, SCALE),
            brain_module_loss(brain, image),
            siglip_loss(brain, image, SCALE, -SCALE),
        ]
    outside = [
        multi_positive_info_nce(brain, image, SCALE),
        brain_module_loss(brain, image),
        siglip_loss(brain, image, SCALE, -SCALE),
    ]
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_refusals() -> None:
    brain, image = embeds()
    with pytest.raises(ValueError, match=r"\(12, 8\).*\(5, 8\)"):
        siglip_loss(brain, image[:5], SCALE, SCALE)
    with pytest.raises(ValueError, match="one picture id per row"):
        multi_positive_info_nce(brain, image, SCALE, torch.arange(3))
