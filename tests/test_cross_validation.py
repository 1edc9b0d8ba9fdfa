"""Groups are held out whole, and p values are uniform where there is nothing to find."""

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.model_selection import LeaveOneGroupOut

from alignment.classification_scores import balanced_accuracy
from alignment.cross_validation import leave_one_group_out, permutation_p_value


def test_equals_scikit_learn():
    groups = np.random.default_rng(0).choice(["a", "b", "c"], size=30)
    found = list(leave_one_group_out(groups))
    expected = list(LeaveOneGroupOut().split(np.zeros(30), groups=groups))
    assert len(found) == 3
    for (train, test), (other_train, other_test) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(train, other_train)
        np.testing.assert_array_equal(test, other_test)


def slope(labels, predicted):
    return float(((labels - labels.mean()) * predicted).sum())


@pytest.mark.parametrize("grouped", [False, True])
def test_p_values_are_uniform_under_the_null(grouped):
    groups = np.repeat(np.arange(4), 10) if grouped else None
    found = []
    for seed in range(400):
        generator = np.random.default_rng([7, seed])
        labels = generator.integers(2, size=40)
        found.append(
            permutation_p_value(slope, labels, generator.standard_normal(40), groups, n_permutations=99, seed=seed)
        )
    # 100 possible values, so the distribution's own steps are 0.01
    assert kstest(found, "uniform").statistic < 1.63 / np.sqrt(400) + 0.01
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.085


def test_ties_make_it_careful():
    found = []
    for seed in range(200):
        generator = np.random.default_rng([8, seed])
        labels, predicted = generator.integers(2, size=(2, 20))
        found.append(permutation_p_value(balanced_accuracy, labels, predicted, n_permutations=99, seed=seed))
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(found) <= level) <= level + 2 * np.sqrt(level * (1 - level) / 200)


def test_a_real_effect_is_found():
    labels = np.random.default_rng(0).integers(2, size=60)
    assert permutation_p_value(balanced_accuracy, labels, labels, n_permutations=199) == 1 / 200


def test_labels_stay_in_their_group():
    groups = np.repeat([0, 1], 20)
    labels = groups.copy()  # the group is all there is to know
    assert permutation_p_value(balanced_accuracy, labels, groups, n_permutations=99) < 0.05
    assert permutation_p_value(balanced_accuracy, labels, groups, groups, n_permutations=99) == 1


def test_refusals():
    with pytest.raises(ValueError, match="1 different"):
        list(leave_one_group_out(np.zeros(4)))
    with pytest.raises(ValueError, match="4 labels, 3 predictions"):
        permutation_p_value(balanced_accuracy, np.zeros(4), np.zeros(3))
