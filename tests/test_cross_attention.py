import pytest
import torch
from torch import Tensor, nn

from encoders.cross_attention import CrossAttentionFusion, CrossAttentionFusionConfig
from encoders.token_fusion import Style
from tests.toy_fusion import ENCODERS, SHAPES, D, inputs

SMALL = {"width": 8, "heads": 2, "n_queries": 3}


class Bare(nn.Module):
    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        return data.new_zeros(len(data), D)


def build(style: Style, seed: int = 0) -> CrossAttentionFusion:
    torch.manual_seed(seed)
    return CrossAttentionFusionConfig(style=style, **SMALL).build(ENCODERS, SHAPES, D).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("style", ["albef", "bidirectional", "two_way"])
def test_starts_as_the_late_concatenation_and_then_reads_tokens(style: Style) -> None:
    fusion = build(style)
    data, positions, subject = inputs()
    embeds, _ = fusion.embed_each(data, positions, subject)
    start = sum(nn.functional.layer_norm(one, (D,)) for one in embeds.values())
    torch.testing.assert_close(fusion(data, positions, subject), start)
    nn.init.normal_(fusion.head.weight)
    tokens = fusion.tokens_each(data, positions, subject)
    joint = fusion.join(embeds, tokens)
    assert tokens["eeg"].shape == (6, 20, 12)
    for name in tokens:  # either matters, and so does its order, but of what only gives keys and values
        assert not torch.allclose(fusion.join(embeds, {**tokens, name: 2 * tokens[name] + 1}), joint)
        turned = fusion.join(embeds, {**tokens, name: tokens[name].flip(1)})
        assert torch.allclose(turned, joint, atol=1e-5) is (style == "albef" and name == "meg")


@pytest.mark.parametrize("style", ["albef", "bidirectional", "two_way"])
def test_layers_of_scale_0_leave_late_fusion_and_own_tokens(style: Style) -> None:
    fusion = build(style)
    nn.init.normal_(fusion.head.weight)
    data, positions, subject = inputs()
    with torch.no_grad():
        for name, parameter in fusion.layers.named_parameters():
            if name.endswith("scale"):
                parameter.zero_()
    expected = fusion(data, positions, subject)
    with torch.no_grad():
        for name, parameter in fusion.layers.named_parameters():
            if not name.endswith("scale"):
                parameter.mul_(3)
    assert torch.equal(fusion(data, positions, subject), expected)


def test_encoders_without_tokens_and_other_numbers_are_refused() -> None:
    config = CrossAttentionFusionConfig()
    with pytest.raises(ValueError, match="got Bare for 'eeg', expected an encoder with tokens"):
        CrossAttentionFusion({"eeg": Bare(), "meg": Bare()}, D, config)
    with pytest.raises(ValueError, match="expected exactly two"):
        config.build({"eeg": ENCODERS["eeg"]}, SHAPES, D)
    with pytest.raises(ValueError, match="does not divide among 3 heads"):
        CrossAttentionFusionConfig(width=8, heads=3).build(ENCODERS, SHAPES, D)
