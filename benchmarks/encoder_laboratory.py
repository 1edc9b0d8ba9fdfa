"""Where the jobs of `encoder_table.py` are trained, selected and tested: one laboratory per choice of modalities."""

import json
import time
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from alignment.brain_model import encode_pairs
from alignment.brain_training import BrainTraining, record_study
from alignment.fit import FitResult, fit
from alignment.pairs import Pairs, read_targets, record_pairs
from alignment.report import TEST_NOISE, fit_ridges
from alignment.retrieval import report_similarity
from alignment.runtime import Runtime
from alignment.study import Study
from alignment.train_config import TrainConfig, choose
from benchmarks.encoder_jobs import Budget, Job
from encoders.durable_files import write_atomic
from encoders.modality import combination

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "generation" / "demo_data" / "encoder.yaml"
PILOT_STEPS, TIMED_STEPS = 3, 6
INFERENCE_BATCH = 64


@dataclass
class Laboratory:
    """Recordings of one choice of modalities: what all its jobs are trained, selected and tested on."""

    modalities: tuple[str, ...]
    runtime: Runtime
    settings: dict[str, Any] = field(default_factory=lambda: yaml.safe_load(CONFIG.read_text()))

    def config(self, **changes: Any) -> TrainConfig:
        targets = ROOT / self.settings["targets"]
        return choose({**self.settings, **changes}, modalities=self.modalities, targets=targets)

    def only(self, modalities: tuple[str, ...]) -> "Laboratory":
        """Give the laboratory of some of the modalities, with the same recordings."""
        part = Laboratory(modalities, self.runtime, self.settings)
        part.study = self.study.view(modalities)
        part.test = {label: pairs.view(modalities) for label, pairs in self.test.items()}
        return part

    @cached_property
    def study(self) -> Study:
        return record_study(self.config(), self.runtime)

    @cached_property
    def test_embeds(self) -> np.ndarray[Any, Any]:
        return read_targets(self.config().targets)["test"].embeds

    @cached_property
    def test(self) -> dict[str, Pairs]:
        """Test pictures as single presentations and as averages of the same ones."""
        n, n_people = self.config().data.test_repetitions, len(self.study.subjects[self.modalities[0]])
        return {
            label: record_pairs(
                self.study.simulator, self.study.preprocessors, self.test_embeds, n_people, n_repetitions=n,
                average=average, seed=TEST_NOISE,
            )
            for label, average in (("single", False), (f"averaged_{n}", True))
        }  # fmt: skip

    def keep(self, folder: Path, key: str, similarity: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        """Store similarities (n, m) of each kind of test epochs and return their scores."""
        scores, tensors = {}, {}
        for label, table in similarity.items():
            target = np.asarray(self.test[label].target)
            scores[label] = report_similarity(table, target).to_json()
            tensors[f"{label}_target"] = target
            tensors[f"{label}_scores"] = table.astype(np.float32)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / f"{key}.safetensors")
        return scores


