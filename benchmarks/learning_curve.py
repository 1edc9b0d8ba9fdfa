"""What limits the default encoder: its share of the ideal observer against the amount of data and of training.

    python benchmarks/learning_curve.py

Same people, validation and test pictures as `encoder_table.py`; only the training data or the number of steps changes.
Writes its part of ``BENCHMARKS.md``. About 25 minutes of one core.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alignment.retrieval import report_similarity  # noqa: E402
from alignment.runtime import Runtime  # noqa: E402
from benchmarks.encoder_jobs import DEFAULT_ENCODER, Budget, Job  # noqa: E402
from benchmarks.encoder_laboratory import Laboratory, observed, run_job  # noqa: E402
from benchmarks.report_file import write_section  # noqa: E402

# pictures, presentations of each, steps
CONDITIONS = ((1000, 2, 1000), (2000, 2, 1000), (4000, 1, 1000), (4000, 2, 1000), (4000, 4, 1000), (4000, 4, 3000))


def measure(modality: str, n_images: int, repetitions: int, steps: int) -> str:
    """Train the default encoder under one condition and lay out its row."""
    laboratory = Laboratory((modality,), Runtime(threads=1))
    data = {"n_train_images": n_images, "train_repetitions": repetitions}
    laboratory.settings["data"] = {**laboratory.settings["data"], **data}
    job = Job(DEFAULT_ENCODER, "encoder", (modality,), budget=Budget(steps=steps, seconds=1e9))
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = run_job(job, laboratory, Path(folder))["scores"][modality]
    averaged = next(label for label in found if label != "single")
    layout = laboratory.study.preprocessors[modality].layout.name
    similarity = observed(laboratory, modality, layout, averaged)
    ideal = report_similarity(similarity, np.asarray(laboratory.test[averaged].target)).top_1
    low, high = found[averaged]["interval_top_1"]
    row = (
        f"| {modality.upper()} | {n_images:,} | {repetitions} | {steps:,} | {found['single']['top_1']:.3f} "
        f"| {found[averaged]['top_1']:.3f} [{low:.3f}, {high:.3f}] | {found[averaged]['top_1'] / ideal:.2f} |"
    )
    print(row, flush=True)
    return row


def main() -> None:
    rows = [measure(modality, *condition) for modality in ("eeg", "meg") for condition in CONDITIONS]
    body = [
        f"`python benchmarks/learning_curve.py`: **simulated** recordings, {DEFAULT_ENCODER}, four people, batches of "
        f"{Budget().batch_size}, one seed. Greedy top-1 of 200 unseen pictures, chance 0.005; single presentations "
        "(n = 3,200) and averages of 4 (n = 800) with 95 % intervals over pictures.",
        "",
        "| | training pictures | presentations of each, per person | steps | single | averaged "
        "| share of ideal observer, averaged |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *rows,
    ]
    write_section("What limits the default encoder", "\n".join(body))


if __name__ == "__main__":
    main()
