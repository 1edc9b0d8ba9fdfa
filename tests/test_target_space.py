import numpy as np

from alignment.retrieval import cosine_similarity
from alignment.target_space import TargetSpace
from tests.toy_brain import toy_splits

EMBEDS = toy_splits()["train"].embeds


def test_standardised_targets_are_centred_with_unit_variance_whatever_their_length() -> None:
    space = TargetSpace.fit(EMBEDS)
    standard = space.standardise(EMBEDS)
    assert standard.dtype == np.float32 and np.abs(standard.mean(axis=0)).max() < 1e-5
    assert np.isclose(np.square(standard).mean(), 1, atol=1e-4)
    assert np.allclose(space.standardise(EMBEDS * 7), standard, atol=1e-5)


def test_similarity_is_the_centred_cosine_until_a_map_is_trained() -> None:
    space = TargetSpace.fit(EMBEDS)
    brain = np.random.default_rng(0).standard_normal((5, 16)).astype("f")
    unit = EMBEDS / np.linalg.norm(EMBEDS, axis=1, keepdims=True)
    assert np.allclose(space.similarity(brain, EMBEDS), cosine_similarity(brain, unit - space.centre), atol=1e-5)
    basis = np.diag(np.arange(1, 17)).astype("f")
    mapped = space.with_basis(basis).similarity(brain, EMBEDS)
    assert np.allclose(mapped, cosine_similarity(brain, space.standardise(EMBEDS) @ basis), atol=1e-5)


def test_arrays_rebuild_it() -> None:
    space = TargetSpace.fit(EMBEDS)
    again = TargetSpace.from_arrays(space.arrays())
    assert again.embed_dim == 16 and np.array_equal(again.standardise(EMBEDS), space.standardise(EMBEDS))
    assert np.allclose(space.mean, EMBEDS.mean(axis=0)) and np.allclose(space.std, EMBEDS.std(axis=0), rtol=1e-4)
