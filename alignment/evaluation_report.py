"""What a report of an evaluation must say: a figure that lacks its chance level or its controls cannot be made."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from alignment.resampling import MIN_PERMUTATIONS

Metric = Literal[
    "top_1", "top_5", "two_way", "mean_rank", "median_rank", "mean_average_precision", "balanced_accuracy", "roc_auc"
]
METRICS: tuple[Metric, ...] = get_args(Metric)
LOWER_IS_BETTER = ("mean_rank", "median_rank")
SCHEMA_VERSION: Literal[2] = 2
ADAPTATION = "adaptation"
"""Key in the group of a figure whose decoder was adapted to a person."""


class Figure(BaseModel):
    """One number with everything needed to judge it; no field has a default.

    Attributes
    ----------
    metric : str
        One of `METRICS`; top-k is greedy.
    value, chance, noise_baseline : float
        What was found, what guessing gives, and what the same decoder gives for input without a stimulus.
    n, n_groups : int
        Rows, and the pictures (or people, or runs) among them that the interval resamples.
    resampled : str
        What the groups are.
    n_averaged : int
        Presentations averaged in each row; 1 is single-trial.
    gallery_size : int
        Pictures or classes to choose from.
    split, selection_split : str
        Where the rows come from and where everything was chosen (weights, penalties, thresholds): never the same.
    interval : tuple of float
        95 %.
    permutation_p, n_permutations : float, int
        Share of at least 1,000 permutations that did as well.
    group : mapping of str to str
        What the rows have in common, for example ``{"person": "sub-08", "modality": "eeg"}``; may be empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metric: Metric
    value: float
    chance: float
    noise_baseline: float
    n: int = Field(ge=1)
    n_groups: int = Field(ge=2)
    resampled: Literal["image", "person", "run"]
    n_averaged: int = Field(ge=1)
    gallery_size: int = Field(ge=2)
    split: str = Field(min_length=1)
    selection_split: str = Field(min_length=1)
    interval: tuple[float, float]
    permutation_p: float = Field(gt=0, le=1)
    n_permutations: int = Field(ge=MIN_PERMUTATIONS)
    group: Mapping[str, str]

    @field_validator("interval")
    @classmethod
    def _ordered(cls, interval: tuple[float, float]) -> tuple[float, float]:
        if interval[0] > interval[1]:
            raise ValueError(f"interval {interval} has its ends exchanged, expected (low, high)")
        return interval

    @model_validator(mode="after")
    def _honest(self) -> "Figure":
        if self.selection_split == self.split:
            raise ValueError(
                f"split and selection_split are both {self.split!r}: a figure chosen on the data it is measured on is "
                "not a result; choose on validation data"
            )
        if self.n_groups > self.n:
            raise ValueError(f"n_groups is {self.n_groups}, expected at most n={self.n}")
        if self.permutation_p * (self.n_permutations + 1) < 1 - 1e-6:
            raise ValueError(f"permutation_p {self.permutation_p} is below 1 / ({self.n_permutations} + 1)")
        return self


class ReliabilityBin(BaseModel):
    """Answers whose confidence lies in ``(low, high]``: how many, how sure, how often right."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float
    high: float
    n: int = Field(ge=0)
    mean_confidence: float
    accuracy: float


class ConfidenceFigures(BaseModel):
    """How far a calibrated confidence can be trusted, on rows that it was not calibrated on.

    Attributes
    ----------
    calibration_split, split : str
        Where the calibration was fitted and where it was measured; their pictures do not overlap.
    n_calibration, n : int
        Answers in each.
    calibration_n_averaged, n_averaged : int
        Presentations averaged in each; never more in the calibration.
    gallery_size : int
    accuracy, mean_confidence : float
        Of all answers.
    expected_calibration_error, interval : float, (float, float)
        Over ``bins`` of equal width; 95 %.
    bins : tuple of ReliabilityBin
    coverage, selective_accuracy : tuple of float
        Risk-coverage curve: accuracy of the most confident share.
    accuracy_at_half, gain_at_half : float
        At 50 % coverage, and its ratio to the accuracy of all.
    surrogate_auroc : mapping of str to float
        Real recordings against surrogates, by what the surrogates keep, judged by confidence; 0.5 is chance.
    group : mapping of str to str
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    calibration_split: str = Field(min_length=1)
    split: str = Field(min_length=1)
    n_calibration: int = Field(ge=1)
    calibration_n_averaged: int = Field(ge=1)
    n: int = Field(ge=1)
    n_averaged: int = Field(ge=1)
    gallery_size: int = Field(ge=2)
    accuracy: float
    mean_confidence: float
    expected_calibration_error: float = Field(ge=0, le=1)
    interval: tuple[float, float]
    bins: tuple[ReliabilityBin, ...]
    coverage: tuple[float, ...]
    selective_accuracy: tuple[float, ...]
    accuracy_at_half: float
    gain_at_half: float
    surrogate_auroc: Mapping[str, float]
    group: Mapping[str, str]

    @model_validator(mode="after")
    def _apart(self) -> "ConfidenceFigures":
        if self.calibration_split == self.split:
            raise ValueError(f"calibrated and measured on {self.split!r}; calibrate on validation data")
        if len(self.coverage) != len(self.selective_accuracy) or not self.coverage:
            raise ValueError("coverage and selective_accuracy must have the same length, at least 1")
        return self


