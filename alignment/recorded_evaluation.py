"""Evaluation of a trained model on the test pictures of recorded data, which nothing before has read.

Figures are by modality, by person, by time window, and by the number of presentations that are averaged. Averages are
disjoint: with 80 presentations of a picture there are 80 single rows, 40 averages of 2, and so on to one of 80.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from alignment.adapted_answers import ADAPTATIONS, AdaptationData, adapted_answers
from alignment.answer_figures import ByCount, FigurePlan, answer_confidence, answer_figures, with_group
from alignment.brain_model import BrainModel
from alignment.calibration_comparison import LabelledEpochs
from alignment.evaluated_epochs import TEST, VALIDATION, EvaluatedEpochs
from alignment.evaluation_report import ADAPTATION, AdaptedFigures, ConfidenceFigures, EvaluationReport, Figure
from alignment.fused_answers import FusedAnswers, plan_pairs
from alignment.person_answers import KINDS, RECORDING, WINDOW_NOTE, PersonAnswers, Window, time_windows
from alignment.person_calibration import gallery_vectors
from alignment.recorded_data import RecordedDataConfig, RecordedSplits, split_rows
from alignment.recorded_sources import open_sources
from alignment.resampling import MIN_PERMUTATIONS
from alignment.runtime import Runtime
from alignment.signal_evaluation import Answers, answers_by_count, collected
from alignment.train_config import TrainConfig
from encoders.epochs import SignalEpochs
from encoders.modality import combination

N_AVERAGED = (1, 2, 4, 8, 12, 20, 40, 80)


def evaluate_recorded(
    config: TrainConfig,
    model_folder: Path,
    *,
    also: Sequence[str] = (),
    n_averaged: Sequence[int] = N_AVERAGED,
    windows: Sequence[Window] | None = None,
    n_permutations: int = MIN_PERMUTATIONS,
    seed: int = 0,
    runtime: Runtime | None = None,
    progress: bool = False,
) -> EvaluationReport:
    """Score a trained model on test pictures.

    Parameters
    ----------
    config : TrainConfig
        Of the run, with recorded data.
    model_folder : Path
        Holds the exported `BrainModel`.
    also : sequence of str
        Some of `alignment.adapted_answers.ADAPTATIONS`: figures with each of them, apart from the inductive ones.
    n_averaged : sequence of int
        Presentations per average; those that a data set does not have are left out. 1 is always scored.
    windows : sequence of (float, float), optional
        Seconds after onset, by default every 0.1 s; the model answers again with the preprocessed signal set to 0
        outside each.
    n_permutations, seed : int
    runtime : Runtime, optional
    progress : bool
        Show a bar over people.

    Returns
    -------
    EvaluationReport
        Confidence is calibrated on the validation pictures' epochs, those that selected the checkpoint. With several
        modalities, averages of different people are joined on the picture as well.

    Raises
    ------
    ValueError
        If the config is of a simulated study, or model and config do not belong together.
    """
    unknown = sorted(set(also) - set(ADAPTATIONS))
    if unknown:
        raise ValueError(f"no adaptations {unknown}; allowed are {sorted(ADAPTATIONS)}")
    sources = open_sources(config)
    assert isinstance(config.data, RecordedDataConfig)
    splits = split_rows(config.data, sources.stores, sources.targets)
    model = BrainModel.load(model_folder, runtime)
    trained_on = _check_same(model, splits)
    evaluation = _Evaluation(
        model, EvaluatedEpochs(config.data, sources, splits), trained_on, sorted({1, *n_averaged}),
        time_windows(model) if windows is None else tuple(windows), tuple(also), n_permutations, seed, progress,
    )  # fmt: skip
    evaluation.run()
    return EvaluationReport(
        title=f"Retrieval of unseen pictures by {combination(model.modalities)}",
        data=f"recorded epochs of {', '.join(sorted({store.info.dataset for store in sources.stores.values()}))}",
        simulated=False,
        figures=tuple(evaluation.figures),
        confidence=tuple(evaluation.confidence),
        adapted=tuple(
            AdaptedFigures(name=name, uses=ADAPTATIONS[name][0], transductive=ADAPTATIONS[name][1], figures=tuple(some))
            for name, some in evaluation.adapted.items()
        ),
        single_trial_missing="",
        notes=tuple(evaluation.notes),
    )


def _check_same(model: BrainModel, splits: RecordedSplits) -> dict[str, set[str]]:
    """Refuse a model that is not of this config; return the people of the training by modality."""
    if set(model.modalities) != set(splits.modalities):
        raise ValueError(
            f"the model reads {model.modalities}, the config has {tuple(splits.modalities)}; take its own config"
        )
    trained_on = {name: set(one.people) for name, one in splits.modalities.items()}
    if any(set(model.people[name]) != people for name, people in trained_on.items()):
        raise ValueError(f"the model knows {model.people}, the config's people are {trained_on}; take its own config")
    return trained_on


class _Evaluation:
    """Figures, confidence and notes, collected modality by modality."""

    def __init__(
        self, model: BrainModel, epochs: EvaluatedEpochs, trained_on: Mapping[str, set[str]], counts: Sequence[int],
        windows: Sequence[Window], also: Sequence[str], n_permutations: int, seed: int, progress: bool,
    ) -> None:  # fmt: skip
        self.model, self.epochs, self.trained_on, self.counts = model, epochs, trained_on, counts
        self.windows, self.also, self.n_permutations, self.seed = windows, also, n_permutations, seed
        self.progress = progress
        self.figures: list[Figure] = []
        self.confidence: list[ConfidenceFigures] = []
        self.adapted: dict[str, list[Figure]] = {name: [] for name in also}
        self.notes: list[str] = []

    def run(self) -> None:
        names = self.model.modalities
        fused = {split: self._fused(split) for split in (TEST, VALIDATION)} if len(names) > 1 else {}
        for name in names:
            self._modality(name, fused)
        if fused:
            self._pairs(names, fused)
        self.notes += [
            "figures outside the section on adaptations are inductive: nothing was adapted to test recordings; "
            "whitening and scaling are those of training",
            "confidence is calibrated on the epochs of validation pictures, which chose the checkpoint as well",
            WINDOW_NOTE,
        ]

    def _plan(self, names: Sequence[str]) -> FigurePlan:
        gallery, _ = self.epochs.gallery(tuple(names), TEST)
        return FigurePlan(
            gallery, TEST, VALIDATION, {"modality": combination(names)}, n_permutations=self.n_permutations,
            seed=self.seed,
        )  # fmt: skip

    def _modality(self, name: str, fused: Mapping[str, FusedAnswers]) -> None:
        """Decode everybody's epochs of one modality and score them; hand the pairs' share on."""
        people = self.epochs.people(name, TEST)
        strangers = sorted(set(people) - self.trained_on[name])
        if strangers:
            self.notes.append(
                f"{name}: people {', '.join(strangers)} were not trained on and are decoded with the mean person's "
                "layers"
            )
        plan = self._plan([name])
        found: dict[str, dict[str, Answers]] = {TEST: {}, VALIDATION: {}}
        adapted: dict[str, dict[str, Answers]] = {one: {} for one in self.also}
        for person in tqdm(people, desc=f"decode {name}, people", disable=not self.progress, mininterval=1.0):
            for split in (VALIDATION, TEST):
                if split == VALIDATION and not (person in self.trained_on[name] or self.also):
                    continue
                epochs = self._read(name, person, split)
                if epochs is not None:
                    found[split][person] = self._answers(name, person, split, epochs)
                    if split in fused:
                        fused[split].add(name, person, epochs)
            for one in self.also:
                adapted[one][person] = self._adapted(one, name, person, found)
        self._score(collected(found[TEST])[name], plan)
        known = {person: one for person, one in found[VALIDATION].items() if person in self.trained_on[name]}
        self._calibrate(collected(found[TEST])[name], collected(known).get(name, {}), [name], plan)
        for one, by_person in adapted.items():
            self.adapted[one] += answer_figures(collected(by_person)[name], with_group(plan, **{ADAPTATION: one}))

    def _read(self, name: str, person: str, split: str) -> SignalEpochs | None:
        if person not in self.epochs.people(name, split):
            return None
        return self.epochs.epochs(name, person, split)

    def _answers(self, name: str, person: str, split: str, epochs: SignalEpochs) -> Answers:
        _, embeds = self.epochs.gallery((name,), split)
        kinds, windows = (KINDS, self.windows) if split == TEST else ((RECORDING,), ())
        return answers_by_count(
            self.model, {name: epochs}, person, embeds, self.counts, [[name]], kinds=kinds, windows=windows,
            seed=self.seed,
        )  # fmt: skip

    def _adapted(self, adaptation: str, name: str, person: str, found: Mapping[str, Mapping[str, Answers]]) -> Answers:
        """Decode a person's single presentations and largest averages with an adaptation."""
        if person not in found[VALIDATION]:
            raise ValueError(
                f"{name}: {person} has no epochs of validation pictures to adapt to, expected some; leave "
                f"{adaptation} out"
            )
        by_count, windows = found[TEST][person][name], found[VALIDATION][person][name]
        _, embeds = self.epochs.gallery((name,), TEST)
        answers = {}
        for n in {1, max(by_count)}:
            window = windows[max(count for count in windows if count <= n)]
            data = AdaptationData(
                by_count[n], gallery_vectors(self.model, embeds, [name]), self._labelled(window, name), name,
                self._labelled(by_count[n], name),
            )  # fmt: skip
            answers[n] = adapted_answers(adaptation, data)
        return {name: answers}

    def _labelled(self, answers: PersonAnswers, name: str) -> LabelledEpochs:
        table = self.epochs.sources.targets
        rows = table.index(answers.images)
        concepts = tuple(table.concepts[row] for row in rows)
        shown = gallery_vectors(self.model, table.embeds[rows], [name])
        return LabelledEpochs(answers.embeds[RECORDING], shown, answers.images, concepts)

    def _score(self, answers: ByCount, plan: FigurePlan) -> None:
        self.figures += answer_figures(answers, plan)

    def _calibrate(self, answers: ByCount, validation: ByCount, names: Sequence[str], plan: FigurePlan) -> None:
        gallery, _ = self.epochs.gallery(tuple(names), VALIDATION)
        if not validation:
            self.notes.append(f"{combination(names)}: no epochs of validation pictures, so there is no confidence")
            return
        self.confidence += answer_confidence(answers, validation, gallery, plan)
        if len(gallery.images) < len(plan.gallery.images):
            self.notes.append(
                f"{combination(names)}: there are only {len(gallery.images)} validation pictures, so confidence is "
                f"calibrated and measured in galleries of {len(gallery.images)} and not {len(plan.gallery.images)}"
            )

    def _fused(self, split: str) -> FusedAnswers:
        people = {name: self.epochs.people(name, split) for name in self.model.modalities}
        if split == VALIDATION:
            people = {name: [one for one in some if one in self.trained_on[name]] for name, some in people.items()}
        plans = {n: plan_pairs(self.epochs, people, split, n, self.seed) for n in self.counts}
        kinds = KINDS if split == TEST else (RECORDING,)
        return FusedAnswers(self.model, {n: one for n, one in plans.items() if one is not None}, kinds, self.seed)

    def _pairs(self, names: Sequence[str], fused: Mapping[str, FusedAnswers]) -> None:
        """Score pairs of different people's recordings, and each modality alone on the same rows."""
        key = combination(names)
        if 1 not in fused[TEST].plans:
            self.notes.append(f"{key}: no two test pictures were shown in all modalities, so nothing could be joined")
            return
        _, embeds = self.epochs.gallery(tuple(names), TEST)
        _, others = self.epochs.gallery(tuple(names), VALIDATION)
        answers = fused[TEST].answers(embeds, self.windows)
        plan = self._plan(names)
        self._score(answers[key], FigurePlan(**{**vars(plan), "by_person": False}))
        validation = fused[VALIDATION].answers(others)[key] if 1 in fused[VALIDATION].plans else {}
        self._calibrate(answers[key], validation, names, plan)
        for name in names:
            alone = FigurePlan(**{**vars(plan), "by_person": False, "group": {"modality": name, "rows": f"of {key}"}})
            self._score(answers[name], alone)
        self.notes.append(_pair_note(key, fused[TEST], self.epochs, names))


def _pair_note(key: str, fused: FusedAnswers, epochs: EvaluatedEpochs, names: Sequence[str]) -> str:
    counts = ", ".join(f"{len(plan.images)} pairs of {n} averaged" for n, plan in sorted(fused.plans.items()))
    people = ", ".join(f"{len(epochs.people(name, TEST))} people of {name}" for name in names)
    return (
        f"{key}: recordings of different people ({people}) joined on the picture. Within a picture everybody's "
        "averages of a modality are put in random order and paired until one modality has none left, so each "
        f"presentation is used once at most per figure: {counts}. Rows 'of {key}' are one modality alone on these pairs"
    )
