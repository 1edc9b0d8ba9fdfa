"""Linear discriminant analysis and multinomial logistic regression on feature vectors, for the classical decoders."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

GRADIENT_TOLERANCE = 1e-6
MOST_ITERATIONS = 2000

Labels = NDArray[Any]
Features = NDArray[Any]


@dataclass(frozen=True)
class LinearClassifier:
    """A fitted linear classifier whose scores are log probabilities up to a constant.

    Attributes
    ----------
    classes : ndarray, (k,)
        Labels, sorted.
    weights : ndarray, (n_features, k), float64
    bias : ndarray, (k,), float64
    """

    classes: Labels
    weights: NDArray[np.float64]
    bias: NDArray[np.float64]

    def probabilities(self, features: Features) -> NDArray[np.float64]:
        """Return the probability of every class, (n, k)."""
        found: NDArray[np.float64] = softmax(features @ self.weights + self.bias, axis=1)
        return found

    def predict(self, features: Features) -> Labels:
        """Return the most probable label of every row, (n,)."""
        best: Labels = self.classes[(features @ self.weights + self.bias).argmax(axis=1)]
        return best


def check_classes(n: int, labels: Labels) -> tuple[Labels, NDArray[np.int64]]:
    """Return the sorted classes and the class index of each of ``n`` labels.

    Raises
    ------
    ValueError
        If there is not one label per row, or only one class.
    """
    classes, index = np.unique(labels, return_inverse=True)
    if labels.shape != (n,) or len(classes) < 2:
        raise ValueError(
            f"a classifier got {n} rows and labels {labels.shape} of {len(classes)} classes, expected one label per "
            "row and at least 2 classes; check the labels"
        )
    return classes, index.astype(np.int64)


def fit_lda(features: Features, labels: Labels, shrinkage: float = 0.0) -> LinearClassifier:
    """Fit linear discriminant analysis: Gaussian classes with one covariance.

    Parameters
    ----------
    features : ndarray, (n, n_features)
    labels : ndarray, (n,)
    shrinkage : float
        0 to 1; share of the covariance that is replaced by its mean variance in every direction.

    Returns
    -------
    LinearClassifier
        Class probabilities use the classes' shares of the training data.
    """
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage is {shrinkage}, expected 0 to 1; 0 leaves the covariance alone")
    classes, index = check_classes(len(features), labels)
    rows = np.asarray(features, dtype=np.float64)
    means = np.stack([rows[index == k].mean(axis=0) for k in range(len(classes))])
    residuals = rows - means[index]
    covariance = residuals.T @ residuals / len(rows)
    mean_variance = np.trace(covariance) / len(covariance)
    covariance = (1 - shrinkage) * covariance + shrinkage * mean_variance * np.eye(len(covariance))
    weights = np.linalg.lstsq(covariance, means.T, rcond=None)[0]
    share = np.bincount(index) / len(index)
    return LinearClassifier(classes, weights, np.log(share) - 0.5 * (means.T * weights).sum(axis=0))


def fit_logistic(features: Features, labels: Labels, C: float = 1.0) -> LinearClassifier:
    """Fit multinomial logistic regression by L-BFGS.

    Minimises ``C * summed cross-entropy + 0.5 * |weights|^2``, the bias is free. With two classes there are still two
    columns, so scikit-learn's one column has the same penalty at twice this ``C``.

    Parameters
    ----------
    features : ndarray, (n, n_features)
        Scaled so that one penalty suits all.
    labels : ndarray, (n,)
    C : float
        Inverse strength of the penalty.

    Returns
    -------
    LinearClassifier
    """
    if not C > 0:
        raise ValueError(f"C is {C}, expected a positive number; 1 is usual")
    classes, index = check_classes(len(features), labels)
    rows = np.asarray(features, dtype=np.float64)
    n_features, k = rows.shape[1], len(classes)
    own = np.eye(k)[index]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, bias = flat[: n_features * k].reshape(n_features, k), flat[n_features * k :]
        log_p = log_softmax(rows @ weights + bias, axis=1)
        error = C * (np.exp(log_p) - own)
        value = -C * float((own * log_p).sum()) + 0.5 * float((weights**2).sum())
        return value, np.concatenate([(rows.T @ error + weights).ravel(), error.sum(axis=0)])

    options = {"maxiter": MOST_ITERATIONS, "gtol": GRADIENT_TOLERANCE, "ftol": 0.0, "maxcor": 20}
    flat = minimize(loss, np.zeros((n_features + 1) * k), jac=True, method="L-BFGS-B", options=options).x
    return LinearClassifier(classes, flat[: n_features * k].reshape(n_features, k), flat[n_features * k :])
