"""One training run from its config to its report, on a runtime that the caller has opened."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignment.brain_training import BrainTraining
from alignment.environment import environment, write_environment
from alignment.fit import fit
from alignment.pairs import read_targets
from alignment.report import test_report
from alignment.runtime import Runtime
from alignment.study import DataConfig, Study
from alignment.tracking import tracked
from alignment.train_config import TrainConfig
from encoders.durable_files import write_atomic


@dataclass(frozen=True)
class RunOptions:
    """What a command line may choose beside the config; none of it changes a result.

    Attributes
    ----------
    resume : bool
        Continue a killed run; False discards what it left.
    n_workers : int
        Threads that read batches ahead.
    profile : bool
        Put the times of waiting for data and of computing into the report.
    tracker : str
        Where curves go besides ``log.jsonl``; see `alignment.tracking`.
    """

    resume: bool = True
    n_workers: int = 0
    profile: bool = False
    tracker: str = ""


def open_runtime(config: TrainConfig, options: RunOptions) -> Runtime:
    """Make the runtime of a run; close it once, after the last run of the program."""
    return Runtime(threads=config.threads, seed=config.seed, n_workers=options.n_workers)


def run_training(
    config: TrainConfig, run_dir: Path, runtime: Runtime, options: RunOptions, study: Study | None = None
) -> tuple[dict[str, Any], Study]:
    """Train, export and report.

    Returns
    -------
    report : dict
        As written to ``report.json``; empty on processes other than the first.
    study : Study
        What was trained on: ``study`` if given.
    """
    training = BrainTraining(config, runtime, study)
    run_dir.mkdir(parents=True, exist_ok=True)
    if runtime.is_main:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        write_atomic(run_dir / "config.yaml", text.encode())
        write_environment(run_dir / "environment.json", environment(runtime))
    with tracked(options.tracker if runtime.is_main else "", run_dir) as on_log:
        result = fit(
            training.module, training.loss, training.batch_at, config.fit, runtime, run_dir, training.validate,
            resume=options.resume, on_log=on_log,
        )  # fmt: skip
    if not runtime.is_main:
        return {}, training.study
    model = training.export(result.weights)
    model.save(run_dir / "brain")
    report = {
        "data": data_statement(config),
        "selection": {"split": "val", "score": result.best_score, "step": result.best_step, "steps": result.step},
        "skipped_steps": result.n_skipped,
        "training_seconds": result.seconds,
        "n_train_images": len(training.study.train_embeds),
        "n_val_images": len(training.study.val_embeds),
    }
    if options.profile:
        report["step_seconds"] = result.times
    simulator = training.study.simulator
    if isinstance(config.data, DataConfig):
        assert simulator is not None
        test_embeds = read_targets(config.targets)["test"].embeds
        report["train_repetitions"] = config.data.train_repetitions
        report["scores"] = test_report(
            model, simulator, training.ridges(), test_embeds, training.combinations,
            n_repetitions=config.data.test_repetitions,
        )  # fmt: skip
    write_atomic(run_dir / "report.json", json.dumps(report, indent=1).encode())
    return report, training.study


def data_statement(config: TrainConfig) -> str:
    """Say what kind of data a run used."""
    if isinstance(config.data, DataConfig):
        return "simulated recordings of procedural pictures; no real brain took part"
    return f"recorded epochs of the stores {dict(config.data.stores)}; the test split was not read"
