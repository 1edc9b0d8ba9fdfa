"""The tables of `encoder_table.py`: reads finished jobs, pools seeds, and writes sections of ``BENCHMARKS.md``."""

import json
import platform
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from alignment.retrieval import report_similarity
from benchmarks.encoder_jobs import GATE, WHY_BELOW, Budget, Job
from benchmarks.report_file import standing_row, write_section

COLUMNS = (
    "| | parameters | train, epochs/s | infer, epochs/s | steps | seeds | single: top-1 | top-5 "
    "| averaged: top-1 | top-5 | x ridge, single / averaged | share of ideal, averaged |"
)
RULE = "|---|" + "---:|" * 11


def write_tables(
    work: Path, layout_names: Mapping[tuple[str, ...], str], expected: Sequence[Job], note: str = ""
) -> None:
    """Write one section per choice of modalities, from whichever of the jobs are finished.

    A row that stands in the section keeps standing if none of its jobs has a result here; what has neither is named
    below. ``note`` goes above each table: what was special about this run.
    """
    files = [work / job.key / "result.json" for job in expected]
    results = [json.loads(file.read_text()) for file in sorted(files) if file.exists()]
    yardsticks = next((one["scores"] for one in results if one["job"] == "yardsticks"), None)
    if yardsticks is None:
        raise SystemExit("the yardsticks are not finished; run the benchmark first")
    for modalities, title in layout_names.items():
        mine = [one for one in results if tuple(one["modalities"]) == modalities and one["job"] != "yardsticks"]
        if mine:
            section = f"Encoders on the simulated study: {title}"
            wanted = [job for job in expected if job.modalities == modalities and job.group != "yardsticks"]
            kept = standing_rows(section, wanted, work)
            body = preamble() + (f"{note}\n\n" if note else "")
            body += table(mine, yardsticks, work, "+".join(modalities), kept)
            body += unfinished(wanted, work, kept)
            write_section(section, body)


def standing_rows(section: str, jobs: Sequence[Job], work: Path) -> dict[str, str]:
    """Find the rows of a section as it stands none of whose jobs has a result in ``work``, by title."""
    done = {job.title for job in jobs if (work / job.key / "result.json").exists()}
    found = {title: standing_row(section, title) for title in dict.fromkeys(job.title for job in jobs)}
    return {title: row for title, row in found.items() if row and title not in done}


def unfinished(jobs: Sequence[Job], work: Path, kept: Collection[str]) -> str:
    """Name the rows that should be there and are not, with how many seeds they lack, and those that were kept."""
    text = f"\n\nFrom an earlier run of the same command, kept: {', '.join(kept)}." if kept else ""
    lacking = Counter(job.title for job in jobs if not (work / job.key / "result.json").exists())
    for title in kept:
        del lacking[title]
    if not lacking:
        return text
    rows = ", ".join(f"{title} ({n} run{'s' if n > 1 else ''})" for title, n in lacking.items())
    return f"{text}\n\n**Not finished, so not in this table or with fewer seeds: {rows}.**"


def preamble() -> str:
    """Say what was done and under which conditions."""
    machine, budget = platform.processor() or platform.machine(), Budget()
    return (
        "`make bench-encoders`. **Simulated** recordings (true lead fields, four people) of procedural pictures; no "
        "real brain took part. Same data for all: 32,000 single presentations of 4,000 pictures; at most "
        f"{budget.steps} steps of {budget.batch_size} epochs and {budget.seconds:.0f} s of processor time for steps, "
        f"on one thread ({machine}, torch {torch.__version__}), where a row says nothing else; weights selected on 200 "
        "validation pictures. Test: 200 unseen concepts x 4 people, single presentations (n = 3,200) and averages of 4 "
        "(n = 800); greedy top-1 and top-5 of 200, chance 0.005 and 0.025; in brackets 95 % intervals over pictures, "
        "seeds pooled.\n\n"
    )


