"""Cross-validated decoding of evoked responses in small public data sets: people or runs left out, settings nested."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from alignment.classification_scores import balanced_accuracy, roc_auc
from alignment.cross_validation import permutation_p_value
from alignment.evaluation_report import Figure, Metric
from alignment.nested_validation import NestedScores, Scorer, group_folds, nested_scores
from alignment.resampling import MIN_PERMUTATIONS, bootstrap_score
from encoders.datasets.muse import N170, P300, read_muse_epochs
from encoders.datasets.things_eeg1_erps import read_category_epochs
from encoders.datasets.uci_object_pictures import read_object_pictures
from encoders.erp_decoder import ErpDecoderConfig, fit_erp_decoder

DatasetName = Literal["things_eeg1", "uci_object_pictures", "muse_n170_1", "muse_n170_3", "muse_p300"]
ERPS_AVERAGED = 372
"""12 presentations of each concept; at least 31 concepts in the smallest category. The file does not say exactly."""
_MUSE = {
    "muse_n170_1": ("muse_n170", "sub-01*.csv", N170, "face"),
    "muse_n170_3": ("muse_n170", "sub-03*.csv", N170, "face"),
    "muse_p300": ("muse_p300", "sub-01*.csv", P300, "target"),
}
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]


class ErpStudyConfig(BaseModel):
    """What is decoded, and among which settings the inner folds choose.

    Attributes
    ----------
    dataset : str
    settings : tuple of ErpDecoderConfig
    n_folds : int
        Outer folds of whole people or runs; 0 leaves out one at a time.
    n_inner : int
    seed : int
        Of folds, noise, intervals and permutations.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: DatasetName
    settings: tuple[ErpDecoderConfig, ...] = Field(min_length=1)
    n_folds: int = Field(default=0, ge=0)
    n_inner: int = Field(default=4, ge=2)
    seed: int = 0


@dataclass(frozen=True)
class StudyData:
    """Epochs of a study.

    Attributes
    ----------
    data : ndarray, (n, n_channels, n_times), float32
        Volt.
    labels, groups : ndarray of str, (n,)
        Class; person or run, which are left out whole.
    resampled : str
        What a group is.
    n_averaged : int
    sfreq, tmin : float
        Hz and seconds.
    positive : str
        Of two classes, the one whose score is ranked; empty for more.
    """

    data: NDArray[np.float32]
    labels: NDArray[np.str_]
    groups: NDArray[np.str_]
    resampled: Literal["person", "run"]
    n_averaged: int
    sfreq: float
    tmin: float
    positive: str


@dataclass(frozen=True)
class StudyResult:
    """Held-out answers and their figures."""

    data: StudyData
    answers: NestedScores[ErpDecoderConfig]
    figures: tuple[Figure, ...]


def study_data(dataset: DatasetName, folder: Path) -> StudyData:
    """Read a data set below the folder of shared data."""
    if dataset == "things_eeg1":
        erps = read_category_epochs(folder)
        return StudyData(
            erps.data, erps.category, erps.subject, "person", ERPS_AVERAGED, erps.sfreq, erps.tmin, ""
        )
    if dataset == "uci_object_pictures":
        pictures = read_object_pictures(folder)
        labels = np.where(pictures.condition == "S1 obj", "first picture", "second picture")
        return StudyData(
            pictures.data, labels, pictures.subject, "person", 1, pictures.sfreq, pictures.tmin, "second picture"
        )
    place, pattern, names, positive = _MUSE[dataset]
    epochs = read_muse_epochs(sorted((folder / place).glob(pattern)), names)
    return StudyData(epochs.data, epochs.label, epochs.run, "run", 1, epochs.sfreq, epochs.tmin, positive)


def run_study(config: ErpStudyConfig, folder: Path) -> StudyResult:
    """Decode every held-out epoch and score the answers.

    Returns
    -------
    StudyResult
        Balanced accuracy and, with two classes, the area under the ROC curve twice: within each person or run, then
        averaged, and of all held-out epochs pooled, where decoders of different folds must agree on a scale. Intervals
        resample whole people or runs; permutations exchange labels within them; the noise baseline is white noise
        with each channel's deviation, given to the same decoders.
    """
    return score_study(config, study_data(config.dataset, folder))


