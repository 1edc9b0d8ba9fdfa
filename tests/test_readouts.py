"""Read-outs: scale, and the split into semantic and low-level halves."""

import numpy as np
import pytest

from encoders.readouts import draw_readouts, unit_rows

LATE = np.arange(40) >= 20
D = 24


def embeddings() -> tuple[np.ndarray, np.ndarray]:
    """Concepts differ along the first 8 axes, images of a concept along the next 8."""
    generator = np.random.default_rng(0)
    concepts = np.repeat(np.arange(100), 6)
    embeds = np.zeros((600, D))
    embeds[:, :8] = generator.standard_normal((100, 8))[concepts]
    embeds[:, 8:16] = 0.9 * generator.standard_normal((600, 8))
    return 3.0 * embeds.astype(np.float32), concepts


def test_late_sources_read_concepts_and_early_ones_the_rest() -> None:
    embeds, concepts = embeddings()
    readouts = draw_readouts(LATE, D, 16, np.random.default_rng(1), embeds, concepts)
    amplitudes = readouts.amplitudes(embeds)
    means = np.array([amplitudes[concepts == concept].mean(axis=0) for concept in range(100)])
    share = means.var(axis=0) / amplitudes.var(axis=0)
    assert share[LATE].mean() > 0.7
    assert share[~LATE].mean() < 0.4


@pytest.mark.parametrize("with_concepts", [True, False])
def test_amplitudes_are_centred_with_unit_variance(with_concepts: bool) -> None:
    embeds, concepts = embeddings()
    given = concepts if with_concepts else None
    amplitudes = draw_readouts(LATE, D, 16, np.random.default_rng(1), embeds, given).amplitudes(embeds)
    np.testing.assert_allclose(amplitudes.mean(axis=0), 0.0, atol=1e-6)
    for half in (LATE, ~LATE):
        assert amplitudes[:, half].var(axis=0).mean() == pytest.approx(1.0, abs=0.02)


def test_only_the_direction_of_an_embedding_matters() -> None:
    embeds, concepts = embeddings()
    readouts = draw_readouts(LATE, D, 16, np.random.default_rng(1), embeds, concepts)
    np.testing.assert_allclose(readouts.amplitudes(embeds), readouts.amplitudes(7.0 * embeds), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(unit_rows(embeds), axis=1), 1.0)


def test_without_embeddings_axes_are_random_but_seeded() -> None:
    one, same, other = (draw_readouts(LATE, D, 16, np.random.default_rng(seed)).weights for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1


def test_fewer_dimensions_than_axes() -> None:
    embeds, concepts = embeddings()
    assert np.linalg.matrix_rank(draw_readouts(LATE, D, 64, np.random.default_rng(1), embeds, concepts).weights) <= 16


def test_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(n, 24\)"):
        draw_readouts(LATE, D, 8, np.random.default_rng(1), embeddings()[0][:, :5])
