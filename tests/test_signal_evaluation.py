"""A toy decoder of toy people: more presentations, the right window and real recordings score higher."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from alignment.answer_figures import FigurePlan, Gallery, answer_confidence, answer_figures
from alignment.evaluation_report import EvaluationReport
from alignment.person_answers import RECORDING
from alignment.retrieval import cosine_similarity
from alignment.signal_evaluation import answers_by_count, collected
from encoders.epochs import SignalEpochs
from encoders.preprocess import PreprocessConfig

N, WIDTH, N_REPETITIONS = 40, 12, 4
READOUT = np.random.default_rng(0).standard_normal((WIDTH, 3, 8))
PEOPLE = ("anna", "bert")


class ToyPreprocessor:
    """Microvolts; counts its calls."""

    config = PreprocessConfig(tmin=-0.1, n_times=50)

    def __init__(self) -> None:
        self.n_calls = 0

    def __call__(self, epochs: SignalEpochs) -> Any:
        self.n_calls += 1
        return SimpleNamespace(data=epochs.data * 1e6)


class ToyModel:
    """Reads the signal from 0.1 to 0.18 s back into the embedding that would have evoked it."""

    def __init__(self, *names: str) -> None:
        self.preprocessors = {name: ToyPreprocessor() for name in names}

    def encode(self, data: Any, subject: Any) -> np.ndarray:
        signals = [one[..., 20:28].reshape(len(one), -1) for one in data.values()]
        return np.mean([one @ np.linalg.pinv(READOUT.reshape(WIDTH, -1)) for one in signals], axis=0).astype("f")

    def person_index(self, person: str) -> np.ndarray:
        return np.zeros((1, 1), np.int64)

    def similarity(self, brain_embeds: np.ndarray, image_embeds: np.ndarray, modalities: Sequence[str]) -> np.ndarray:
        return cosine_similarity(brain_embeds, image_embeds)


def pictures(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((N, WIDTH)).astype("f")


def recording(images: np.ndarray, prefix: str, *seed: int) -> SignalEpochs:
    generator = np.random.default_rng(seed)
    rows = np.repeat(np.arange(N), N_REPETITIONS)
    data = 9.0 * generator.standard_normal((len(rows), 3, 50))
    data[..., 20:28] += np.einsum("nd,dct->nct", images[rows], READOUT)
    return SignalEpochs(
        (data * 1e-6).astype("f"), 100.0, -0.1, ("Oz", "Pz", "Cz"), ("eeg",) * 3, np.zeros((3, 3), "f"), prefix,
        tuple(f"{prefix} {row:02d}" for row in rows),
    )  # fmt: skip


def plan(prefix: str) -> FigurePlan:
    names = tuple(f"{prefix} {row:02d}" for row in range(N))
    return FigurePlan(Gallery(names, names), f"{prefix} pictures", "training", {"modality": "eeg"})


@pytest.fixture(scope="module")
def report() -> EvaluationReport:
    model: Any = ToyModel("eeg")
    found, others = {}, {}
    for index, person in enumerate(PEOPLE):
        found[person] = answers_by_count(
            model, {"eeg": recording(pictures(1), "test", 1, index)}, person, pictures(1), (1, 2, 4, 8), [["eeg"]],
            windows=((0.1, 0.2), (0.25, 0.35)),
        )  # fmt: skip
        others[person] = answers_by_count(
            model, {"eeg": recording(pictures(2), "validation", 2, index)}, person, pictures(2), (1, 4), [["eeg"]],
            kinds=(RECORDING,),
        )  # fmt: skip
    answers, test = collected(found)["eeg"], plan("test")
    return EvaluationReport(
        title="toy", data="simulated", simulated=True, figures=tuple(answer_figures(answers, test)),
        confidence=tuple(answer_confidence(answers, collected(others)["eeg"], plan("validation").gallery, test)),
        adapted=(), single_trial_missing="", notes=(),
    )  # fmt: skip


def test_every_number_of_presentations_and_every_person_is_scored(report: EvaluationReport) -> None:
    whole = {one.n_averaged: one for one in report.select("top_1", modality="eeg") if one.gallery_size == N}
    assert sorted(whole) == [1, 2, 4] and [whole[count].n for count in (1, 2, 4)] == [320, 160, 80]
    assert whole[4].value > whole[2].value > whole[1].value > 2 * whole[1].chance
    for person in PEOPLE:
        assert [one.n_averaged for one in report.select("top_5", modality="eeg", person=person)] == [1, 4]
    pooled = np.mean([report.select("top_1", modality="eeg", person=one)[0].value for one in PEOPLE])
    assert pooled == pytest.approx(whole[1].value)


def test_only_the_window_with_the_response_decodes(report: EvaluationReport) -> None:
    inside = {one.n_averaged: one for one in report.select("top_1", modality="eeg", window="0.1 to 0.2 s")}
    outside = {one.n_averaged: one for one in report.select("top_1", modality="eeg", window="0.25 to 0.35 s")}
    assert inside[4].permutation_p < 0.002 and outside[4].value < 0.1
    assert sorted(inside) == sorted(outside) == [1, 4]


def test_noise_input_is_at_chance(report: EvaluationReport) -> None:
    for one in report.select("top_5", modality="eeg"):
        assert one.noise_baseline == pytest.approx(one.chance, abs=0.12)


def test_confidence_knows_recordings_from_surrogates(report: EvaluationReport) -> None:
    by_count = {one.n_averaged: one for one in report.confidence}
    assert sorted(by_count) == [1, 2, 4]
    assert [by_count[n].calibration_n_averaged for n in (1, 2, 4)] == [1, 1, 4]
    averaged = by_count[4]
    assert averaged.calibration_split == "training" and averaged.split == "test pictures"
    assert all(value > 0.6 for value in averaged.surrogate_auroc.values()) and len(averaged.surrogate_auroc) == 2
    assert averaged.gain_at_half > 1.1 and averaged.expected_calibration_error < 0.15


def test_each_input_is_preprocessed_once_for_all_combinations() -> None:
    model: Any = ToyModel("eeg", "meg")
    parts = {name: recording(pictures(1), "test", 1, index) for index, name in enumerate(("eeg", "meg"))}
    found = answers_by_count(model, parts, "anna", pictures(1), (1, 2), [["eeg"], ["meg"], ["eeg", "meg"]])
    assert sorted(found) == ["eeg", "eeg+meg", "meg"]
    # a recording, white noise and two kinds of random phases, for single presentations and for averages of two
    assert all(one.n_calls == 2 * 4 for one in model.preprocessors.values())
    other = answers_by_count(model, {"eeg": parts["eeg"]}, "anna", pictures(1), (2,), [["eeg"]])
    for kind in other["eeg"][2].similarity:
        assert np.array_equal(other["eeg"][2].similarity[kind], found["eeg"][2].similarity[kind])


def test_recordings_of_other_pictures_are_not_joined() -> None:
    model: Any = ToyModel("eeg", "meg")
    parts = {"eeg": recording(pictures(1), "test", 1), "meg": recording(pictures(1), "other", 1)}
    with pytest.raises(ValueError, match="show other pictures"):
        answers_by_count(model, parts, "anna", pictures(1), (1,), [["eeg", "meg"]])
