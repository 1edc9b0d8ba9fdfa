import sys
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

from encoders.tsaug_adapter import MOVES_LATENCY, Augmenter, TsaugConfig, tsaug_augment

pytest.importorskip("tsaug")
SETTINGS = {"Crop": {"size": 40}, "Resize": {"size": 30}}


def config(name: str, p: float = 1.0) -> TsaugConfig:
    step = {"augmenter": name, "p": p, "settings": SETTINGS.get(name, {})}
    return TsaugConfig(steps=(step,), allow_moved_latency=name in MOVES_LATENCY)


def epochs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(8, 5, 60)).astype(np.float32)


@pytest.mark.parametrize("name", get_args(Augmenter))
def test_all_ten_keep_layout_dtype_and_input(name: str) -> None:
    data = epochs()
    answer = tsaug_augment(data, config(name), seed=3)
    assert answer.shape == data.shape and answer.dtype == np.float32 and np.isfinite(answer).all()
    assert np.array_equal(data, epochs()) and not np.array_equal(answer, data)
    assert np.array_equal(answer, tsaug_augment(data, config(name), seed=3))


@pytest.mark.parametrize("name", get_args(Augmenter))
def test_p_zero_is_the_identity(name: str) -> None:
    assert np.array_equal(tsaug_augment(epochs(), config(name, 0), seed=3), epochs())


def test_channels_are_channels() -> None:
    """Convolve smooths over time: a constant channel stays constant, whatever its neighbours are."""
    data = np.arange(5, dtype=np.float32)[None, :, None].repeat(60, axis=2)
    assert np.allclose(tsaug_augment(data, config("Convolve"), seed=0), data, atol=1e-5)


def test_p_and_seed_choose_the_epochs() -> None:
    data = np.random.default_rng(0).normal(size=(400, 2, 20)).astype(np.float32)
    changed = [(tsaug_augment(data, config("AddNoise", 0.3), seed) != data).any(axis=(1, 2)) for seed in (0, 1)]
    assert all(0.2 < one.mean() < 0.4 for one in changed) and not np.array_equal(*changed)


def test_steps_follow_each_other() -> None:
    steps = ({"augmenter": "AddNoise", "p": 1}, {"augmenter": "Quantize", "p": 1, "settings": {"n_levels": 4}})
    answer = tsaug_augment(epochs(), TsaugConfig(steps=steps), seed=0)
    assert all(len(np.unique(channel)) <= 4 for epoch in answer for channel in epoch)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MOVES_LATENCY:
        step = {"augmenter": name, "settings": SETTINGS.get(name, {})}
        with pytest.raises(ValidationError, match="allow_moved_latency"):
            TsaugConfig(steps=(step,))
    for wrong in (
        {"augmenter": "AddNoise", "settings": {"seed": 1}},
        {"augmenter": "Resize"},
        {"augmenter": "Resize", "p": 0.5, "settings": {"size": 9}},
        {"augmenter": "Mirror"},
    ):
        with pytest.raises(ValidationError):
            TsaugConfig(steps=(wrong,))
    with pytest.raises(ValidationError, match="allow_moved_latency"):
        TsaugConfig(steps=({"augmenter": "AddNoise"},), allow_moved_latency=True)
    monkeypatch.setitem(sys.modules, "tsaug", None)
    with pytest.raises(ImportError, match=r"phosphene\[augment\]"):
        tsaug_augment(epochs(), config("AddNoise"), seed=0)
