import numpy as np
import pytest

from encoders.interpret import patterns


def recording(seed=0):
    generator = np.random.default_rng(seed)
    topography = generator.standard_normal(12)
    others = topography[:, None] + generator.standard_normal((12, 2))  # overlap, as neighbours in the brain do
    source = generator.standard_normal((50, 1, 80))
    noise = 3 * others @ generator.standard_normal((50, 2, 80)) + 0.5 * generator.standard_normal((50, 12, 80))
    return topography, source, topography[:, None] * source + noise


def cosine(a, b):
    return abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)


def test_the_pattern_of_the_best_filter_is_the_topography_and_the_filter_is_not():
    topography, source, data = recording()
    samples = np.moveaxis(data, 1, 0).reshape(12, -1)
    best = np.linalg.solve(samples @ samples.T, samples @ source.reshape(-1))
    found = patterns(best[None], data)[:, 0]
    assert cosine(found, topography) >= 0.99
    assert cosine(best, topography) < 0.9


def test_entries_are_slopes_of_sensors_on_the_latent():
    _, _, data = recording()
    filters = np.random.default_rng(1).standard_normal((3, 12))
    found = patterns(filters.astype(np.float32), data.astype(np.float32))
    latent = (filters.astype(np.float32) @ data.astype(np.float32)).astype(np.float64)
    for k in range(3):
        for c in (0, 7):
            slope = np.polyfit(latent[:, k].ravel(), data[:, c].ravel(), 1)[0]
            assert found[c, k] == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_refusals():
    _, _, data = recording()
    with pytest.raises(ValueError, match=r"filters \(2, 11\)"):
        patterns(np.ones((2, 11)), data)
    with pytest.raises(ValueError, match=r"latents \[1\] have no variance"):
        patterns(np.stack([np.ones(12), np.zeros(12)]), data)
