"""Search the settings of a training: short trials on a concept-complete subset, judged on validation pictures alone.

    python -m alignment.search --config configs/NAME.yaml --space configs/search.yaml --run-dir out/search --trials 40

The run folder receives ``search.db`` (the trials, unless ``--storage`` names another database), ``trials/`` (a training
folder each), ``trials.json``, ``search.json`` and ``best.yaml``, a config for `alignment.train`. Started again, it goes
on; started several times on one storage, the processes share the trials. Nothing of the test split is used. With
``--check-top N`` the best N are trained on all training data too, which tells whether the subset ranks settings as the
full data does (Spearman of at least 0.6 is expected before the rest of the ranking is trusted).
"""

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from alignment.brain_training import BrainTraining, record_study
from alignment.fit import FitResult, fit
from alignment.joined_pairs import JoinedPairs
from alignment.rank_check import check_top
from alignment.runtime import Runtime
from alignment.search_space import Choice, SearchConfig, changed_config, search_digest, smallest_values, trial_config
from alignment.study import Study
from alignment.study_subset import StudySubset, study_subset, training_concepts
from alignment.train_config import TrainConfig, choose
from alignment.trials import Report, open_trials, run_trials, trial_table
from encoders.durable_files import write_atomic
from encoders.yaml_mapping import read_mapping

if TYPE_CHECKING:
    import optuna

SUBSET_COUNTS = ("n_rows", "n_rows_full", "n_concepts", "n_concepts_full")


@dataclass(frozen=True)
class Search:
    """An opened search: its trials, and what they train on.

    Attributes
    ----------
    config : TrainConfig
        As given.
    short : TrainConfig
        With the length of a trial.
    settings : SearchConfig
    run_dir : Path
    trials : optuna.Study
    runtime : Runtime
    subsets : dict of str to StudySubset
        Opened once per kind of preprocessing.
    """

    config: TrainConfig
    short: TrainConfig
    settings: SearchConfig
    run_dir: Path
    trials: "optuna.Study"
    runtime: Runtime
    subsets: dict[str, StudySubset]

    def subset(self, config: TrainConfig) -> StudySubset:
        """Give the part of the config's study that trials train on."""
        return _subset(config, self.settings, self.runtime, self.subsets)


