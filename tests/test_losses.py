import math

import pytest
import torch
from torch.nn import functional

from alignment.losses import LogitScale, combined_loss, info_nce, mse


def embeds(n: int = 12, d: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator) * 3, torch.randn(n, d, generator=generator)


def test_info_nce_is_open_clips() -> None:
    from open_clip.loss import ClipLoss

    brain, image = embeds()
    scale = torch.tensor(1 / 0.07)
    expected = ClipLoss()(functional.normalize(brain, dim=-1), functional.normalize(image, dim=-1), scale)
    assert info_nce(brain, image, scale).item() == pytest.approx(expected.item(), abs=1e-6)


def test_orthogonal_pairs_have_the_closed_form() -> None:
    n, scale = 6, 5.0
    loss = info_nce(torch.eye(n), torch.eye(n), torch.tensor(scale))
    assert loss.item() == pytest.approx(math.log(1 + (n - 1) * math.exp(-scale)), abs=1e-6)


def test_chance_is_log_n_and_lengths_do_not_matter() -> None:
    brain, image = embeds(200, 512)
    assert info_nce(brain, image, torch.tensor(1.0)).item() == pytest.approx(math.log(200), abs=0.05)
    scale = torch.tensor(14.0)
    assert torch.allclose(info_nce(brain * 7, image / 3, scale), info_nce(brain, image, scale), atol=1e-6)


def test_same_picture_is_no_negative() -> None:
    brain, image = embeds(4)
    twice = (torch.cat([brain, brain]), torch.cat([image, image]))
    scale = torch.tensor(10.0)
    ids = torch.arange(4).repeat(2)
    logits = scale * functional.normalize(brain, dim=-1) @ functional.normalize(image, dim=-1).T
    own, all_ = logits.diag(), logits.exp()
    others = torch.stack([all_.sum(dim=1) - own.exp(), all_.sum(dim=0) - own.exp()])
    expected = (own.exp() + 2 * others).log() - own  # each other picture is there twice, the own one once
    assert torch.allclose(info_nce(*twice, scale, ids), expected.mean(), atol=1e-5)
    assert info_nce(*twice, scale) > info_nce(*twice, scale, ids)
    assert torch.equal(info_nce(brain, image, scale, torch.arange(4)), info_nce(brain, image, scale))


def test_gradient_is_finite_with_masked_pairs() -> None:
    brain, image = embeds(3)
    brain.requires_grad_()
    info_nce(brain, image, torch.tensor(10.0), torch.zeros(3, dtype=torch.int64)).backward()
    assert brain.grad is not None and brain.grad.isfinite().all()


def test_float32_inside_autocast() -> None:
    brain, image = embeds()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(brain, image, torch.tensor(14.0))
    assert inside.dtype == torch.float32 and inside == info_nce(brain, image, torch.tensor(14.0))


def test_mse_sees_lengths() -> None:
    brain, image = embeds()
    assert mse(brain, image).item() == pytest.approx(((brain - image) ** 2).mean().item())
    assert mse(brain * 2, image) != mse(brain, image)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_mix(weight: float) -> None:
    brain, image = embeds()
    scale = torch.tensor(14.0)
    loss, parts = combined_loss(brain, image, scale, weight)
    assert torch.allclose(loss, weight * parts["contrastive"] + (1 - weight) * parts["mse"])
    assert not parts["mse"].requires_grad


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(3, 8\).*\(4, 8\)"):
        info_nce(torch.ones(3, 8), torch.ones(4, 8), torch.tensor(1.0))


def test_logit_scale_starts_like_clip_and_comes_back_from_its_limits() -> None:
    scale = LogitScale()
    assert scale().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        scale.logit_scale.fill_(9.0)
    answer = scale()
    assert answer.item() == pytest.approx(100)
    answer.backward()
    assert scale.logit_scale.grad is not None and scale.logit_scale.grad > 0
    with torch.no_grad():
        scale.logit_scale.fill_(-3.0)
    assert scale().item() == pytest.approx(1)
