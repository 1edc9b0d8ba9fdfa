import json

import numpy as np
import pytest

from alignment.brain_model import BrainModel
from alignment.pairs import record_pairs
from alignment.projector import Projector
from alignment.report import fit_ridges, summary, test_report
from alignment.runtime import Runtime
from alignment.target_space import TargetSpace
from encoders.build import PRESETS
from encoders.late_fusion import LateFusionConfig
from encoders.preprocess import Preprocessor, default_preprocess
from encoders.sensors import standard_layout
from tests.toy_brain import EMBED_DIM, LAYOUTS, ToyBrain, toy_splits

test_report.__test__ = False  # a function of the project, not a test
SPLITS = toy_splits(n_train=200)


@pytest.fixture(scope="module")
def report() -> dict:
    brain = ToyBrain(noise=4.0)
    preprocessors = {
        name: Preprocessor(default_preprocess(name), standard_layout(layout)) for name, layout in LAYOUTS.items()
    }
    train_embeds, val_embeds = SPLITS["train"].embeds, SPLITS["val"].embeds
    train = record_pairs(brain, preprocessors, train_embeds, 2, n_repetitions=1, average=False, seed=1)
    val = record_pairs(brain, preprocessors, val_embeds, 2, n_repetitions=4, average=True, seed=2)
    eye, zero = np.eye(EMBED_DIM, dtype="f"), np.zeros(EMBED_DIM, "f")
    model = BrainModel(
        preprocessors,
        {name: PRESETS["brain_module_demo"] for name in LAYOUTS},
        LateFusionConfig(),
        ["sim-01", "sim-02"],
        TargetSpace.fit(train_embeds),
        Projector({"eeg": eye}, {"eeg": zero}, zero),
        Runtime(device="cpu"),
    )
    ridges = fit_ridges(train, val, train_embeds, val_embeds)
    combinations = [("eeg",), ("meg",), ("eeg", "meg")]
    return test_report(model, brain, ridges, SPLITS["test"].embeds, combinations, n_repetitions=4)


def test_every_combination_is_there_with_chance_n_and_interval(report: dict) -> None:
    assert list(report) == ["eeg", "meg", "eeg+meg"]
    for by_label in report.values():
        assert list(by_label) == ["single", "averaged_4"]
        for label, n in (("single", 160), ("averaged_4", 40)):
            for who in ("network", "unknown_person", "ridge", "ideal_observer"):
                scores = by_label[label][who]
                assert (scores["n"], scores["n_stimuli"], scores["n_gallery"]) == (n, 20, 20)
                assert scores["chance_top_1"] == 0.05
                low, high = scores["interval_top_1"]
                assert low <= scores["top_1"] <= high
    json.dumps(report)


def test_ridge_learns_the_observer_is_the_ceiling_and_an_untrained_network_is_at_chance(report: dict) -> None:
    for by_label in report.values():
        scores = {who: by_label["averaged_4"][who]["top_1"] for who in ("network", "ridge", "ideal_observer")}
        assert scores["network"] <= 0.3 < scores["ridge"] <= scores["ideal_observer"]
        assert by_label["averaged_4"]["ratio_to_ideal"] == scores["network"] / scores["ideal_observer"]
        assert by_label["single"]["ridge"]["top_1"] <= scores["ridge"]


def test_summary_has_a_line_per_condition_and_names_chance(report: dict) -> None:
    lines = summary(report).splitlines()
    assert len(lines) == 1 + 6 + 1 and lines[1].startswith("eeg       single")
    assert lines[-1] == "top-1, greedy, of 20 pictures; chance 0.0500"
