"""The test split is read once, by the evaluation alone; figures carry their controls; averages are disjoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment import recorded_evaluation
from alignment.recorded_evaluation import averages, evaluate_recorded, in_window, summary_lines, white_noise
from alignment.recorded_sources import prepare
from alignment.runtime import Runtime
from alignment.train import train
from alignment.train_config import TrainConfig
from encoders.epochs import SignalEpochs
from encoders.preprocess import Preprocessor, default_preprocess
from encoders.sensors import standard_layout
from tests.toy_lab import build_lab


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path]:
    settings = build_lab(tmp_path_factory.mktemp("lab"))
    settings["data"]["held_out_subjects"] = ["sim-04"]
    chosen = TrainConfig.model_validate({**settings, "fit": {**settings["fit"], "max_steps": 90}})
    prepare(chosen)
    folder = tmp_path_factory.mktemp("run")
    train(chosen, folder)
    return chosen, folder / "brain"


def test_every_modality_person_and_number_of_averages_is_scored(trained: tuple[TrainConfig, Path]) -> None:
    report = evaluate_recorded(*trained, windows=[(0.0, 0.1)], runtime=Runtime(device="cpu", threads=1))
    assert not report.simulated and report.data == "recorded epochs of toy lab"
    single, four = (
        next(one for one in report.select("top_1", modality="eeg") if one.n_averaged == n and one.gallery_size == 10)
        for n in (1, 4)
    )
    # 10 pictures x 4 presentations x 2 people, less one catch trial each; two pictures have 3 presentations
    assert single.n == 78 and four.n == 18 and single.chance == 0.1
    assert single.value > 0.3 and single.permutation_p < 0.01 and single.noise_baseline < 0.3
    assert four.value >= single.value
    people = {
        one.group["person"] for one in report.figures if one.group.get("modality") == "meg" and "person" in one.group
    }
    assert people == {"sim-03", "sim-04"}
    assert any("sim-04 were not trained on" in note for note in report.notes)
    assert report.select("top_1", modality="meg", window="0 to 0.1 s")
    assert all(one.split == "test" and one.selection_split == "val" for one in report.figures)
    assert "chance 0.1000" in summary_lines(report)[0]


def test_model_and_config_belong_together(trained: tuple[TrainConfig, Path]) -> None:
    chosen, folder = trained
    told = chosen.model_dump(mode="json", exclude={"simulation"})
    told["data"]["held_out_subjects"] = []
    other = TrainConfig.model_validate(told)
    with pytest.raises(ValueError, match="take its own config"):
        evaluate_recorded(other, folder)


def epochs(stimulus: list[str]) -> SignalEpochs:
    data = np.arange(len(stimulus), dtype=np.float32)[:, None, None] + np.zeros((1, 2, 5), np.float32)
    return SignalEpochs(
        data=data, sfreq=100.0, tmin=0.0, ch_names=("Cz", "Pz"), ch_types=("eeg", "eeg"),
        positions=np.full((2, 3), np.nan), stimulus=tuple(stimulus),
    )  # fmt: skip


def test_averages_are_disjoint_and_of_one_picture() -> None:
    given = epochs(["a", "b", "a", "a", "b", "a", "a"])
    two = averages(given, 2)
    assert two is not None and two.stimulus == ("a", "a", "b") and set(two.n_averaged) == {2}
    assert two.data[:, 0, 0].tolist() == [(0 + 2) / 2, (3 + 5) / 2, (1 + 4) / 2]
    assert averages(given, 6) is None
    one = averages(given, 1)
    assert one is not None and sorted(one.data[:, 0, 0]) == list(range(7))


def test_noise_keeps_each_channels_spread_and_windows_their_samples() -> None:
    data = np.random.default_rng(0).standard_normal((200, 3, 50)).astype("f") * np.array([1, 5, 20], "f")[:, None]
    noise = white_noise(data, 0)
    assert np.allclose(noise.std(axis=(0, 2)), data.std(axis=(0, 2)), rtol=0.05) and not np.allclose(noise, data)
    preprocessor = Preprocessor(default_preprocess("eeg", sfreq=100.0, n_times=50), standard_layout("things_eeg2_63"))
    assert in_window(preprocessor, (0.1, 0.2)).nonzero()[0].tolist() == list(range(10, 20))
    with pytest.raises(ValueError, match="holds no sample"):
        in_window(preprocessor, (0.9, 1.0))


def test_averaged_test_epochs_are_refused(trained: tuple[TrainConfig, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = recorded_evaluation._Test.epochs

    def averaged(self: Any, name: str, person: str) -> SignalEpochs:
        return real(self, name, person).average_repetitions()

    monkeypatch.setattr(recorded_evaluation._Test, "epochs", averaged)
    with pytest.raises(ValueError, match="are averages already; convert single presentations"):
        evaluate_recorded(*trained)
