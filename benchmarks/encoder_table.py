"""Train every encoder and every fusion on one simulated study and write the tables of ``BENCHMARKS.md``.

    python benchmarks/encoder_table.py [--workers N] [--only WORDS] [--work DIR] [--table]      (make bench-encoders)

Every job gets the same recordings, the same loss, at most ``MAX_STEPS`` optimizer steps of 256 epochs and at most
``MAX_SECONDS`` of processor time for training steps, on one thread: the number of steps is set from the speed of the
first ones, so that the learning rate always runs through its whole cycle. Weights are selected on validation pictures;
the test pictures are looked at once per job. Finished jobs are skipped and killed ones go on from their checkpoint, so
the command may be stopped and repeated; ``--table`` only writes what is there. About two hours of two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alignment.brain_model import encode_pairs  # noqa: E402
from alignment.checkpoint import write_atomic  # noqa: E402
from alignment.fit import fit  # noqa: E402
from alignment.pairs import Pairs, read_targets, record_pairs  # noqa: E402
from alignment.report import TEST_NOISE, fit_ridges  # noqa: E402
from alignment.retrieval import report_similarity  # noqa: E402
from alignment.runtime import Runtime  # noqa: E402
from alignment.study import Study  # noqa: E402
from alignment.train import BrainTraining, TrainConfig, choose, record_study  # noqa: E402
from benchmarks.encoder_jobs import LAYOUT_NAMES, LEARNING_RATE, Job, all_jobs  # noqa: E402
from benchmarks.encoder_report import write_tables  # noqa: E402
from encoders.modality import combination  # noqa: E402

CONFIG = ROOT / "generation" / "demo_data" / "encoder.yaml"
MAX_STEPS, MAX_SECONDS = 1000, 200.0
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

    @cached_property
    def study(self) -> Study:
        return record_study(self.config(), self.runtime)

    @cached_property
    def test_embeds(self) -> np.ndarray[Any, Any]:
        return read_targets(self.config().targets)["test"].embeds

    @cached_property
    def test(self) -> dict[str, Pairs]:
        """Test pictures as single presentations and as averages of the same ones."""
        n = self.config().data.test_repetitions
        return {
            label: record_pairs(
                self.study.simulator, self.study.preprocessors, self.test_embeds, self.study.n_subjects,
                n_repetitions=n, average=average, seed=TEST_NOISE,
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


def run_job(job: Job, laboratory: Laboratory, folder: Path) -> dict[str, Any]:
    """Train one network and test it; returns what the table needs."""
    runtime = laboratory.runtime
    training = BrainTraining(laboratory.config(**job.settings(laboratory.settings)), runtime, laboratory.study)
    n_parameters = sum(p.numel() for p in training.module.fusion.parameters() if p.requires_grad)
    plan = planned_steps(training, folder)
    steps = plan["steps"]
    every = max(steps // 8, 1)
    config = training.config.fit.model_copy(
        update={"max_steps": steps, "validate_every": every, "checkpoint_every": every, "lr": LEARNING_RATE}
    )
    result = fit(
        training.module, training.loss, training.batch_at, config, runtime, folder, training.validate, progress=False
    )
    training.module.load_state_dict(dict(result.weights))
    fusion = training.module.fusion.eval()
    space = training.mapped_space(training.module)
    scores = {}
    for names in training.combinations:
        key = combination(names)
        embeds = {label: training.encode(fusion, pairs, names) for label, pairs in laboratory.test.items()}
        similarity = {label: space.similarity(one, laboratory.test_embeds) for label, one in embeds.items()}
        scores[key] = laboratory.keep(folder, key, similarity)
    return {
        "job": job.key, "title": job.title, "group": job.group, "modalities": job.modalities, "seed": job.seed,
        "n_parameters": n_parameters, "lr": LEARNING_RATE, "steps": steps, "best_step": result.best_step,
        "validation": result.best_score, "n_skipped": result.n_skipped, "train_rate": plan["train_rate"],
        "inference_rate": inference_rate(training, laboratory), "scores": scores,
    }  # fmt: skip


def planned_steps(training: BrainTraining, folder: Path) -> dict[str, float]:
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
    steps = int(min(MAX_STEPS, max(MAX_SECONDS / step_seconds, 8)))
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


def run_yardsticks(laboratory: Laboratory, folder: Path) -> dict[str, Any]:
    """Score ridge (per person, penalty by validation) and the ideal observer on the same test epochs."""
    study, names = laboratory.study, laboratory.modalities
    ridges = fit_ridges(study.train, study.val, study.train_embeds, study.val_embeds)
    answers: dict[str, dict[str, dict[str, np.ndarray[Any, Any]]]] = {"ridge": {}, "ideal_observer": {}}
    layouts = {name: preprocessor.layout.name for name, preprocessor in study.preprocessors.items()}
    for label, pairs in laboratory.test.items():
        for name in names:
            rows = []
            for subject in range(study.n_subjects):
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
    for subject in range(study.n_subjects):
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


def claimed(folder: Path) -> bool:
    """Claim a job for this process; a claim of a process that is gone is taken over."""
    folder.mkdir(parents=True, exist_ok=True)
    claim = folder / "claim"
    try:
        with claim.open("x") as file:
            file.write(str(os.getpid()))
        return True
    except FileExistsError:
        owner = claim.read_text().strip()
        if owner.isdigit() and (Path("/proc") / owner).exists():
            return False
        claim.unlink(missing_ok=True)
        return claimed(folder)


def work_through(jobs: Sequence[Job], work: Path, threads: int) -> None:
    """Do every job that is neither done nor claimed, keeping recordings while the modalities stay the same."""
    laboratory: Laboratory | None = None
    runtime = Runtime(threads=threads)
    for job in jobs:
        folder = work / job.key
        if (folder / "result.json").exists() or not claimed(folder):
            continue
        if laboratory is None or laboratory.modalities != job.modalities:
            laboratory = Laboratory(job.modalities, runtime)
        started = time.perf_counter()
        try:
            yardsticks = job.group == "yardsticks"
            result = run_yardsticks(laboratory, folder) if yardsticks else run_job(job, laboratory, folder)
        except (ValueError, RuntimeError, FloatingPointError) as error:
            result = {"job": job.key, "title": job.title, "group": job.group, "modalities": job.modalities,
                      "seed": job.seed, "error": f"{type(error).__name__}: {error}"}  # fmt: skip
        result["wall_seconds"] = time.perf_counter() - started
        write_atomic(folder / "result.json", json.dumps(result, indent=1).encode())
        (folder / "claim").unlink(missing_ok=True)
        print(f"{job.key}: {result.get('error') or summary_line(result)}", flush=True)


def summary_line(result: dict[str, Any]) -> str:
    """Say the averaged top-1 of each combination."""
    scores = result["scores"]
    tables = scores["ridge"] if "ridge" in scores else scores
    parts = [f"{key} {value:.3f}" for key, table in tables.items() for value in [_averaged(table)["top_1"]]]
    return f"averaged top-1 {', '.join(parts)}; {result['wall_seconds']:.0f} s"


def _averaged(table: dict[str, Any]) -> dict[str, Any]:
    return next(scores for label, scores in table.items() if label != "single")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "bench", help="folder of finished jobs")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="one thread each")
    parser.add_argument("--only", default="", help="comma-separated words; a job runs if its key holds one of them")
    parser.add_argument("--table", action="store_true", help="write the tables of what is finished and stop")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    words = [word for word in arguments.only.split(",") if word]

    def chosen() -> list[Job]:
        return [job for job in all_jobs(arguments.work) if not words or any(word in job.key for word in words)]

    if arguments.worker:
        work_through(chosen(), arguments.work, threads=1)
        return
    while not arguments.table:
        before = [job.key for job in chosen()]
        command = [sys.executable, __file__, "--worker", "--work", str(arguments.work), "--only", arguments.only]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        running = [subprocess.Popen(command, env=environment) for _ in range(arguments.workers)]
        failed = [one.returncode for one in running if one.wait()]
        if failed:
            raise SystemExit(f"{len(failed)} of {arguments.workers} workers failed; run the command again to go on")
        if [job.key for job in chosen()] == before:  # the best of the first round get more seeds in the second
            break
    write_tables(arguments.work, LAYOUT_NAMES, MAX_STEPS, MAX_SECONDS)


if __name__ == "__main__":
    main()