def table(
    results: list[dict[str, Any]], yardsticks: Mapping[str, Any], work: Path, key: str, kept: Mapping[str, str]
) -> str:
    """Lay out one table, best first; ``kept`` are finished lines of an earlier run, by title."""
    ideal = {label: scores["top_1"] for label, scores in yardsticks["ideal_observer"][key].items()}
    ridge = {label: scores["top_1"] for label, scores in yardsticks["ridge"][key].items()}
    averaged = next(label for label in ridge if label != "single")
    rows: dict[str, list[dict[str, Any]]] = {}
    for one in results:
        rows.setdefault(one["title"], []).append(one)
    lines = [(float(line.split("|")[9].split()[0]), line) for line in kept.values()]
    below = [title for title, line in kept.items() if float(line.split("|")[10]) < GATE]
    for title, runs in rows.items():
        if any("error" in run for run in runs):
            lines.append((-1.0, f"| {title} | {runs[0]['error'].replace('|', '/')} |" + " |" * 10))
            continue
        single, mean = (pooled(runs, work, key, label) for label in ("single", averaged))
        ratios = [scores["top_1"] / ridge[label] for label, scores in (("single", single), (averaged, mean))]
        if mean["top_5"] < GATE:
            below.append(title)
        lines.append((
            mean["top_1"],
            f"| {title}{unusual(runs[0])} | {costs(runs)} | {len(runs)} "
            f"| {figure(single, 'top_1')} | {single['top_5']:.3f} | {figure(mean, 'top_1')} | {mean['top_5']:.3f} "
            f"| {ratios[0]:.2f} / {ratios[1]:.2f} | {mean['top_1'] / ideal[averaged]:.2f} |",
        ))  # fmt: skip
    lines.sort(key=lambda line: -line[0])
    fixed = []
    for who in ("ideal_observer", "ridge"):
        single, mean = yardsticks[who][key]["single"], yardsticks[who][key][averaged]
        ratios = [single["top_1"] / ridge["single"], mean["top_1"] / ridge[averaged]]
        fixed.append(
            f"| *{who.replace('_', ' ')}* | | | | | | {figure(single, 'top_1')} | {single['top_5']:.3f} "
            f"| {figure(mean, 'top_1')} | {mean['top_5']:.3f} | {ratios[0]:.2f} / {ratios[1]:.2f} "
            f"| {mean['top_1'] / ideal[averaged]:.2f} |"
        )
    reasons = [f"{title} ({WHY_BELOW.get(title, 'not known why')})" for title in below]
    gate = f"Top-5 of averaged epochs below {GATE:.2f}: {'; '.join(reasons) or 'none'}."
    return "\n".join([COLUMNS, RULE, *fixed, *(line for _, line in lines), "", gate])


def costs(runs: list[dict[str, Any]]) -> str:
    """Fill the columns of parameters, speed and steps; joining finished answers has none of these."""
    if "train_rate" not in runs[0]:
        return "| | |"
    rates = [np.median([run[name] for run in runs]) for name in ("train_rate", "inference_rate")]
    return f"{runs[0]['n_parameters']:,} | {rates[0]:,.0f} | {rates[1]:,.0f} | {runs[0]['steps']}"


def unusual(run: Mapping[str, Any]) -> str:
    """Say which budget a run had, if not the usual one."""
    budget, usual = Budget(**run.get("budget", {})), Budget()
    if budget == usual:
        return ""
    return f" ({budget.seconds:,.0f} s, steps of {budget.batch_size}, learning rate {budget.lr:g})"


def figure(scores: Mapping[str, Any], name: str) -> str:
    low, high = scores[f"interval_{name}"]
    return f"{scores[name]:.3f} [{low:.3f}, {high:.3f}]"


def pooled(runs: list[dict[str, Any]], work: Path, key: str, label: str) -> dict[str, Any]:
    """Score all seeds of one row together; pictures, not rows, are what the interval resamples."""
    stored = [load_file(work / run["job"] / f"{key}.safetensors") for run in runs]
    similarity = np.concatenate([one[f"{label}_scores"] for one in stored])
    target = np.concatenate([one[f"{label}_target"] for one in stored])
    return report_similarity(similarity, target).to_json()
