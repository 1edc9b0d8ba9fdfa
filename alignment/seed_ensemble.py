"""The same training with several seeds, and how much the average of their similarities gains, on validation pictures.

Each seed gives a model of its own, and serving takes one of them: nothing serves the average yet. Every model was
selected on the same validation pictures that are scored here, so the figures compare the average with its members and
are no estimate of the test score.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.brain_model import BrainModel
from alignment.retrieval import report_similarity
from alignment.study import Study
from alignment.train_config import TrainConfig
from alignment.training_run import RunOptions, data_statement, open_runtime, run_training
from encoders.durable_files import write_atomic
from encoders.modality import combination

REPORT = "ensemble.json"


def train_seeds(
    config: TrainConfig, seeds: Sequence[int], run_dir: Path, options: RunOptions | None = None
) -> dict[str, Any]:
    """Train one model per seed in ``run_dir/seed-<seed>`` and score their average.

    A finished seed is only read when the command is given again, so a killed ensemble continues.

    Returns
    -------
    dict
        As written to ``ensemble.json``; empty on processes other than the first.

    Raises
    ------
    ValueError
        If there are fewer than two seeds, or one comes twice.
    """
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(f"an ensemble needs two or more different seeds, got {list(seeds)}; use --seed for one")
    options = options or RunOptions()
    study: Study | None = None
    for seed in seeds:
        chosen = config.model_copy(update={"seed": seed})
        runtime = open_runtime(chosen, options)
        _, study = run_training(chosen, run_dir / f"seed-{seed}", runtime, options, study)
        runtime.wait()
    assert study is not None
    report: dict[str, Any] = {}
    if runtime.is_main:
        models = {str(seed): BrainModel.load(run_dir / f"seed-{seed}" / "brain", runtime) for seed in seeds}
        report = {
            "data": data_statement(config),
            "split": "val",
            "caution": "every model was selected on these pictures",
            "scores": ensemble_scores(models, study),
        }
        write_atomic(run_dir / REPORT, json.dumps(report, indent=1).encode())
    runtime.close()
    return report


def ensemble_scores(models: Mapping[str, BrainModel], study: Study) -> dict[str, dict[str, Any]]:
    """Score models and the mean of their similarities (cosines) on validation pictures.

    Returns
    -------
    dict
        ``{combination: {"n_averaged": int, "seeds": {name: scores}, "ensemble": scores}}`` with scores as
        `RetrievalReport.to_json` gives them.
    """
    first = next(iter(models.values()))
    names = tuple(first.people)
    found = {}
    for some in [(name,) for name in names] + ([names] if len(names) > 1 else []):
        shown = study.val.view(some)
        data = {name: shown.data[name] for name in some}
        each: dict[str, NDArray[np.float32]] = {
            seed: model.similarity(model.encode(data, shown.subject), study.val_embeds, some)
            for seed, model in models.items()
        }
        mean = np.mean(list(each.values()), axis=0)
        found[combination(some)] = {
            "n_averaged": shown.n_averaged,
            "seeds": {seed: report_similarity(one, shown.target).to_json() for seed, one in each.items()},
            "ensemble": report_similarity(mean, shown.target).to_json(),
        }
    return found


def ensemble_text(report: Mapping[str, Any]) -> str:
    """Lay out an ensemble's report for the terminal."""
    lines = [f"{'input':10}{'ensemble':>10}  {'95 %':15}{'single models'}"]
    for name, table in report["scores"].items():
        low, high = table["ensemble"]["interval_top_1"]
        singles = ", ".join(f"{one['top_1']:.3f}" for one in table["seeds"].values())
        lines.append(f"{name:10}{table['ensemble']['top_1']:10.3f}  {f'{low:.3f} - {high:.3f}':15}{singles}")
    last = next(iter(report["scores"].values()))["ensemble"]
    lines.append(
        f"top-1 of {last['n_gallery']} validation pictures, chance {last['chance_top_1']:.4f}; {report['caution']}. "
        "Serving takes one model"
    )
    return "\n".join(lines)
