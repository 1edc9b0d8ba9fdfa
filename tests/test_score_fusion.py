import numpy as np
import pytest
from sklearn.cross_decomposition import CCA

from encoders.score_fusion import average_embeddings, average_ranks, average_similarities, fit_canonical


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def planted(n: int = 2000, noise: float = 0.3, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Return three views (n, 12), (n, 20), (n, 8) that share three latent numbers per row, and those numbers."""
    generator = np.random.default_rng(seed)
    latent = generator.standard_normal((n, 3))
    views = []
    for width in (12, 20, 8):
        mixing = generator.standard_normal((3, width))
        private = generator.standard_normal((n, 4)) @ generator.standard_normal((4, width))
        views.append(latent @ mixing + private + noise * generator.standard_normal((n, width)) + 5)
    return views, latent


def test_the_average_of_equal_inputs_is_the_input() -> None:
    generator = np.random.default_rng(0)
    embeds = unit(generator.standard_normal((7, 16))).astype(np.float32)
    np.testing.assert_allclose(average_embeddings([embeds, embeds, embeds]), embeds, atol=1e-7)
    scores = generator.standard_normal((7, 30))
    scores = (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True)
    np.testing.assert_allclose(average_similarities([scores, scores]), scores, atol=1e-6)
    ranks = average_ranks([scores])
    assert np.array_equal(average_ranks([ranks, ranks]), ranks)


def test_embeddings_count_alike_whatever_their_length() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.standard_normal((2, 5, 8))
    expected = (unit(one) + unit(other)) / 2
    np.testing.assert_allclose(average_embeddings([1e6 * one, other]), expected, atol=1e-6)
    assert average_embeddings([one, other]).dtype == np.float32
    assert np.array_equal(average_embeddings([np.zeros((5, 8)), 2 * one]), (unit(one) / 2).astype("f"))


def test_similarities_do_not_depend_on_scale_and_offset() -> None:
    one, other = np.random.default_rng(0).standard_normal((2, 6, 40))
    expected = average_similarities([one, other])
    np.testing.assert_allclose(average_similarities([100 * one + 7, other]), expected, atol=1e-5)
    assert abs(expected.mean(axis=1)).max() < 1e-6
    flat = average_similarities([np.ones_like(one), other])
    np.testing.assert_allclose(flat, average_similarities([other]) / 2, atol=1e-6)


def test_ranks_see_the_order_only_and_share_ties() -> None:
    scores = np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 1.0]])
    assert average_ranks([scores]).tolist() == [[1.0, 0.0, 0.5], [0.75, 0.75, 0.0]]
    assert np.array_equal(average_ranks([np.exp(scores), scores]), average_ranks([scores]))


@pytest.mark.parametrize("fuse", [average_similarities, average_ranks])
def test_two_noisy_scores_are_better_than_one(fuse) -> None:
    generator = np.random.default_rng(0)
    truth = 2.2 * np.eye(200)
    parts = [truth + generator.standard_normal((200, 200)) for _ in range(2)]

    def top_1(scores: np.ndarray) -> float:
        return float((scores.argmax(axis=1) == np.arange(200)).mean())

    assert top_1(fuse(parts)) >= max(map(top_1, parts)) + 0.05


def test_canonical_correlation_recovers_a_planted_subspace() -> None:
    views, latent = planted()
    space = fit_canonical(views[:2], 3)
    assert space.correlations[0] >= 0.9 and (np.diff(space.correlations) <= 1e-9).all()
    explained = 1 - np.linalg.lstsq(space.average(views[:2]), latent, rcond=None)[1].sum() / (latent**2).sum()
    assert explained >= 0.9
    fresh = [fit_canonical([view[:1000] for view in views[:2]], 3).project(i, views[i][1000:]) for i in range(2)]
    assert np.corrcoef(fresh[0][:, 0], fresh[1][:, 0])[0, 1] >= 0.9


def test_canonical_correlation_is_that_of_scikit_learn() -> None:
    views, _ = planted(n=400, noise=1.0)
    space = fit_canonical(views[:2], 3)
    oracle = CCA(n_components=3, max_iter=5000, tol=1e-12).fit(views[0], views[1])
    variates = [part.T for part in oracle.transform(*views[:2])]
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(*variates, strict=True)]
    np.testing.assert_allclose(space.correlations, expected, atol=1e-4)
    ours = space.project(0, views[0])
    theirs = oracle.transform(views[0])
    for k in range(3):
        assert abs(np.corrcoef(ours[:, k], theirs[:, k])[0, 1]) > 0.999
    np.testing.assert_allclose(ours.std(axis=0), 1, atol=1e-5)


def test_three_views_agree_on_what_they_share() -> None:
    views, latent = planted()
    space = fit_canonical(views, 3)
    assert space.correlations[0] >= 0.9
    fused = space.average(views)
    explained = 1 - np.linalg.lstsq(fused, latent, rcond=None)[1].sum() / (latent**2).sum()
    assert explained >= 0.9
    left_out = space.average(views[:2])  # the third is the target: found from the other two
    hits = unit(left_out) @ unit(space.project(2, views[2])).T
    assert (hits[:200, :200].argmax(axis=1) == np.arange(200)).mean() >= 0.2  # chance 0.005; three numbers per row


def test_noise_shares_nothing_that_holds_on_other_rows() -> None:
    one, other = np.random.default_rng(0).standard_normal((2, 600, 10))
    space = fit_canonical([one[:300], other[:300]], 2)
    left, right = space.project(0, one[300:]), space.project(1, other[300:])
    assert max(abs(np.corrcoef(left[:, k], right[:, k])[0, 1]) for k in range(2)) < 0.15


def test_shrinkage_and_empty_directions_keep_it_finite() -> None:
    views, _ = planted(n=15)
    space = fit_canonical(views[:2], 2, shrinkage=0.1)
    assert np.isfinite(space.weights[1]).all()
    doubled = [np.concatenate([view, view], axis=1) for view in planted()[0][:2]]
    plain, copied = fit_canonical(planted()[0][:2], 3), fit_canonical(doubled, 3)
    np.testing.assert_allclose(copied.correlations, plain.correlations, atol=1e-8)


def test_what_does_not_fit_is_refused() -> None:
    one = np.zeros((4, 3))
    with pytest.raises(ValueError, match="expected one or more arrays of one shape"):
        average_embeddings([])
    with pytest.raises(ValueError, match="expected one or more arrays of one shape"):
        average_similarities([one, one[:2]])
    with pytest.raises(ValueError, match="gallery of at least 2"):
        average_ranks([one[:, :1]])
    with pytest.raises(ValueError, match="1 views"):
        fit_canonical([one], 1)
    with pytest.raises(ValueError, match="rows"):
        fit_canonical([one, one[:2]], 1)
    with pytest.raises(ValueError, match="n_components 4 must be in 1"):
        fit_canonical([planted(50)[0][0][:, :3], planted(50)[0][1]], 4)