def score_study(config: ErpStudyConfig, study: StudyData) -> StudyResult:
    """Decode every held-out epoch of a study that was read, and score the answers; see `run_study`."""
    generator = np.random.default_rng(config.seed)
    folds = group_folds(study.groups, config.n_folds, generator) if config.n_folds else None
    spread = study.data.std(axis=(0, 2), keepdims=True)
    noise = (generator.standard_normal(study.data.shape) * spread).astype(np.float32)

    fit = fit_on(study)
    positive = _positive(study)
    metric: Metric = "roc_auc" if study.positive else "balanced_accuracy"
    answers = nested_scores(
        fit, config.settings, study.data, noise, study.labels, study.groups,
        lambda target, scores: classification_score(metric, target, scores, positive),
        folds=folds, n_inner=config.n_inner, seed=config.seed,
    )  # fmt: skip
    figures = [_figure("balanced_accuracy", study, answers, config, within=False)]
    if study.positive:
        figures = [_figure("roc_auc", study, answers, config, within=one) for one in (True, False)] + figures
    return StudyResult(study, answers, tuple(figures))


def fit_on(study: StudyData) -> Callable[[ErpDecoderConfig, Ints], Scorer]:
    """Return what fits a setting on some rows of a study."""

    def fit(setting: ErpDecoderConfig, rows: Ints) -> Scorer:
        return fit_erp_decoder(
            study.data[rows], study.labels[rows], study.groups[rows], setting, sfreq=study.sfreq, tmin=study.tmin
        ).scores

    return fit


def classification_score(metric: Metric, target: Ints, scores: Float64, positive: int) -> float:
    """Score class scores (n, k) against class indices (n,); ``positive`` matters with two classes only."""
    if metric == "roc_auc":
        return roc_auc(target == positive, scores[:, positive] - scores[:, 1 - positive])
    return balanced_accuracy(target, scores.argmax(axis=1))


def _figure(
    metric: Metric, study: StudyData, answers: NestedScores[ErpDecoderConfig], config: ErpStudyConfig, *, within: bool
) -> Figure:
    classes, target = np.unique(study.labels, return_inverse=True)
    positive = _positive(study)

    def score(labels: NDArray[Any], scores: Float64, groups: NDArray[Any]) -> float:
        if not within:
            return classification_score(metric, labels, scores, positive)
        parts = [groups == name for name in np.unique(groups)]
        return float(np.mean([classification_score(metric, labels[one], scores[one], positive) for one in parts]))

    def whole(labels: NDArray[Any], scores: Float64) -> float:
        return score(labels, scores, study.groups)

    return Figure(
        metric=metric, value=whole(target, answers.scores), chance=0.5 if metric == "roc_auc" else 1 / len(classes),
        noise_baseline=whole(target, answers.noise_scores), n=len(target), n_groups=len(np.unique(study.groups)),
        resampled=study.resampled, n_averaged=study.n_averaged, gallery_size=len(classes),
        split=f"{study.resampled}s left out", selection_split=f"folds of the other {study.resampled}s",
        interval=bootstrap_score(
            lambda rows: score(target[rows], answers.scores[rows], study.groups[rows]), study.groups, seed=config.seed
        ),
        permutation_p=permutation_p_value(
            whole, target, answers.scores, study.groups, n_permutations=MIN_PERMUTATIONS, seed=config.seed
        ),
        n_permutations=MIN_PERMUTATIONS,
        group={"dataset": config.dataset, "input": _input_words(config.settings)} | (
            {"over": f"each {study.resampled}, averaged" if within else "all pooled"} if metric == "roc_auc" else {}
        ),
    )  # fmt: skip


def _positive(study: StudyData) -> int:
    return np.unique(study.labels).tolist().index(study.positive) if study.positive else 0


def _input_words(settings: Sequence[ErpDecoderConfig]) -> str:
    """Say whether answers rest on the test person's other epochs, as settings that use them must."""
    kinds = {one.alignment if one.alignment != "none" else ("recentred" if one.recentre else "") for one in settings}
    return "each epoch alone" if kinds == {""} else "with unlabelled epochs of the same person"