def train_job(job: Job, laboratory: Laboratory, folder: Path) -> tuple[BrainTraining, FitResult, dict[str, float]]:
    """Train one network, or give a finished one again, with the selected weights."""
    runtime = laboratory.runtime
    training = BrainTraining(laboratory.config(**job.settings(laboratory.settings)), runtime, laboratory.study)
    plan = planned_steps(training, folder, job.budget)
    steps = int(plan["steps"])
    every = max(steps // 8, 1)
    config = training.config.fit.model_copy(
        update={"max_steps": steps, "validate_every": every, "checkpoint_every": every, "lr": job.budget.lr}
    )
    result = fit(
        training.module, training.loss, training.batch_at, config, runtime, folder, training.validate, progress=False
    )
    training.module.load_state_dict(dict(result.weights))
    training.module.eval()
    return training, result, plan


def run_job(job: Job, laboratory: Laboratory, folder: Path) -> dict[str, Any]:
    """Train one network and test it; returns what the table needs."""
    training, result, plan = train_job(job, laboratory, folder)
    fusion = training.module.fusion
    n_parameters = sum(p.numel() for p in fusion.parameters() if p.requires_grad)
    scores = {}
    for names in training.combinations:
        key, space = combination(names), training.mapped_space(training.module, names)
        embeds = {label: training.encode(fusion, pairs, names) for label, pairs in laboratory.test.items()}
        similarity = {label: space.similarity(one, laboratory.test_embeds) for label, one in embeds.items()}
        scores[key] = laboratory.keep(folder, key, similarity)
    return {
        "job": job.key, "title": job.title, "group": job.group, "modalities": job.modalities, "seed": job.seed,
        "n_parameters": n_parameters, "budget": asdict(job.budget), "steps": result.step, "best_step": result.best_step,
        "validation": result.best_score, "n_skipped": result.n_skipped, "train_rate": plan["train_rate"],
        "inference_rate": inference_rate(training, laboratory), "scores": scores,
    }  # fmt: skip


def planned_steps(training: BrainTraining, folder: Path, budget: Budget) -> dict[str, float]:
    """Time a few training steps and say how many the budget holds; the answer is kept for a resumed run."""
    file = folder / "plan.json"
    if file.exists():
        return dict(json.loads(file.read_text()))
    weights = {name: value.clone() for name, value in training.module.state_dict().items()}
    seconds: list[float] = []
    started = time.process_time()

    def note(step: int, numbers: Any) -> None:
        nonlocal started
        seconds.append(time.process_time() - started)
        started = time.process_time()

    config = training.config.fit.model_copy(update={"max_steps": PILOT_STEPS + TIMED_STEPS, "warmup_steps": 0})
    pilot = folder / "pilot"
    fit(
        training.module, training.loss, training.batch_at, config, training.runtime, pilot, progress=False,
        resume=False, on_step=note,
    )  # fmt: skip
    training.module.load_state_dict(weights)
    step_seconds = float(np.median(seconds[PILOT_STEPS:]))
    steps = int(min(budget.steps, max(budget.seconds / step_seconds, 8)))
    plan = {"steps": steps, "step_seconds": step_seconds, "train_rate": training.config.batch_size / step_seconds}
    write_atomic(file, json.dumps(plan).encode())
    return plan


def inference_rate(training: BrainTraining, laboratory: Laboratory, repeats: int = 7) -> float:
    """Measure epochs per CPU second at batch 64 with everything available, median of ``repeats``."""
    pairs = laboratory.test["single"]
    data = {name: one[:INFERENCE_BATCH].astype(np.float32) for name, one in pairs.data.items()}
    subject = pairs.subject[:INFERENCE_BATCH]
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        encode_pairs(training.module.fusion, data, training.positions, subject, training.runtime)
        seconds.append(time.process_time() - started)
    return INFERENCE_BATCH / float(np.median(seconds))


def run_yardsticks(job: Job, laboratory: Laboratory, folder: Path) -> dict[str, Any]:
    """Score ridge (per person, penalty by validation) and the ideal observer on the same test epochs."""
    study, names = laboratory.study, laboratory.modalities
    ridges = fit_ridges(study.train, study.val, study.train_embeds, study.val_embeds)
    answers: dict[str, dict[str, dict[str, np.ndarray[Any, Any]]]] = {"ridge": {}, "ideal_observer": {}}
    layouts = {name: preprocessor.layout.name for name, preprocessor in study.preprocessors.items()}
    for label, pairs in laboratory.test.items():
        for name in names:
            rows = []
            for subject in range(len(study.subjects[names[0]])):
                mine = pairs.subject == subject
                data = {name: pairs.data[name][mine].astype(np.float32)}
                rows.append(ridges.scores(data, subject, laboratory.test_embeds)[name])
            answers["ridge"].setdefault(name, {})[label] = np.concatenate(rows)
            answers["ideal_observer"].setdefault(name, {})[label] = observed(laboratory, name, layouts[name], label)
    scores: dict[str, Any] = {}
    for who, by_name in answers.items():
        found = dict(by_name)
        if len(names) > 1:
            found[combination(names)] = {
                label: np.sum([by_name[name][label] for name in names], axis=0) for label in laboratory.test
            }
        scores[who] = {key: laboratory.keep(folder / who, key, tables) for key, tables in found.items()}
    return {"job": "yardsticks", "modalities": names, "scores": scores}


def observed(laboratory: Laboratory, name: str, layout: str, label: str) -> np.ndarray[Any, Any]:
    """Score the test epochs by the ideal observer, in the order of the test pairs."""
    study = laboratory.study
    n = laboratory.config().data.test_repetitions
    stimulus = [str(row) for row in range(len(laboratory.test_embeds))]
    parts = []
    for subject in range(len(study.subjects[name])):
        epochs = study.simulator.record(
            laboratory.test_embeds, modality=name, layout=layout, subject=subject, n_repetitions=n, seed=TEST_NOISE,
            stimulus=stimulus,
        )  # fmt: skip
        epochs = epochs if label == "single" else epochs.average_repetitions()
        parts.append(
            study.simulator.ideal_observer(
                epochs, laboratory.test_embeds, modality=name, layout=layout, subject=subject
            )
        )
    return np.concatenate(parts)
