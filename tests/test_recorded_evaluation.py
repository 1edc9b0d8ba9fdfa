"""The test split is read once, by the evaluation alone; what is fitted is fitted on validation; nothing is mixed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment import answer_calibration
from alignment.evaluated_epochs import EvaluatedEpochs
from alignment.evaluation_report import EvaluationReport, Figure
from alignment.recorded_evaluation import evaluate_recorded
from alignment.recorded_sources import prepare
from alignment.report_summary import summary_lines
from alignment.runtime import Runtime
from alignment.train import train
from alignment.train_config import TrainConfig
from encoders.epochs import SignalEpochs
from tests.toy_lab import build_lab

Trained = tuple[TrainConfig, Path]
ALSO = ("label_free", "label_free_transductive", "csls", "csls_transductive", "few_shot")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    settings = build_lab(tmp_path_factory.mktemp("lab"))
    settings["data"] |= {"held_out_subjects": ["sim-04"], "n_val_concepts": 12}
    chosen = TrainConfig.model_validate({**settings, "fit": {**settings["fit"], "max_steps": 90}})
    prepare(chosen)
    folder = tmp_path_factory.mktemp("run")
    train(chosen, folder)
    return chosen, folder / "brain"


def evaluated(trained: Trained, **options: Any) -> EvaluationReport:
    return evaluate_recorded(*trained, runtime=Runtime(device="cpu", threads=1), **options)


@pytest.fixture(scope="module")
def report(trained: Trained) -> EvaluationReport:
    return evaluated(trained, windows=[(0.0, 0.1)], also=ALSO)


def whole(report: EvaluationReport, metric: Any = "top_1", **group: str) -> Mapping[int, Figure]:
    return {one.n_averaged: one for one in report.select(metric, **group) if one.gallery_size == 10}


def test_every_modality_person_and_number_of_averages_is_scored(report: EvaluationReport) -> None:
    assert not report.simulated and report.data == "recorded epochs of toy lab"
    found = whole(report, modality="eeg")
    # 10 pictures x 4 presentations x 2 people, less one catch trial each; two pictures have 3 presentations
    assert found[1].n == 78 and found[4].n == 18 and found[1].chance == 0.1
    assert found[1].value > 0.3 and found[1].permutation_p < 0.01 and found[1].noise_baseline < 0.3
    assert found[4].value >= found[1].value
    people = {
        one.group["person"] for one in report.figures if one.group.get("modality") == "meg" and "person" in one.group
    }
    assert people == {"sim-03", "sim-04"}
    assert any("sim-04 were not trained on" in note for note in report.notes)
    assert report.select("top_1", modality="meg", window="0 to 0.1 s")
    assert all(one.split == "test" and one.selection_split == "val" for one in report.figures)
    assert "chance 0.1000" in summary_lines(report)[0]


def test_different_peoples_recordings_are_joined_on_the_picture(report: EvaluationReport) -> None:
    found = whole(report, modality="eeg+meg")
    # 39 presentations of each modality by each of two people; nobody's is used twice
    assert sorted(found) == [1, 2, 4] and found[1].n == 78 and found[1].n_groups == 10
    assert found[1].permutation_p < 0.01 and found[1].chance == 0.1 and found[1].noise_baseline < 0.3
    alone = {name: whole(report, modality=name, rows="of eeg+meg")[1] for name in ("eeg", "meg")}
    assert all(one.n == 78 for one in alone.values())
    assert found[1].value > min(one.value for one in alone.values())
    (note,) = (one for one in report.notes if one.startswith("eeg+meg: recordings of different people"))
    assert "2 people of eeg, 2 people of meg" in note and "78 pairs of 1 averaged" in note


def test_confidence_is_calibrated_on_validation_and_told_by_averages(report: EvaluationReport) -> None:
    by_key = {(one.group["modality"], one.n_averaged): one for one in report.confidence}
    assert set(by_key) == {(name, n) for name in ("eeg", "meg", "eeg+meg") for n in (1, 2, 4)}
    for (name, n), one in by_key.items():
        assert (one.calibration_split, one.split, one.gallery_size) == ("val", "test", 10)
        # training pictures were shown twice
        assert one.calibration_n_averaged == min(n, 2)
        assert one.n == whole(report, modality=name)[n].n and one.accuracy == whole(report, modality=name)[n].value
        assert len(one.surrogate_auroc) == 2 and all(0.4 < value <= 1 for value in one.surrogate_auroc.values())
    # 36 pictures shown twice to each of the two EEG people, less the three that EEG lacks if drawn
    assert 132 <= by_key["eeg", 1].n_calibration <= 144 and by_key["eeg", 1].expected_calibration_error < 0.2


def test_test_labels_do_not_move_the_calibration_and_shuffled_they_are_at_chance(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[answer_calibration.AnswerCalibration] = []
    real_fit = answer_calibration.fit_answer_calibration

    def kept(validation: answer_calibration.ScoredAnswers) -> answer_calibration.AnswerCalibration:
        assert validation.split == "val" and all(image.startswith("c") for image in validation.image)
        fitted.append(real_fit(validation))
        return fitted[-1]

    monkeypatch.setattr(answer_calibration, "fit_answer_calibration", kept)
    evaluated(trained, windows=())
    before, fitted[:] = list(fitted), []
    real_read = EvaluatedEpochs.epochs

    def relabelled(self: EvaluatedEpochs, name: str, person: str, split: str) -> SignalEpochs:
        epochs = real_read(self, name, person, split)
        if split == "test":
            order = np.random.default_rng(len(person + name)).permutation(epochs.n_epochs)
            object.__setattr__(epochs, "data", epochs.data[order])
        return epochs

    monkeypatch.setattr(EvaluatedEpochs, "epochs", relabelled)
    shuffled = evaluated(trained, windows=())
    assert fitted == before and len(fitted) == 9
    for name in ("eeg", "meg", "eeg+meg"):
        one = whole(shuffled, modality=name)[1]
        assert one.value < 0.25 and one.permutation_p > 0.005


def test_adapted_figures_stand_apart_and_leave_the_inductive_ones_alone(
    trained: Trained, report: EvaluationReport
) -> None:
    plain = evaluated(trained, windows=[(0.0, 0.1)])
    assert plain.figures == report.figures and plain.confidence == report.confidence and plain.adapted == ()
    assert tuple(one.name for one in report.adapted) == ALSO
    assert [one.transductive for one in report.adapted] == [False, True, False, True, False]
    for some in report.adapted:
        assert {one.group["modality"] for one in some.figures} == {"eeg", "meg"}
        assert {one.n_averaged for one in some.figures} == {1, 4}
        top = [one for one in some.figures if one.metric == "top_1" and set(one.group) == {"modality", "adaptation"}]
        assert all(one.permutation_p < 0.05 and one.noise_baseline < 0.35 for one in top if one.n_averaged == 1)
        assert not {one.metric for one in some.figures} - {one.metric for one in report.figures}
    text = "\n".join(summary_lines(report))
    assert "label_free_transductive, transductive: whitening" in text and "AUROC" in text


def test_unknown_adaptations_are_refused(trained: Trained) -> None:
    with pytest.raises(ValueError, match="no adaptations \\['matching'\\]; allowed are"):
        evaluated(trained, also=("csls", "matching"))


def test_model_and_config_belong_together(trained: Trained) -> None:
    chosen, folder = trained
    told = chosen.model_dump(mode="json", exclude={"simulation"})
    told["data"]["held_out_subjects"] = []
    other = TrainConfig.model_validate(told)
    with pytest.raises(ValueError, match="take its own config"):
        evaluate_recorded(other, folder)


def test_averaged_test_epochs_are_refused(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    from encoders.store import EpochStore

    real = EpochStore.epochs

    def averaged(self: EpochStore, rows: Any) -> SignalEpochs:
        return real(self, rows).average_repetitions()

    monkeypatch.setattr(EpochStore, "epochs", averaged)
    with pytest.raises(ValueError, match="are averages already; convert single presentations"):
        evaluated(trained)
