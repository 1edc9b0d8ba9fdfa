"""What a fusion gains with both recordings and loses when one is missing, against single encoders trained alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from benchmarks.encoder_jobs import BOTH, Budget, Job, compared_budget
from benchmarks.encoder_report import standing_rows, unfinished
from benchmarks.report_file import write_section
from encoders.modality import combination

SECTION = "Fusion with a modality missing"
MAX_LOSS, MIN_GAIN = 0.02, 0.05
N_BOOTSTRAP = 2000


def write_fusion_section(work: Path, expected: Sequence[Job], note: str = "") -> None:
    """Write the section from whatever jobs are finished; rows of earlier runs stay, others are named below."""
    jobs = [job for job in expected if (work / job.key / "result.json").exists()]
    alone: dict[tuple[tuple[str, ...], str, Budget], list[Job]] = {}
    for job in jobs:
        if job.group == "encoder":
            alone.setdefault((job.modalities, job.encoder, job.budget), []).append(job)
    fused: dict[str, list[Job]] = {}
    for job in jobs:
        if job.modalities == BOTH and job.group == "fusion":
            fused.setdefault(job.title, []).append(job)
    lines = []
    for title, runs in fused.items():
        seeds = {job.seed for job in runs}
        budget = compared_budget(runs[0])
        singles = {
            name: [job for job in alone.get(((name,), runs[0].encoder, budget), []) if job.seed in seeds]
            for name in BOTH
        }
        if all(len(found) == len(seeds) for found in singles.values()):
            lines.append(row(title, runs, singles, work))
    if not lines:
        return
    wanted = [job for job in expected if job.group == "fusion"]
    kept = standing_rows(SECTION, wanted, work)
    lines += [(float(line.split("|")[3]), line) for line in kept.values()]
    lines.sort(key=lambda line: -line[0])
    held = [text for _, text in lines]
    body = [
        "`make bench-encoders`. **Simulated** recordings; averages of 4 presentations, greedy top-1 of 200, chance "
        "0.005; differences in points (hundredths) of top-1 on the same test epochs, with 95 % bootstrap intervals "
        "over pictures, seeds pooled. *Alone* is the same encoder trained on one modality from the same seeds with the "
        "same budget (*ts_conv with 790 steps*: 790 steps for all three, whatever they take). Held: "
        f"with a modality missing no more than {100 * MAX_LOSS:.0f} points below the encoder alone; with both at least "
        f"{100 * MIN_GAIN:.0f} points above the better one alone. In a fusion "
        "of separate encoders each is trained bit for bit like the one alone (half_concat: a narrower one); what may "
        "differ is the step whose weights validation picks, here by the mean of all answers. An early fusion said to "
        "be wider, or to have more dropout, is compared with the encoder of the usual settings: with these it missed "
        "the rule in earlier versions of this table (a network too narrow for both; a dense layer that overfits).",
        "",
        *([note, ""] if note else []),
        "| fusion | seeds | both | both less better alone | EEG only, less EEG alone | MEG only, less MEG alone "
        "| missing one | both |",
        "|---|---:|---:|---:|---:|---:|---|---|",
        *held,
    ]
    write_section(SECTION, "\n".join(body) + unfinished(wanted, work, kept))


def row(title: str, runs: list[Job], singles: Mapping[str, list[Job]], work: Path) -> tuple[float, str]:
    """Lay out one fusion, and give its top-1 with both for sorting."""
    hits_alone = {name: picture_hits(jobs, name, work) for name, jobs in singles.items()}
    better = max(BOTH, key=lambda name: float(hits_alone[name].mean()))
    both = picture_hits(runs, combination(BOTH), work)
    gain = difference(both, hits_alone[better])
    losses = [difference(picture_hits(runs, name, work), hits_alone[name]) for name in BOTH]
    cells = " | ".join(
        f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]" for mean, low, high in (gain, *losses)
    )
    missed = [job for name, one in zip(BOTH, losses, strict=True) if one[0] < -MAX_LOSS for job in singles[name]]
    missing_one = f"MISSED{fewer_steps(runs, missed, work)}" if missed else "held"
    words = f"{missing_one} | {'held' if gain[0] >= MIN_GAIN else 'MISSED'}"
    top_1 = float(both.mean())
    return top_1, f"| {title} | {len(runs)} | {top_1:.3f} | {cells} | {words} |"


def fewer_steps(runs: list[Job], alone: list[Job], work: Path) -> str:
    """Say so if the budget, in time, gave the fusion fewer steps than the encoders alone."""
    fused, single = (min(n_steps(job, work) for job in jobs) for jobs in (runs, alone))
    return f", with {fused} steps against {single} alone" if fused < single else ""


def n_steps(job: Job, work: Path) -> int:
    """Give the steps that a finished job took."""
    return int(json.loads((work / job.key / "result.json").read_text())["steps"])


def picture_hits(jobs: list[Job], key: str, work: Path) -> NDArray[np.float64]:
    """Give for every test picture the share of averaged epochs (people, seeds) that find it first."""
    hits, targets = [], []
    for job in jobs:
        stored = load_file(work / job.key / f"{key}.safetensors")
        label = next(
            name.removesuffix("_scores") for name in stored if name.startswith("averaged") and name.endswith("_scores")
        )
        scores, target = stored[f"{label}_scores"], stored[f"{label}_target"]
        own = scores[np.arange(len(scores)), target]
        others = scores.copy()
        others[np.arange(len(scores)), target] = -np.inf
        hits.append(own > others.max(axis=1))
        targets.append(target)
    hit, target = np.concatenate(hits), np.concatenate(targets)
    shares: NDArray[np.float64] = np.bincount(target, weights=hit) / np.bincount(target)
    return shares


def difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float, float]:
    """Give the mean difference over pictures and its 95 % bootstrap interval."""
    gap = one - other
    drawn = np.random.default_rng(0).integers(len(gap), size=(N_BOOTSTRAP, len(gap)))
    low, high = np.quantile(gap[drawn].mean(axis=1), [0.025, 0.975])
    return float(gap.mean()), float(low), float(high)
