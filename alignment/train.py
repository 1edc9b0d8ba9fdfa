"""Train brain encoders and their fusion against CLIP targets, on simulated or on prepared recordings.

    accelerate launch [--config_file deploy/accelerate/X.yaml] -m alignment.train --config configs/demo.yaml \
        --run-dir out/brain

One process or several; continues a killed run. The run folder receives ``config.yaml``, ``environment.json``,
``log.jsonl``, checkpoints, ``brain/`` (the exported `BrainModel`) and ``report.json``, and with ``--tracker`` curves.
``--seeds 0,1,2`` trains one model per seed in folders of their own and scores their average in ``ensemble.json``.
Expected time and scores stand in the config file. The test split of a simulated study is read once, for the report,
after selection on validation pictures has ended; that of recorded data is not here at all (``phosphene evaluate`` reads
it).
"""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from alignment.report import summary
from alignment.runtime import end_program
from alignment.seed_ensemble import ensemble_text, train_seeds
from alignment.train_config import TrainConfig, choose
from alignment.training_run import RunOptions, open_runtime, run_training


def train(config: TrainConfig, run_dir: Path, options: RunOptions | None = None) -> dict[str, Any]:
    """Run a training to its report.

    Returns
    -------
    dict
        The report, as written to ``report.json``; empty on processes other than the first.
    """
    options = options or RunOptions()
    runtime = open_runtime(config, options)
    report, _ = run_training(config, run_dir, runtime, options)
    runtime.close()  # a process that exits with its group open may abort
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


def profile_text(times: Mapping[str, float]) -> str:
    """Say how long steps waited for data and computed."""
    if not times:
        return "no step was taken, so nothing was timed"
    return (
        f"a step waited {1000 * times['median_wait']:.1f} ms for its batch and computed "
        f"{1000 * times['median_compute']:.1f} ms (medians of {times['n_steps']} steps); "
        f"{times['wait_share']:.1%} of the time was waiting: raise --workers if that is much"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m alignment.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see configs/")
    parser.add_argument("--run-dir", type=Path, help="default: out/<name of the config>")
    parser.add_argument("--targets", type=Path, help="file of targets, instead of the config's")
    parser.add_argument("--encoder", help="preset for every modality, instead of the config's: see phosphene encoders")
    parser.add_argument("--modality", action="append", default=[], help="use only this one (may be repeated)")
    parser.add_argument("--subject", action="append", default=[], help="train on this person (may be repeated)")
    parser.add_argument("--held-out", action="append", default=[], metavar="SUBJECT", help="leave this person out")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of the config's")
    parser.add_argument("--seed", type=int, help="instead of the config's")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help="continue a killed run")
    parser.add_argument("--seeds", type=_seeds, default=(), metavar="0,1,2", help="one model each and their average")
    parser.add_argument("--workers", type=int, default=0, help="threads that read batches ahead; 4 suit one GPU")
    parser.add_argument("--profile", action="store_true", help="time waiting for data against computing")
    parser.add_argument("--tracker", default="", help="write curves too: tensorboard, or another of Accelerate's")
    arguments = parser.parse_args()
    if arguments.seeds and arguments.seed is not None:
        parser.error("--seed and --seeds exclude each other")
    logging.basicConfig(level=logging.WARNING)
    config = choose(
        yaml.safe_load(arguments.config.read_text()), encoder=arguments.encoder, modalities=arguments.modality,
        steps=arguments.steps, seed=arguments.seed, targets=arguments.targets, subjects=arguments.subject,
        held_out=arguments.held_out,
    )  # fmt: skip
    options = RunOptions(arguments.resume, arguments.workers, arguments.profile, arguments.tracker)
    run_dir = arguments.run_dir or Path("out") / arguments.config.stem
    if arguments.seeds:
        ensemble = train_seeds(config, arguments.seeds, run_dir, options)
        if ensemble:
            print(ensemble_text(ensemble))
        return
    report = train(config, run_dir, options)
    if report:
        print(report_text(report))
        if arguments.profile:
            print(profile_text(report["step_seconds"]))


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(","))


if __name__ == "__main__":
    main()
    end_program()
