import pytest
import torch
from torch.nn import functional

from encoders.aggregate_fusion import AggregateFusion, AggregateFusionConfig
from encoders.fusion import AddFusionConfig as AddConfig
from encoders.fusion import AnyFusionConfig, ConcatFusionConfig, build_fusion
from tests.toy_fusion import ENCODERS, SHAPES, D, inputs


def build(config: AnyFusionConfig, seed: int = 0) -> AggregateFusion:
    torch.manual_seed(seed)
    fusion = build_fusion(config, ENCODERS, SHAPES, D)
    assert isinstance(fusion, AggregateFusion)
    return fusion.eval()


def test_concat_is_one_dense_layer_over_normalised_embeddings() -> None:
    fusion = build(ConcatFusionConfig())
    data, positions, subject = inputs()
    embeds, _ = fusion.embed_each(data, positions, subject)
    parts = [functional.layer_norm(one, (D,)) for one in embeds.values()]
    linear = fusion.aggregate.linear
    assert isinstance(linear, torch.nn.Linear) and linear.weight.shape == (D, 2 * D)
    torch.testing.assert_close(fusion(data, positions, subject), linear(torch.cat(parts, dim=1)))
    n_encoders = sum(p.numel() for p in fusion.encoders.parameters())
    assert sum(p.numel() for p in fusion.parameters()) - n_encoders == 2 * D * D + D


def test_add_is_symmetric_and_has_no_parameters() -> None:
    fusion = build(AddConfig())
    data, positions, subject = inputs()
    embeds, available = fusion.embed_each(data, positions, subject)
    swapped = dict(zip(embeds, reversed(list(embeds.values())), strict=True))
    assert torch.equal(fusion.combine(swapped, available), fusion.combine(embeds, available))
    assert all(name.startswith("encoders.") for name in fusion.state_dict())


def test_the_louder_modality_does_not_win() -> None:
    fusion = build(ConcatFusionConfig())
    data, positions, subject = inputs()
    embeds, available = fusion.embed_each(data, positions, subject)
    louder = {**embeds, "meg": 1e4 * embeds["meg"]}
    torch.testing.assert_close(
        fusion.combine(louder, available), fusion.combine(embeds, available), atol=1e-2, rtol=1e-2
    )


def test_learned_stand_ins_take_the_place_of_missing_modalities() -> None:
    fusion = build(AggregateFusionConfig(kind="concat", missing="token"))
    data, positions, subject = inputs()
    assert fusion.tokens is not None
    with torch.no_grad():
        fusion.tokens.normal_()
    meg = {"meg": torch.zeros(6, dtype=torch.bool)}
    embeds, _ = fusion.embed_each(data, positions, subject)
    own = functional.layer_norm(embeds["eeg"], (D,))
    linear = fusion.aggregate.linear
    assert isinstance(linear, torch.nn.Linear)
    expected = linear(torch.cat([own, fusion.tokens[1].expand(6, -1)], dim=1))
    torch.testing.assert_close(fusion(data, positions, subject, meg), expected)
    torch.testing.assert_close(fusion.answers(data, positions, subject)["eeg"], expected)


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="rank 8 has no effect with kind 'gated'"):
        build(AggregateFusionConfig(rank=8))
    with pytest.raises(ValueError, match="expected at least two; use the fusion 'single'"):
        build_fusion(ConcatFusionConfig(), {"eeg": ENCODERS["eeg"]}, SHAPES, D)
