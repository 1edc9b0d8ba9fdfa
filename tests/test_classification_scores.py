"""Scores of classification against scikit-learn, and what a constant answer earns."""

import numpy as np
import pytest
from sklearn import metrics

from alignment.classification_scores import balanced_accuracy, cohens_kappa, confusion, macro_f1


@pytest.mark.parametrize("seed", range(5))
def test_equal_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    labels = generator.choice(4, size=60, p=[0.6, 0.25, 0.1, 0.05])
    predicted = np.where(generator.random(60) < 0.5, labels, generator.integers(4, size=60))
    assert balanced_accuracy(labels, predicted) == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert macro_f1(labels, predicted) == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    assert cohens_kappa(labels, predicted) == pytest.approx(metrics.cohen_kappa_score(labels, predicted))
    np.testing.assert_array_equal(confusion(labels, predicted), metrics.confusion_matrix(labels, predicted))


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("answer", [0, 1])
def test_a_constant_answer_has_half_balanced_accuracy_whatever_the_imbalance(share, answer):
    labels = np.arange(1000) < 1000 * share
    predicted = np.full(1000, answer).astype(bool)
    assert balanced_accuracy(labels, predicted) == 0.5
    assert cohens_kappa(labels, predicted) == pytest.approx(0, abs=1e-12)


def test_words_as_labels_and_classes_that_never_occur():
    labels, predicted = np.array(["cat", "cat", "dog"]), np.array(["cat", "fox", "dog"])
    assert balanced_accuracy(labels, predicted) == 0.75
    assert macro_f1(labels, predicted) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert np.isnan(cohens_kappa(labels[:2], labels[:2]))


def test_refusals():
    with pytest.raises(ValueError, match=r"labels \(3,\) and predictions \(2,\)"):
        balanced_accuracy(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="n > 0"):
        macro_f1(np.zeros(0), np.zeros(0))
