"""CSP against MNE, and the decoder on planted band power."""

import mne
import numpy as np
import pytest
from mne.decoding import CSP as Oracle

from encoders.csp import fit_csp, fit_csp_decoder


def band_power(n_per_class, seed, n_classes=2, n_channels=10):
    """Each class has a louder 10 Hz source of its own among noise of equal sources."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(3).standard_normal((n_channels, n_channels))
    labels = np.repeat(np.arange(n_classes), n_per_class)
    times = np.arange(100) / 100
    sources = generator.standard_normal((len(labels), n_channels, 100))
    phase = generator.uniform(0, 2 * np.pi, size=(len(labels), 1))
    sources[np.arange(len(labels)), labels] += 1.2 * np.sin(2 * np.pi * 10 * times + phase)
    order = generator.permutation(len(labels))
    return (mixing @ sources)[order], labels[order]


def test_equals_mne():
    data, labels = band_power(40, seed=0)
    with mne.utils.use_log_level("error"):
        oracle = Oracle(n_components=4).fit(data, labels)
        expected = oracle.transform(data)
    csp = fit_csp(data, labels, 4)
    np.testing.assert_allclose(csp.log_power(data), expected, atol=1e-8)
    sign = np.sign((csp.filters * oracle.filters_[:4]).sum(axis=1))
    np.testing.assert_allclose(csp.filters * sign[:, None], oracle.filters_[:4], atol=1e-8)
    np.testing.assert_allclose(csp.patterns * sign, oracle.patterns_[:4].T, atol=1e-8)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_planted_band_power_is_decoded(n_classes):
    train, test = band_power(60, 1, n_classes), band_power(60, 2, n_classes)
    decoder = fit_csp_decoder(*train)
    assert (decoder.predict(test[0]) == test[1]).mean() >= 0.9
    np.testing.assert_allclose(decoder.probabilities(test[0]).sum(axis=1), 1)
    shuffled = fit_csp_decoder(train[0], np.random.default_rng(0).permutation(train[1]))
    assert abs((shuffled.predict(test[0]) == test[1]).mean() - 1 / n_classes) < 0.15


def test_components_do_not_depend_on_how_channels_are_mixed():
    data, labels = band_power(30, seed=0)
    mixing = np.random.default_rng(1).standard_normal((10, 10))
    first, second = fit_csp(data, labels), fit_csp(mixing @ data, labels)
    np.testing.assert_allclose(first.log_power(data), second.log_power(mixing @ data), atol=1e-8)


def test_refusals():
    data, labels = band_power(10, seed=0)
    with pytest.raises(ValueError, match="n_components=11 for 10 channels"):
        fit_csp(data, labels, 11)
    with pytest.raises(ValueError, match="1 classes"):
        fit_csp(data, 0 * labels)
    with pytest.raises(ValueError, match="10 channels of rank 9"):
        fit_csp(data - data.mean(axis=1, keepdims=True), labels)
