"""A head changes nothing below it, for any encoder and any width of the target registry."""

import pytest
import torch
from test_build import SHAPE, SMALL, _batch

from encoders.build import build_encoder
from encoders.heads import BrainClassifier
from encoders.networks.lf_cnn import LFCNNConfig


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_embeddings_are_the_bare_encoders_bit_for_bit(config):
    torch.manual_seed(0)
    encoder = build_encoder(config, SHAPE, 32).eval()
    inputs = _batch(SHAPE)
    bare = encoder(*inputs)
    classifier = BrainClassifier(encoder, 32, 5).eval()
    assert torch.equal(classifier.embed(*inputs), bare)
    logits = classifier.classify(*inputs)
    assert logits.shape == (4, 5)
    torch.testing.assert_close(logits, bare @ classifier.head.weight.T + classifier.head.bias)
    assert torch.equal(classifier(*inputs), logits)
    again = build_encoder(config, SHAPE, 32).eval()
    again.load_state_dict(
        {name.removeprefix("encoder."): v for name, v in classifier.state_dict().items() if name.startswith("encoder.")}
    )
    assert torch.equal(again(*inputs), bare)


@pytest.mark.parametrize("embed_dim", [512, 768, 1024, 1152, 1280, 1536])
def test_width_is_that_of_the_target(embed_dim):
    torch.manual_seed(0)
    classifier = BrainClassifier(build_encoder(LFCNNConfig(), SHAPE, embed_dim), embed_dim, 7).eval()
    inputs = _batch(SHAPE)
    assert classifier.embed(*inputs).shape == (4, embed_dim) and classifier.classify(*inputs).shape == (4, 7)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="n_classes=1"):
        BrainClassifier(torch.nn.Identity(), 32, 1)
