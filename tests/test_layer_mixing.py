import pytest
import torch
from pydantic import ValidationError

from alignment.layer_mixing import LayerMixing, LayerMixingConfig
from alignment.losses import info_nce

SAMGA = LayerMixingConfig(layers=(20, 24, 28, 32, 36), centre=28, spread=4)


def bank(n: int = 6, n_members: int = 5, d: int = 8) -> torch.Tensor:
    return torch.randn(n, n_members, d, generator=torch.Generator().manual_seed(0))


def test_untrained_weights_are_the_prior() -> None:
    mixing = LayerMixing(SAMGA, 8, n_subjects=3).eval()
    expected = torch.tensor([-2.0, -1, 0, -1, -2]).exp()
    assert torch.allclose(mixing.weights(), expected / expected.sum())
    mixed = mixing(bank(), torch.arange(6))
    assert torch.allclose(mixed, (bank() * (expected / expected.sum())[:, None]).sum(dim=1), atol=1e-6)


def test_people_count_in_training_only() -> None:
    mixing = LayerMixing(SAMGA.model_copy(update={"subject_dropout": 0.0}), 8, n_subjects=2)
    with torch.no_grad():
        mixing.subject_logits[1, 4] = 5.0
    subject = torch.tensor([0, 1, 2])
    trained = mixing.train().weights(subject)
    assert trained[1, 4] > 0.8 and torch.equal(trained[0], trained[2])  # index 2 is an unknown person
    assert torch.allclose(trained[0], mixing.weights())
    asked = mixing.eval().weights(subject)
    assert torch.equal(asked[0], asked[1]) and torch.allclose(asked.sum(dim=1), torch.ones(3))


def test_subject_dropout_is_the_share_of_rows_with_global_weights() -> None:
    mixing = LayerMixing(SAMGA, 8, n_subjects=1)
    with torch.no_grad():
        mixing.subject_logits[0, 0] = 3.0
    torch.manual_seed(0)
    weights = mixing.weights(torch.zeros(4000, dtype=torch.int64))
    assert float((weights[:, 0] < 0.2).float().mean()) == pytest.approx(0.3, abs=0.03)
    everyone = LayerMixing(SAMGA.model_copy(update={"subject_dropout": 1.0}), 8, n_subjects=1)
    everyone.load_state_dict(mixing.state_dict())
    assert torch.allclose(everyone.weights(torch.zeros(9, dtype=torch.int64)), everyone.weights(), atol=1e-6)


def test_the_layer_that_brains_follow_is_found() -> None:
    generator = torch.Generator().manual_seed(1)
    members = torch.randn(400, 5, 16, generator=generator)
    brain = members[:, 3] + 0.5 * torch.randn(400, 16, generator=generator)
    mixing = LayerMixing(SAMGA, 16, n_subjects=2)
    optimizer = torch.optim.Adam(mixing.parameters(), lr=0.05)
    subject = torch.arange(400) % 2
    for _ in range(60):
        loss = info_nce(brain, mixing(members, subject), torch.tensor(10.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = mixing.eval().weights()
    assert int(weights.argmax()) == 3 and weights[3] > 0.7


def test_projection() -> None:
    mixing = LayerMixing(SAMGA.model_copy(update={"projection_dim": 4}), 8)
    assert mixing(bank()).shape == (6, 4) and mixing.embed_dim == 4
    assert len(list(mixing.parameters())) == 6


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"\(n, 5, d\)"):
        LayerMixing(SAMGA, 8)(bank(n_members=4))
    with pytest.raises(ValidationError, match="twice"):
        LayerMixingConfig(layers=(1, 1), centre=1, spread=1)
