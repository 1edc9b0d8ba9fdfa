import pytest
import torch
from torch import nn

from encoders.layers.transformer_block import PatchTransformer, TransformerBlock, TransformerEncoder


def _oracle(block, width, heads, expansion=4):
    """torch's own layer with the block's weights."""
    layer = nn.TransformerEncoderLayer(
        width, heads, expansion * width, 0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(block.query_key_value.weight)
        layer.self_attn.in_proj_bias.copy_(block.query_key_value.bias)
    pairs = [
        (layer.self_attn.out_proj, block.project[0]),
        (layer.norm1, block.attention_norm),
        (layer.norm2, block.hidden[0]),
        (layer.linear1, block.hidden[1]),
        (layer.linear2, block.hidden[3]),
    ]
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    return layer


@pytest.mark.parametrize("causal", [False, True])
def test_a_block_equals_torchs_pre_norm_layer(causal):
    torch.manual_seed(0)
    block = TransformerBlock(12, 3, 0.0, causal).double()
    tokens = torch.randn(2, 7, 12, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64) if causal else None
    torch.testing.assert_close(block(tokens), _oracle(block, 12, 3)(tokens, mask))


def test_causal_tokens_do_not_see_the_future():
    torch.manual_seed(0)
    encoder = TransformerEncoder(12, 3, 2, 0.1, causal=True).eval()
    tokens = torch.randn(2, 7, 12)
    other = tokens.clone()
    other[:, 4:] = 100 * torch.randn(2, 3, 12)
    assert torch.equal(encoder(tokens)[:, :4], encoder(other)[:, :4])
    assert not torch.allclose(encoder(tokens)[:, 4:], encoder(other)[:, 4:])


def test_rows_do_not_see_each_other_and_the_last_patch_is_filled_with_zeros():
    torch.manual_seed(0)
    network = PatchTransformer(64, 10, 12, 3, 1, 0.0).eval()
    data = torch.randn(2, 5, 64)
    tokens = network(data)
    assert tokens.shape == (2, 5, 7, 12)
    other = data.clone()
    other[:, 1:] = 0
    torch.testing.assert_close(network(other)[:, 0], tokens[:, 0])
    longer = PatchTransformer(70, 10, 12, 3, 1, 0.0).eval()
    longer.load_state_dict(network.state_dict())
    torch.testing.assert_close(longer(torch.cat([data, torch.zeros(2, 5, 6)], -1)), tokens)


def test_heads_must_share_the_width():
    with pytest.raises(ValueError, match="width 10 cannot be shared by 3 heads"):
        TransformerBlock(10, 3, 0.0)