def search(
    config: TrainConfig, settings: SearchConfig, run_dir: Path, n_trials: int, *, storage: str = "",
    n_check: int = 0, n_seeds: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Run a search to its report, or go on with one.

    Parameters
    ----------
    config : TrainConfig
        What is not searched.
    settings : SearchConfig
    run_dir : Path
    n_trials : int
        In all, those of earlier runs and of other processes counted.
    storage : str
        URL of a database; empty: SQLite in the run folder.
    n_check : int
        How many of the best trials to train on all data, 0 or at least 3.
    n_seeds : int
        Trainings of each of these.

    Returns
    -------
    dict
        The report, as written to ``search.json``.

    Raises
    ------
    ValueError
        See `open_search` and `conclude`.
    """
    if n_check and n_check < 3:
        raise ValueError(f"n_check is {n_check}, expected 0 or at least 3: fewer have no ranks to compare")
    opened = open_search(config, settings, run_dir, storage)
    do_trials(opened, n_trials)
    return conclude(opened, n_check=n_check, n_seeds=n_seeds)


def open_search(config: TrainConfig, settings: SearchConfig, run_dir: Path, storage: str = "") -> Search:
    """Open or begin a search and check that its trials can be trained.

    Raises
    ------
    ValueError
        If a path of the space is not in the config, the network of its lowest values cannot be built, a batch exceeds
        the subset, the storage holds another search, or the run has several processes.
    """
    runtime = Runtime(threads=config.threads, seed=config.seed)
    if runtime.world > 1:
        raise ValueError(
            f"a trial is trained by one process, got a group of {runtime.world}; start single processes that share a "
            "storage instead"
        )
    short = trial_config(config, settings)
    smallest = changed_config(short, smallest_values(settings.space))
    subsets: dict[str, StudySubset] = {}
    _check_batches(short, settings, _subset(short, settings, runtime, subsets))
    BrainTraining(smallest, runtime, _subset(smallest, settings, runtime, subsets).study)
    trials = open_trials(
        run_dir, storage, settings, search_digest(config, settings), max_steps=short.fit.max_steps,
        validate_every=short.fit.validate_every,
    )  # fmt: skip
    return Search(config, short, settings, run_dir, trials, runtime, subsets)


def do_trials(opened: Search, n_trials: int) -> None:
    """Do the trials that are missing, together with other processes that do the same."""

    def objective(values: Mapping[str, Any], number: int, report: Report) -> float:
        config = changed_config(opened.short, values)
        folder = opened.run_dir / "trials" / f"{number:05d}"
        return _trained(config, opened.subset(config).study, folder, opened.runtime, report).best_score

    run_trials(opened.trials, objective, opened.settings, n_trials)


def conclude(opened: Search, *, n_check: int = 0, n_seeds: int = 1) -> dict[str, Any]:
    """Write table, report and best config of the trials so far; ``n_check`` and ``n_seeds`` as in `search`.

    Raises
    ------
    ValueError
        If no trial, or with ``n_check`` fewer than 3, ran to its end.
    """
    config, run_dir = opened.config, opened.run_dir
    rows = trial_table(opened.trials, opened.settings)
    complete = [row for row in rows if row["state"] == "complete"]
    if not complete:
        raise ValueError(f"none of {len(rows)} trials ran to its end; run more, or look at their notes in {run_dir}")
    best, checked = complete[0], None
    if n_check:
        full = {row["number"]: (row["score"], changed_config(config, row["values"])) for row in complete[:n_check]}
        checked = check_top(full, run_dir / "check", opened.runtime, _full_score, n_seeds)
        best = next(row for row in complete if row["number"] == checked.best)
    subset = opened.subset(opened.short)
    n_val = len(subset.study.val_embeds)
    report = {
        "n_trials": len(rows),
        "n_cut": len(rows) - len(complete),
        "best": {key: best[key] for key in ("number", "score", "steps", "values")},
        "score": f"mean top-1 among {n_val} validation pictures, chance {1 / n_val:.4f}; selected on these",
        "n_val_images": n_val,
        "chance": 1 / n_val,
        "subset": {name: getattr(subset, name) for name in SUBSET_COUNTS},
        "check": checked.to_json() if checked else None,
    }
    text = yaml.safe_dump(changed_config(config, best["values"]).model_dump(mode="json"), sort_keys=False)
    files = {"trials.json": json.dumps(rows, indent=1), "search.json": json.dumps(report, indent=1), "best.yaml": text}
    for name, content in files.items():
        write_atomic(run_dir / name, content.encode())
    return report


def search_text(report: Mapping[str, Any]) -> str:
    """Lay out a report for the terminal."""
    best, subset, checked = report["best"], report["subset"], report["check"]
    lines = [
        f"{report['n_trials']} trials, {report['n_cut']} of them cut early; trained on {subset['n_rows']} of "
        f"{subset['n_rows_full']} epochs with {subset['n_concepts']} of {subset['n_concepts_full']} concepts",
        f"best: trial {best['number']}, {best['score']:.3f} ({report['score']})",
        *(f"  {path} = {value}" for path, value in best["values"].items()),
    ]
    lines.append(
        checked["text"] if checked else "ranks of the subset were not compared with full data; see --check-top"
    )
    return "\n".join(lines)


def _subset(
    config: TrainConfig, settings: SearchConfig, runtime: Runtime, subsets: dict[str, StudySubset]
) -> StudySubset:  # fmt: skip
    shown = {name: [one.layout, one.preprocess] for name, one in config.modalities.items()}
    key = json.dumps(shown, sort_keys=True)
    if key not in subsets:
        study = record_study(config, runtime)
        subsets[key] = study_subset(study, training_concepts(config, study), settings.subset)
    return subsets[key]


def _trained(
    config: TrainConfig, study: Study, folder: Path, runtime: Runtime, report: Report | None = None
) -> FitResult:
    """Train with the loop of `alignment.train`; a training that was stopped in this folder goes on."""
    training = BrainTraining(config, runtime, study)
    fresh: list[float] = []

    def validate(module: torch.nn.Module) -> dict[str, float]:
        scores = training.validate(module)
        fresh.append(scores["score"])
        return scores

    def on_step(step: int, numbers: Mapping[str, float]) -> None:
        if fresh and report is not None:
            report(step, fresh.pop())

    try:
        return fit(
            training.module, training.loss, training.batch_at, config.fit, runtime, folder, validate, on_step=on_step,
            progress=False,
        )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"the trial does not fit into the accelerator's memory: {error}") from error


def _full_score(config: TrainConfig, folder: Path, runtime: Runtime) -> float:
    return _trained(config, record_study(config, runtime), folder, runtime).best_score


def _check_batches(config: TrainConfig, settings: SearchConfig, subset: StudySubset) -> None:
    one = settings.space.get("batch_size")
    largest = config.batch_size if one is None else max(one.values) if isinstance(one, Choice) else one.high
    train = subset.study.train
    if largest > len(train):
        what = "pairs and single epochs" if isinstance(train, JoinedPairs) else "epochs"
        raise ValueError(
            f"the largest batch is {largest}, expected at most the {len(train)} {what} of the subset; lower batch_size "
            "or raise subset.fraction"
        )


def read_settings(path: Path) -> SearchConfig:
    """Read a YAML file of `SearchConfig`."""
    return SearchConfig.model_validate(read_mapping(path))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m alignment.search", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="YAML of a training, see configs/")
    parser.add_argument("--space", type=Path, required=True, help="YAML of the search, see configs/search.yaml")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--trials", type=int, required=True, help="in all, those of earlier runs counted")
    parser.add_argument("--storage", default="", help="URL of a database that processes share; default: in the run dir")
    parser.add_argument("--modality", action="append", default=[], help="use only this one (may be repeated)")
    parser.add_argument("--check-top", type=int, default=0, metavar="N", help="train the best N on all data too")
    parser.add_argument("--check-seeds", type=int, default=1, metavar="N", help="trainings of each of these")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("alignment.trials").setLevel(logging.INFO)
    config = choose(read_mapping(arguments.config), modalities=arguments.modality)
    report = search(
        config, read_settings(arguments.space), arguments.run_dir, arguments.trials, storage=arguments.storage,
        n_check=arguments.check_top, n_seeds=arguments.check_seeds,
    )  # fmt: skip
    print(search_text(report))
    print(f"train it on all data with: python -m alignment.train --config {arguments.run_dir / 'best.yaml'}")


if __name__ == "__main__":
    main()