class AdaptedFigures(BaseModel):
    """Figures of a decoder that was adapted to a person: they saw more than the report's other figures.

    Attributes
    ----------
    name : str
        Of the adaptation, for example ``label_free``; stands in the group of every figure.
    uses : str
        What of the person it was allowed to see.
    transductive : bool
        Whether an answer depends on other evaluated recordings.
    figures : tuple of Figure
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1)
    uses: str = Field(min_length=1)
    transductive: bool
    figures: tuple[Figure, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _named(self) -> "AdaptedFigures":
        if any(one.group.get(ADAPTATION) != self.name for one in self.figures):
            raise ValueError(f"a figure of {self.name!r} does not say so in its group; add {ADAPTATION!r} to it")
        return self


class EvaluationReport(BaseModel):
    """A whole evaluation.

    Attributes
    ----------
    title, data : str
        What was evaluated, and on what: simulated recordings are called simulated.
    simulated : bool
    figures : tuple of Figure
    confidence : tuple of ConfidenceFigures
    adapted : tuple of AdaptedFigures
        Apart from ``figures``, which are inductive.
    single_trial_missing : str
        Why there is no single-trial figure beside an averaged one; empty where there is.
    notes : tuple of str
        What a reader must know beside the numbers, for example which figures used unlabelled test data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[2] = SCHEMA_VERSION
    title: str = Field(min_length=1)
    data: str = Field(min_length=1)
    simulated: bool
    figures: tuple[Figure, ...] = Field(min_length=1)
    confidence: tuple[ConfidenceFigures, ...]
    adapted: tuple[AdaptedFigures, ...]
    single_trial_missing: str
    notes: tuple[str, ...]

    @model_validator(mode="after")
    def _complete(self) -> "EvaluationReport":
        if self.simulated and "simulated" not in (self.title + self.data).lower():
            raise ValueError("the data are simulated, but neither title nor data says so; say it")
        if any(ADAPTATION in one.group for one in self.figures):
            raise ValueError("a figure of an adapted decoder stands among the inductive ones; move it to adapted")
        alone = [one for one in self.figures if one.n_averaged > 1 and not self._single_trial(one)]
        if alone and not self.single_trial_missing:
            raise ValueError(
                f"{alone[0].metric} of {alone[0].n_averaged} averaged presentations has no single-trial figure beside "
                f"it (group {dict(alone[0].group)}); add it or say in single_trial_missing why there is none"
            )
        return self

    def select(self, metric: Metric, **group: str) -> list[Figure]:
        """List the figures of a metric whose group has exactly the given entries."""
        return [one for one in self.figures if one.metric == metric and dict(one.group) == group]

    def write(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "EvaluationReport":
        """Read what `write` wrote; refuses a report of another schema, or that lacks anything."""
        text = path.read_text(encoding="utf-8")
        found = json.loads(text).get("schema_version")
        if found != SCHEMA_VERSION:
            raise ValueError(f"{path} has schema version {found}, expected {SCHEMA_VERSION}; evaluate again")
        return cls.model_validate_json(text)

    def _single_trial(self, figure: Figure) -> bool:
        wanted = (figure.metric, figure.gallery_size, dict(figure.group), figure.split)
        return any(
            one.n_averaged == 1 and (one.metric, one.gallery_size, dict(one.group), one.split) == wanted
            for one in self.figures
        )


def figure_line(figure: Figure) -> str:
    """Write a figure and everything that goes with it in one line of text."""
    low, high = figure.interval
    averaged = "single trials" if figure.n_averaged == 1 else f"{figure.n_averaged} averaged"
    group = ", ".join(f"{key} {value}" for key, value in figure.group.items())
    return (
        f"{figure.metric} of {figure.gallery_size}{f' ({group})' if group else ''}: {figure.value:.3f} [{low:.3f}, "
        f"{high:.3f}], chance {figure.chance:.3g}, noise {figure.noise_baseline:.3g}, p {figure.permutation_p:.2g} of "
        f"{figure.n_permutations}, n {figure.n} ({figure.n_groups} by {figure.resampled}), {averaged}, {figure.split}, "
        f"chosen on {figure.selection_split}"
    )


def markdown_rows(figures: tuple[Figure, ...] | list[Figure], names: Mapping[int, str] | None = None) -> list[str]:
    """Lay figures out as a Markdown table with all controls; ``names`` gives a label per position."""
    lines = [
        "| | value [95 %] | chance | noise input | p | n | averaged | of | measured on | chosen on |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|---|",
    ]
    for index, one in enumerate(figures):
        group = ", ".join(f"{key} {value}" for key, value in one.group.items())
        name = (names or {}).get(index) or one.metric.replace("_", " ") + (f", {group}" if group else "")
        lines.append(
            f"| {name} | {_plain(one.value)} [{_plain(one.interval[0])}, {_plain(one.interval[1])}] "
            f"| {_plain(one.chance)} | {_plain(one.noise_baseline)} | {one.permutation_p:.2g} "
            f"| {one.n} ({one.n_groups} by {one.resampled}) | {one.n_averaged} | {one.gallery_size} | {one.split} "
            f"| {one.selection_split} |"
        )
    return lines


def _plain(value: float) -> str:
    return f"{value:.3f}" if math.fabs(value) < 10 else f"{value:.1f}"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of `report.json`."""
    return EvaluationReport.model_json_schema()
