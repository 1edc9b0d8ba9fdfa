"""The linear Gaussian-process classifier against scikit-learn's with a DotProduct kernel."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct

from encoders.linear_gpc import _averaged, fit_linear_gpc

# scikit-learn replaces the logistic by five error functions when it averages over the posterior; ours is exact
AGREE = 2e-4


def problem(n_classes, n=70, seed=0):
    generator = np.random.default_rng(seed)
    weights = np.random.default_rng(9).standard_normal((24, n_classes))
    data = generator.standard_normal((n, 4, 6))
    return data, (data.reshape(n, -1) @ weights + generator.gumbel(size=(n, n_classes))).argmax(axis=1) + 5


@pytest.mark.parametrize("bias_scale", [0.3, 2.0])
@pytest.mark.parametrize("weight_scale", [0.2, 1.0])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_equals_scikit_learn(n_classes, weight_scale, bias_scale):
    data, labels = problem(n_classes)
    held_out, _ = problem(n_classes, seed=1)
    kernel = ConstantKernel(weight_scale**2) * DotProduct(bias_scale / weight_scale)
    oracle = GaussianProcessClassifier(kernel, optimizer=None).fit(data.reshape(70, -1), labels)
    fitted = fit_linear_gpc(data, labels, (weight_scale,), bias_scale)
    expected = oracle.predict_proba(held_out.reshape(70, -1))
    np.testing.assert_allclose(fitted.probabilities(held_out), expected, atol=AGREE)
    assert fitted.evidence == pytest.approx(oracle.log_marginal_likelihood_value_, abs=1e-6)
    assert (fitted.predict(held_out) == oracle.predict(held_out.reshape(70, -1))).all()


def test_latents_equal_scikit_learn():
    data, labels = problem(2)
    held_out, _ = problem(2, seed=1)
    oracle = GaussianProcessClassifier(DotProduct(1.0), optimizer=None).fit(data.reshape(70, -1), labels)
    mean, variance = oracle.base_estimator_.latent_mean_and_variance(held_out.reshape(70, -1))
    ours = fit_linear_gpc(data, labels).latents(held_out)
    np.testing.assert_allclose(ours[0][:, 0], mean, atol=1e-6)
    np.testing.assert_allclose(ours[1][:, 0], variance, atol=1e-6)


@pytest.mark.parametrize(("mean", "variance"), [(0.7, 1e-12), (-2.0, 3.0), (5.0, 400.0)])
def test_the_average_over_the_posterior_is_exact(mean, variance):
    scale = np.sqrt(variance)
    expected = quad(lambda z: expit(mean + scale * z) * norm.pdf(z), -9, 9, points=[-mean / scale], limit=200)[0]
    assert _averaged(np.array([mean]), np.array([variance]))[0] == pytest.approx(expected, abs=1e-7)


def test_the_scale_with_the_largest_evidence_wins():
    data, labels = problem(2)
    alone = [fit_linear_gpc(data, labels, (scale,)) for scale in (1e-3, 0.5, 30.0)]
    chosen = fit_linear_gpc(data, labels, (1e-3, 0.5, 30.0))
    assert chosen.evidence == max(one.evidence for one in alone) == alone[1].evidence


def test_refusals():
    data, labels = problem(2)
    with pytest.raises(ValueError, match="expected positive"):
        fit_linear_gpc(data, labels, (0.0,))
    with pytest.raises(ValueError, match="expects 24 values per epoch, got 20"):
        fit_linear_gpc(data, labels).predict(data[..., :5])
    with pytest.raises(ValueError, match="at least 2 classes"):
        fit_linear_gpc(data, 0 * labels)
