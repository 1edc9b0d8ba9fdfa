import numpy as np
import pytest
from scipy.stats import ortho_group

from alignment.few_shot import FewShotConfig, fit_few_shot, fit_map
from alignment.retrieval import cosine_similarity

D = 10


def planted(n: int, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, brain embeddings that are a rotated and shifted copy of them, and the rotation back."""
    generator = np.random.default_rng(seed)
    rotation = ortho_group.rvs(D, random_state=5)
    images = generator.standard_normal((n, D))
    brain = 4 * images @ rotation.T + 2 + noise * generator.standard_normal((n, D))
    return images, brain, rotation


def top_1(mapped: np.ndarray, images: np.ndarray) -> float:
    similarity = cosine_similarity(np.asarray(mapped, np.float32), np.asarray(images, np.float32))
    return float((similarity.argmax(axis=1) == np.arange(len(images))).mean())


def test_procrustes_recovers_a_planted_rotation() -> None:
    images, brain, rotation = planted(40)
    found = fit_map(brain, images, "orthogonal", 0.0)
    assert np.allclose(found.matrix, rotation, atol=1e-8)
    fresh, shown, _ = planted(200, seed=9)
    mapped = found(shown)
    assert np.allclose(mapped, 4 * fresh, atol=1e-4) and top_1(mapped, fresh) == 1.0


def test_orthogonal_maps_stay_orthogonal_whatever_the_penalty() -> None:
    images, brain, _ = planted(15, noise=2.0)
    for penalty in (0.0, 0.1, 1.0, 100.0):
        matrix = fit_map(brain, images, "orthogonal", penalty).matrix
        assert np.allclose(matrix.T @ matrix, np.eye(D), atol=1e-8)


def test_affine_without_penalty_is_least_squares() -> None:
    images, brain, _ = planted(60, noise=1.0)
    found = fit_map(brain, images, "affine", 0.0)
    scale = np.sqrt(brain.var(axis=0).mean() / images.var(axis=0).mean())
    design = np.hstack([brain, np.ones((60, 1))])
    expected = design @ np.linalg.lstsq(design, scale * images, rcond=None)[0]
    assert np.allclose(found(brain), expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["affine", "orthogonal"])
def test_the_penalty_leads_from_the_data_to_the_identity(kind: str) -> None:
    images, brain, _ = planted(30, noise=1.0)
    distances = []
    for penalty in (0.0, 0.1, 1.0, 10.0, 1e9):
        found = fit_map(brain, images, kind, penalty)  # type: ignore[arg-type]
        distances.append(float(np.abs(found.matrix - np.eye(D)).max()))
    assert distances == sorted(distances, reverse=True) and distances[-1] < 1e-6 and distances[0] > 0.1
    assert np.allclose(found(brain), brain, atol=1e-4)  # the offsets are gone as well
    identity = fit_map(brain, images, kind, float("inf"))  # type: ignore[arg-type]
    assert identity.kind == "identity" and np.allclose(identity(brain), brain, atol=1e-6)


def test_cross_validation_finds_a_map_where_there_is_one_and_none_where_there_is_none() -> None:
    images, brain, _ = planted(60, noise=3.0)
    concepts = [str(i // 2) for i in range(60)]
    found = fit_few_shot(brain, images, concepts, FewShotConfig())
    fresh, shown, _ = planted(40, noise=3.0, seed=3)
    assert found.kind == "orthogonal" and top_1(found(shown), fresh) > top_1(shown, fresh) + 0.5
    generator = np.random.default_rng(4)
    right = images + 0.3 * generator.standard_normal(images.shape)
    assert fit_few_shot(right, images, concepts, FewShotConfig()).kind == "identity"


def test_a_calibration_that_is_not_about_the_pictures_does_no_harm() -> None:
    """Wrong labels: whatever is chosen, unseen pictures are found at chance, neither better nor worse."""
    generator = np.random.default_rng(0)
    hits = []
    for seed in range(10):
        images, brain, _ = planted(40, seed=seed)
        wrong = images[generator.permutation(40)]
        found = fit_few_shot(brain, wrong, [str(i) for i in range(40)], FewShotConfig(seed=seed))
        fresh, shown, _ = planted(40, seed=100 + seed)
        hits.append(top_1(found(shown), fresh))
    assert np.mean(hits) < 0.1  # chance 0.025


def test_too_little_to_learn_from_is_refused() -> None:
    images, brain, _ = planted(40)
    with pytest.raises(ValueError, match="expected at least 8 pictures and 10 concepts"):
        fit_few_shot(brain[:6], images[:6], list("abcdef"), FewShotConfig())
    with pytest.raises(ValueError, match="40 pictures and 4 concepts"):
        fit_few_shot(brain, images, ["a", "b", "c", "d"] * 10, FewShotConfig())
    with pytest.raises(ValueError, match="penalty of at least 0"):
        fit_map(brain, images, "affine", -1.0)
