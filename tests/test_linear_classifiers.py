"""Discriminant analysis and logistic regression against scikit-learn."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from encoders.linear_classifiers import fit_lda, fit_logistic


def clouds(n_classes, seed=0, n=120):
    generator = np.random.default_rng(seed)
    labels = np.array(["a", "b", "c"])[generator.integers(n_classes, size=n)]
    centres = np.random.default_rng(5).standard_normal((3, 6))
    return centres[np.searchsorted(["a", "b", "c"], labels)] + generator.standard_normal((n, 6)), labels


@pytest.mark.parametrize("n_classes", [2, 3])
def test_lda_equals_scikit_learn(n_classes):
    features, labels = clouds(n_classes)
    oracle = LinearDiscriminantAnalysis(solver="lsqr").fit(features, labels)
    held_out, _ = clouds(n_classes, seed=1)
    fitted = fit_lda(features, labels)
    np.testing.assert_allclose(fitted.probabilities(held_out), oracle.predict_proba(held_out), atol=1e-8)
    assert (fitted.predict(held_out) == oracle.predict(held_out)).all()


@pytest.mark.parametrize("C", [0.1, 5.0])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_logistic_equals_scikit_learn(n_classes, C):
    features, labels = clouds(n_classes)
    oracle = LogisticRegression(C=2 * C if n_classes == 2 else C, tol=1e-10, max_iter=5000).fit(features, labels)
    held_out, _ = clouds(n_classes, seed=1)
    fitted = fit_logistic(features, labels, C)
    np.testing.assert_allclose(fitted.probabilities(held_out), oracle.predict_proba(held_out), atol=1e-5)
    assert (fitted.predict(held_out) == oracle.predict(held_out)).all()


def test_full_shrinkage_leaves_the_nearest_mean():
    features, labels = clouds(2)
    balanced = np.concatenate([np.flatnonzero(labels == one)[:40] for one in "ab"])
    features, labels = features[balanced], labels[balanced]
    means = np.stack([features[labels == one].mean(axis=0) for one in "ab"])
    nearest = np.array(["a", "b"])[((features[:, None] - means) ** 2).sum(-1).argmin(1)]
    assert (fit_lda(features, labels, 1.0).predict(features) == nearest).all()


def test_refusals():
    features, labels = clouds(2)
    with pytest.raises(ValueError, match="shrinkage is 1.5"):
        fit_lda(features, labels, 1.5)
    with pytest.raises(ValueError, match="C is 0"):
        fit_logistic(features, labels, 0.0)
    with pytest.raises(ValueError, match="120 rows and labels"):
        fit_lda(features, labels[:-1])
