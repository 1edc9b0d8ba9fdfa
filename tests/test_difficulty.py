"""The calibration table, on a small world."""

import numpy as np

from encoders.difficulty import Recipe, calibration_report, first_images, format_report
from encoders.simulate import BrainSimulator, SimulationConfig


def test_first_images_takes_the_same_number_of_each_concept() -> None:
    rows = first_images(np.array([2, 0, 2, 2, 0, 1]), 2)
    assert rows.tolist() == [0, 1, 2, 4, 5]


def test_report_orders_the_decoders() -> None:
    generator = np.random.default_rng(0)
    concepts = np.repeat(np.arange(60), 4)
    embeds = {name: generator.standard_normal((n, 12)).astype(np.float32) for name, n in (("val", 20), ("test", 50))}
    targets = {f"{name}_embeds": value for name, value in embeds.items()}
    targets |= {"train_embeds": generator.standard_normal((240, 12)).astype(np.float32), "train_concepts": concepts}
    config = SimulationConfig(noise_scale={"eeg": 2.0, "meg": 4.0}, n_subjects=1)
    simulator = BrainSimulator(config, 12, targets["train_embeds"], concepts)
    report = calibration_report(simulator, targets, Recipe(images_per_concept=4, train_repetitions=1))
    assert list(report) == ["eeg", "meg", "eeg+meg"]
    for row in report.values():
        assert row["ridge averaged"] <= row["observer averaged"]
        assert row["observer single"] < row["observer averaged"]
    text = format_report(report, 50, 1)
    assert "chance 0.020" in text
    assert len(text.splitlines()) == 5
