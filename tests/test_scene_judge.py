import numpy as np
import pytest

from alignment.fit import FitConfig
from alignment.runtime import Runtime
from generation.scene_judge import FACTOR_SIZES, SceneJudge, train_judge
from generation.scenes import render, sample_scenes


def test_training_learns_backgrounds_and_survives_a_round_trip(tmp_path):
    factors = sample_scenes("train", 400, seed=0)
    images = render(factors)

    def judged_at(step, rank, world):
        rows = np.random.default_rng(step).choice(400, 32)
        return images[rows], factors.take(rows)

    fit_config = FitConfig(max_steps=60, lr=3e-3, checkpoint_every=100)
    judge = train_judge(judged_at, fit_config, Runtime(device="cpu", seed=0), tmp_path)
    unseen = sample_scenes("test", 100, seed=1)
    report = judge.judge(render(unseen), unseen)
    assert report.n == 100 and set(report.accuracy) == set(FACTOR_SIZES)
    assert report.accuracy["background"] > report.chance["background"] + 0.2
    judge.save(tmp_path / "judge.safetensors")
    assert SceneJudge.load(tmp_path / "judge.safetensors").judge(render(unseen), unseen) == report


def test_shuffled_pictures_are_judged_at_chance():
    factors = sample_scenes("test", 100, seed=1)
    report = SceneJudge().judge(np.random.default_rng(0).integers(0, 255, (100, 64, 64, 3), dtype=np.uint8), factors)
    for name, chance in report.chance.items():
        assert report.accuracy[name] <= chance + 0.25


def test_one_picture_per_scene_is_demanded():
    factors = sample_scenes("test", 3, seed=1)
    with pytest.raises(ValueError, match="one per scene"):
        SceneJudge().judge(render(factors)[:2], factors)
