import sys

import numpy as np
import pytest

from encoders import tsfresh_features as module
from encoders.linear_classifiers import fit_logistic
from encoders.tsfresh_features import tsfresh_features

pytest.importorskip("tsfresh")
CHECKS = {
    "mean": lambda x: x.mean(axis=2),
    "variance": lambda x: x.var(axis=2),
    "standard_deviation": lambda x: x.std(axis=2),
    "sum_values": lambda x: x.sum(axis=2),
    "median": lambda x: np.median(x, axis=2),
    "root_mean_square": lambda x: np.sqrt(np.square(x).mean(axis=2)),
    "maximum": lambda x: x.max(axis=2),
    "minimum": lambda x: x.min(axis=2),
    "absolute_maximum": lambda x: np.abs(x).max(axis=2),
    "length": lambda x: np.full(x.shape[:2], x.shape[2]),
}


def epochs(n: int = 6, c: int = 63, t: int = 50) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, c, t)).astype(np.float32)


def test_63_channels_give_630_columns_that_equal_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    data = epochs()
    names = tuple(f"E__{i}" for i in range(63))
    values, columns = tsfresh_features(data, names)
    assert values.shape == (6, 630) and len(set(columns)) == 630 and values.dtype == np.float64
    wide = data.astype(np.float64)
    for feature, formula in CHECKS.items():
        chosen = [columns.index(f"{name}__{feature}") for name in names]
        assert np.allclose(values[:, chosen], formula(wide), atol=1e-8), feature
    monkeypatch.setattr(module, "BLOCK", 4)
    assert np.array_equal(tsfresh_features(data, names)[0], values)


def test_columns_stand_channel_by_channel_in_the_given_order() -> None:
    values, columns = tsfresh_features(epochs(2, 12), tuple(f"c{11 - i}" for i in range(12)))
    assert [name.split("__")[0] for name in columns[::10]] == [f"c{11 - i}" for i in range(12)]
    assert columns[0] == "c11__sum_values" and values.shape == (2, 120)


def test_a_baseline_on_them_beats_chance_where_amplitude_tells() -> None:
    """Simulated; 60 held-out epochs, two classes, chance 0.5."""
    data = epochs(120, 4, 40)
    labels = np.arange(120) % 2
    data[labels == 1, 2] *= 1.6
    values, _ = tsfresh_features(data, ("a", "b", "c", "d"))
    mean, std = values[:60].mean(axis=0), values[:60].std(axis=0) + 1e-9
    features = (values - mean) / std
    accuracy = (fit_logistic(features[:60], labels[:60], 0.1).predict(features[60:]) == labels[60:]).mean()
    assert accuracy > 0.75


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="one per channel"):
        tsfresh_features(epochs(), ("a",))
    monkeypatch.setitem(sys.modules, "tsfresh.feature_extraction", None)
    with pytest.raises(ImportError, match=r"phosphene\[augment\]"):
        tsfresh_features(epochs(1, 1), ("a",))
