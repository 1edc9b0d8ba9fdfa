"""How well labels are predicted, by scores that a majority class cannot buy; no score counts a class that is absent."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Labels = NDArray[Any]


def confusion(labels: Labels, predicted: Labels) -> NDArray[np.int64]:
    """Count how often each class (row) was predicted as each class (column).

    Parameters
    ----------
    labels, predicted : ndarray, (n,)

    Returns
    -------
    ndarray, (k, k), int64
        Over the sorted union of both arrays' classes.

    Raises
    ------
    ValueError
        If lengths differ or there are no labels.
    """
    if labels.ndim != 1 or labels.shape != predicted.shape or len(labels) == 0:
        raise ValueError(
            f"a score got labels {labels.shape} and predictions {predicted.shape}, expected two (n,) of the same "
            "n > 0; give one prediction per label"
        )
    classes, index = np.unique(np.concatenate([labels, predicted]), return_inverse=True)
    true, answer = index[: len(labels)], index[len(labels) :]
    k = len(classes)
    return np.bincount(true * k + answer, minlength=k * k).reshape(k, k).astype(np.int64)


def balanced_accuracy(labels: Labels, predicted: Labels) -> float:
    """Average the share of hits over the classes that occur in ``labels``.

    Returns
    -------
    float
        ``1 / k`` for any constant answer, whatever the imbalance; 1 is perfect.
    """
    table = confusion(labels, predicted)
    occurs = table.sum(axis=1)
    return float((np.diag(table)[occurs > 0] / occurs[occurs > 0]).mean())


def macro_f1(labels: Labels, predicted: Labels) -> float:
    """Average the F1 score over all classes in ``labels`` or ``predicted``; a class that was never hit counts 0."""
    table = confusion(labels, predicted)
    return float((2 * np.diag(table) / (table.sum(axis=0) + table.sum(axis=1))).mean())


def cohens_kappa(labels: Labels, predicted: Labels) -> float:
    """Compare agreement with what chance gives at the same frequencies: 0 is chance, 1 perfect.

    Returns
    -------
    float
        NaN if labels and predictions are all one and the same class, where chance is perfect too.

    References
    ----------
    Cohen 1960, "A coefficient of agreement for nominal scales", Educ. Psychol. Meas. 20:37-46.
    """
    table = confusion(labels, predicted) / len(labels)
    observed, expected = float(np.trace(table)), float(table.sum(axis=0) @ table.sum(axis=1))
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")


def roc_auc(positive: NDArray[Any], scores: NDArray[Any]) -> float:
    """Give the chance that a positive row scores higher than a negative one, ties counting half; 0.5 is chance.

    Parameters
    ----------
    positive : ndarray, (n,), bool or 0 and 1
    scores : ndarray, (n,)

    Raises
    ------
    ValueError
        If lengths differ or one of the two kinds is absent.
    """
    is_positive = np.asarray(positive).astype(bool)
    n_positive = int(is_positive.sum())
    n_negative = len(is_positive) - n_positive
    if is_positive.shape != np.shape(scores) or n_positive == 0 or n_negative == 0:
        raise ValueError(
            f"roc_auc got {n_positive} positive and {n_negative} negative rows and scores {np.shape(scores)}, expected "
            "both kinds and one score per row; pool more rows"
        )
    ranks = rankdata(scores)
    return float((ranks[is_positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
