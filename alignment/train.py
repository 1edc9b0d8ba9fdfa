"""Train brain encoders and their fusion against CLIP targets, on simulated or on prepared recordings.

    accelerate launch [--config_file deploy/accelerate/X.yaml] -m alignment.train --config configs/demo.yaml \
        --run-dir out/brain

One process or several; continues a killed run. The run folder receives ``config.yaml``, ``log.jsonl``, checkpoints,
``brain/`` (the exported `BrainModel`) and ``report.json``. Expected time and scores stand in the config file. The test
split of a simulated study is read once, for the report, after selection on validation pictures has ended; that of
recorded data is not here at all (``phosphene evaluate`` reads it).
"""

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from alignment.brain_training import BrainTraining
from alignment.checkpoint import write_atomic
from alignment.fit import fit
from alignment.pairs import read_targets
from alignment.report import summary, test_report
from alignment.runtime import Runtime
from alignment.study import DataConfig
from alignment.train_config import TrainConfig, choose


def train(config: TrainConfig, run_dir: Path, *, resume: bool = True) -> dict[str, Any]:
    """Run a training to its report.

    Returns
    -------
    dict
        The report, as written to ``report.json``; empty on processes other than the first.
    """
    runtime = Runtime(threads=config.threads, seed=config.seed)
    training = BrainTraining(config, runtime)
    run_dir.mkdir(parents=True, exist_ok=True)
    if runtime.is_main:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        write_atomic(run_dir / "config.yaml", text.encode())
    result = fit(
        training.module, training.loss, training.batch_at, config.fit, runtime, run_dir, training.validate,
        resume=resume,
    )  # fmt: skip
    if not runtime.is_main:
        runtime.close()  # a process that exits with its group open may abort
        return {}
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
    runtime.close()
    return report


def report_text(report: Mapping[str, Any]) -> str:
    """Lay out a report for the terminal."""
    if "scores" in report:
        return summary(report["scores"])
    chosen = report["selection"]
    return (
        f"validation top-1 {chosen['score']:.3f} of {report['n_val_images']} pictures (chance "
        f"{1 / report['n_val_images']:.4f}), weights of step {chosen['step']} of {chosen['steps']}; the test split was "
        "not read: run `phosphene evaluate --run-dir`"
    )


def data_statement(config: TrainConfig) -> str:
    """Say what kind of data a run used."""
    if isinstance(config.data, DataConfig):
        return "simulated recordings of procedural pictures; no real brain took part"
    return f"recorded epochs of the stores {dict(config.data.stores)}; the test split was not read"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m alignment.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see configs/")
    parser.add_argument("--run-dir", type=Path, help="default: out/<name of the config>")
    parser.add_argument("--targets", type=Path, help="file of targets, instead of the config's")
    parser.add_argument("--encoder", help="preset for every modality, instead of the config's: see phosphene encoders")
    parser.add_argument("--modality", action="append", default=[], help="use only this one (may be repeated)")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of the config's")
    parser.add_argument("--seed", type=int, help="instead of the config's")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help="continue a killed run")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    config = choose(
        yaml.safe_load(arguments.config.read_text()), encoder=arguments.encoder, modalities=arguments.modality,
        steps=arguments.steps, seed=arguments.seed, targets=arguments.targets,
    )  # fmt: skip
    report = train(config, arguments.run_dir or Path("out") / arguments.config.stem, resume=arguments.resume)
    if report:
        print(report_text(report))


if __name__ == "__main__":
    main()
