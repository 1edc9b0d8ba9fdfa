import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from alignment.alignment_module import AlignmentModule
from alignment.losses import AlignmentLossConfig
from alignment.matching_loss import Matching, hard_negatives, matching_loss
from encoders.cross_attention import CrossAttentionFusion, CrossAttentionFusionConfig
from encoders.late_fusion import LateFusionConfig
from encoders.networks.eeg_project import EEGProjectConfig
from tests.toy_fusion import ENCODERS, SHAPES, D, inputs


def test_hard_negatives_are_never_the_positive_nor_its_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    stimulus = torch.tensor([0, 1, 2, 0, 1, 3, 4, 4])
    similarity = 50 * torch.eye(8) + 40 * (stimulus[:, None] == stimulus[None]).float()
    for _ in range(500):
        drawn = hard_negatives(similarity, stimulus, generator)
        assert (stimulus[drawn] != stimulus).all()


def test_hard_negatives_follow_the_softmax_of_similarities() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(6, 6, generator=generator)
    draws = torch.stack([hard_negatives(similarity, torch.arange(6), generator) for _ in range(6000)])
    seen = functional.one_hot(draws, 6).float().mean(dim=0)
    expected = similarity.masked_fill(torch.eye(6, dtype=torch.bool), -math.inf).softmax(dim=1)
    assert (seen - expected).abs().max() < 0.03
    again = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    assert torch.equal(*(hard_negatives(similarity, torch.arange(6), one) for one in again))


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="another picture for each of 3 rows"):
        hard_negatives(torch.zeros(3, 3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="must be"):
        hard_negatives(torch.zeros(3, 2), torch.arange(3))


def test_right_pairs_score_0_and_a_constant_answer_no_better_than_the_prior() -> None:
    stimulus, flat = torch.arange(10), torch.zeros(10, 10)
    perfect = matching_loss(lambda a, b: 100.0 * (a == b) - 50.0, flat, stimulus)
    assert perfect < 1e-6
    constant = matching_loss(lambda a, b: torch.full((len(a),), math.log(1 / 2)), flat, stimulus)
    assert constant.item() == pytest.approx(-math.log(1 / 3) / 3 - 2 * math.log(2 / 3) / 3, abs=1e-6)
    assert constant.item() == pytest.approx(0.637, abs=1e-3)


def fusion_of_tokens() -> CrossAttentionFusion:
    encoders = {name: EEGProjectConfig(dropout=0.0) for name in ENCODERS}
    config = CrossAttentionFusionConfig(style="bidirectional", layers=1, width=16, heads=2, layer_scale=0.1)
    fusion = config.build(encoders, SHAPES, D)
    nn.init.normal_(fusion.head.weight, std=0.02)
    return fusion


def test_the_layers_learn_to_tell_pairs_and_the_encoders_are_left_alone() -> None:
    torch.manual_seed(0)
    fusion, matching = fusion_of_tokens().train(), Matching(D)
    mixing = {name: torch.randn(3, shape.n_channels, shape.n_times) for name, shape in SHAPES.items()}
    parameters = [*matching.parameters(), *(p for n, p in fusion.named_parameters() if not n.startswith("encoders."))]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    _, positions, _ = inputs()
    losses = []
    for _ in range(200):
        latent = torch.randn(48, 3).sign()
        data = {name: torch.einsum("nk,kct->nct", latent, one) for name, one in mixing.items()}
        stimulus = (latent > 0).long() @ torch.tensor([1, 2, 4])
        loss = matching(fusion, data, positions, torch.zeros(48).long(), stimulus, torch.tensor(1.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is None for p in fusion.encoders.parameters())
    assert sum(losses[-20:]) / 20 < 0.4 < 0.6 < sum(losses[:5]) / 5


def test_the_training_module_adds_it_where_it_has_an_effect() -> None:
    data, positions, subject = inputs()
    target, stimulus = torch.randn(6, D), torch.arange(6)
    module = AlignmentModule(fusion_of_tokens(), positions, AlignmentLossConfig(matching_weight=0.5))
    *_, extra = module(data, subject, target, stimulus)
    assert list(extra) == ["matching"] and 0 < extra["matching"].item() < 2
    extra["matching"].backward()
    assert module.matching is not None and module.matching.score.weight.grad is not None
    *_, extra = AlignmentModule(fusion_of_tokens(), positions, AlignmentLossConfig())(data, subject, target, stimulus)
    assert extra == {}
    late = LateFusionConfig().build(ENCODERS, SHAPES, D)
    with pytest.raises(ValueError, match="matching_weight 0.5 has no effect with LateFusion"):
        AlignmentModule(late, positions, AlignmentLossConfig(matching_weight=0.5))
