"""Windows average what they say, and aligning removes what differs between people and nothing else."""

import numpy as np
import pytest

from encoders.erp_features import ALIGNMENTS, align_groups, window_means


def epochs(n: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 5, 50))


def test_windows_are_means_of_their_samples() -> None:
    data = epochs()
    found = window_means(data, sfreq=100.0, tmin=-0.1, start=0.0, stop=0.35, width=0.1)
    assert found.shape == (12, 5, 3)
    for index in range(3):
        assert np.allclose(found[..., index], data[..., 10 + 10 * index : 20 + 10 * index].mean(axis=2))


@pytest.mark.parametrize("window", [(-0.2, 0.3, 0.1), (0.0, 0.5, 0.1), (0.0, 0.3, 0.001), (0.3, 0.3, 0.1)])
def test_windows_outside_the_epoch_are_refused(window: tuple[float, float, float]) -> None:
    start, stop, width = window
    with pytest.raises(ValueError, match="do not fit"):
        window_means(epochs(), sfreq=100.0, tmin=-0.1, start=start, stop=stop, width=width)


def test_a_person_is_aligned_by_the_own_epochs_alone() -> None:
    data, person = epochs(), np.repeat(["a", "b", "c"], 4)
    for kind in ALIGNMENTS:
        whole = align_groups(data, person, kind)
        assert np.allclose(whole[4:8], align_groups(data[4:8], person[4:8], kind))
        order = np.random.default_rng(1).permutation(12)
        assert np.allclose(whole[order], align_groups(data[order], person[order], kind))


def test_each_kind_undoes_what_it_is_for() -> None:
    data, person = epochs(400), np.repeat(["a", "b"], 200)
    mixing = np.eye(5) + 0.3 * np.random.default_rng(2).standard_normal((5, 5))
    changed = data.copy()
    changed[200:] *= 7.0
    assert np.allclose(align_groups(changed, person, "scale"), align_groups(data, person, "scale"))
    assert np.array_equal(align_groups(changed, person, "none"), changed)
    changed[200:] += np.random.default_rng(3).standard_normal((5, 50))
    assert np.allclose(align_groups(changed, person, "centre"), align_groups(data, person, "centre"))
    white = align_groups(mixing @ data, person, "whiten")
    covariance = np.einsum("nct,ndt->cd", white[:200], white[:200])
    covariance /= np.trace(covariance) / 5
    before = np.einsum("nct,ndt->cd", mixing @ data[:200], mixing @ data[:200])
    before /= np.trace(before) / 5
    assert np.abs(covariance - np.eye(5)).max() < 0.5 * np.abs(before - np.eye(5)).max()


def test_one_epoch_cannot_be_centred_on_itself() -> None:
    with pytest.raises(ValueError, match="at least 2 epochs of a"):
        align_groups(epochs(1), np.array(["a"]), "centre")
    assert align_groups(epochs(1), np.array(["a"]), "scale").shape == (1, 5, 50)
    with pytest.raises(ValueError, match="groups for 3 epochs"):
        align_groups(epochs(3), np.array(["a"]), "none")
