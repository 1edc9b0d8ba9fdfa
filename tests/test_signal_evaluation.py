"""A toy decoder of toy people: more presentations, the right window and real recordings score higher."""

import numpy as np
import pytest

from alignment.evaluation_report import EvaluationReport
from alignment.signal_evaluation import EvaluationPlan, signal_confidence, signal_figures
from encoders.epochs import SignalEpochs

N, WIDTH, N_REPETITIONS = 40, 12, 4
READOUT = np.random.default_rng(0).standard_normal((WIDTH, 3, 8))


def gallery(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((N, WIDTH)).astype("f")


def similarity_to(images: np.ndarray):
    """Correlate the signal from 0.1 to 0.18 s with what each picture would evoke."""
    expected = np.einsum("md,dct->mct", images, READOUT).reshape(len(images), -1)

    def similarity(parts) -> np.ndarray:
        signal = (parts[0].data[..., 20:28] * 1e6).reshape(parts[0].n_epochs, -1)
        lengths = np.linalg.norm(expected, axis=1) * (np.linalg.norm(signal, axis=1, keepdims=True) + 1e-9)
        return (signal @ expected.T / lengths).astype("f")

    return similarity


def people(images: np.ndarray, prefix: str, seed: int) -> dict[str, list[SignalEpochs]]:
    found = {}
    for index, person in enumerate(("anna", "bert")):
        generator = np.random.default_rng([seed, index])
        rows = np.repeat(np.arange(N), N_REPETITIONS)
        data = 9.0 * generator.standard_normal((len(rows), 3, 50))
        data[..., 20:28] += np.einsum("nd,dct->nct", images[rows], READOUT)
        stimulus = tuple(f"{prefix} {row}" for row in rows)
        one = SignalEpochs(
            (data * 1e-6).astype("f"), 100.0, -0.1, ("Oz", "Pz", "Cz"), ("eeg",) * 3, np.zeros((3, 3), "f"), person,
            stimulus,
        )  # fmt: skip
        found[person] = [one]
    return found


def plan(prefix: str) -> EvaluationPlan:
    columns = {f"{prefix} {row}": row for row in range(N)}
    windows = ((0.1, 0.2), (0.25, 0.35))
    return EvaluationPlan(columns, N_REPETITIONS, windows, f"{prefix} pictures", "training", "eeg")


@pytest.fixture(scope="module")
def report() -> EvaluationReport:
    images, others = gallery(1), gallery(2)
    test, validation = people(images, "test", 1), people(others, "validation", 2)
    confidence = signal_confidence(
        similarity_to(images), test, similarity_to(others), validation, plan("test"), plan("validation")
    )
    return EvaluationReport(
        title="toy", data="simulated", simulated=True,
        figures=tuple(signal_figures(similarity_to(images), test, plan("test"))),
        confidence=tuple(confidence), adapted=(), single_trial_missing="", notes=(),
    )  # fmt: skip


def test_every_number_of_presentations_and_every_person_is_scored(report: EvaluationReport) -> None:
    whole = {one.n_averaged: one for one in report.select("top_1", modality="eeg") if one.gallery_size == N}
    assert sorted(whole) == [1, 2, 4] and [whole[count].n for count in (1, 2, 4)] == [320, 160, 80]
    assert whole[4].value > whole[2].value > whole[1].value > 2 * whole[1].chance
    for person in ("anna", "bert"):
        assert len(report.select("top_5", modality="eeg", person=person)) == 3
    pooled = np.mean([report.select("top_1", modality="eeg", person=one)[0].value for one in ("anna", "bert")])
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
    single, averaged = report.confidence
    assert (single.n_averaged, averaged.n_averaged) == (1, 4)
    assert averaged.calibration_split == "validation pictures" and averaged.split == "test pictures"
    assert all(value > 0.6 for value in averaged.surrogate_auroc.values()) and len(averaged.surrogate_auroc) == 2
    assert averaged.gain_at_half > 1.1 and averaged.expected_calibration_error < 0.15
