import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from alignment.projector import Projector, fit_projection


def answers(n: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    image = 5 + 2 * generator.standard_normal((n, 8))
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))[0]
    return ((image - 5) @ turn + noise * generator.standard_normal((n, 8)) + 3).astype("f"), image.astype("f")


def fitted(noise: float) -> Projector:
    brain, image = answers(2000, noise, 2)
    mean = image.mean(axis=0)
    weight, centre = fit_projection(brain, image, answers(500, noise, 3), mean)
    return Projector({"eeg": weight}, {"eeg": centre}, mean)


def test_exact_answers_are_recovered() -> None:
    brain, image = answers(100, 0.0, 4)
    assert np.allclose(fitted(0.0)(brain, "eeg"), image, atol=0.05)


def test_spread_is_that_of_the_targets_however_noisy_the_answers() -> None:
    brain, image = answers(1000, 4.0, 4)
    projected = fitted(4.0)(brain, "eeg")
    assert projected.dtype == np.float32
    assert projected.std() / image.std() == pytest.approx(1, abs=0.1)
    plain = LinearRegression().fit(*answers(2000, 4.0, 2)).predict(brain)
    assert plain.std() / image.std() < 0.6
    ours, theirs = ((one - one.mean(axis=0)).ravel() for one in (projected, plain))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99


def test_arrays_rebuild_it_and_unknown_combinations_are_refused() -> None:
    projector = fitted(1.0)
    brain, _ = answers(5, 1.0, 5)
    assert np.array_equal(Projector.from_arrays(projector.arrays())(brain, "eeg"), projector(brain, "eeg"))
    with pytest.raises(ValueError, match=r"'meg'.*\['eeg'\]"):
        projector(brain, "meg")
