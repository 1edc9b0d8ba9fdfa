"""A report as one HTML file: tables, plots as embedded pictures, no scripts and nothing loaded from elsewhere."""

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from alignment.evaluation_report import ConfidenceFigures, EvaluationReport, Figure

COLOURS = ("#1f5fa8", "#c2541b", "#2c7a4b", "#7a4fa3", "#6b6b6b", "#a8871f", "#b03a6e", "#2a8f9a")
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 2em auto; max-width: 66em;
  padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0.2em; } h2 { font-size: 1.15em; margin-top: 2em; }
.data { background: #fff3d6; border-left: 4px solid #d99a00; padding: 0.6em 1em; }
table { border-collapse: collapse; font-size: 0.86em; width: 100%; }
th, td { padding: 0.25em 0.5em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; } tr:nth-child(even) td { background: #f7f7f7; }
.plots { display: flex; flex-wrap: wrap; gap: 1em; } figure { margin: 0; flex: 1 1 24em; max-width: 32em; }
figure img { width: 100%; } figcaption { font-size: 0.86em; color: #444; } .wide { overflow-x: auto; }
"""
_COLUMNS = (
    "figure", "value", "95 %", "chance", "noise input", "p", "n", "groups", "averaged", "gallery", "split", "chosen on"
)  # fmt: skip


def write_page(report: EvaluationReport, path: Path) -> None:
    """Write the page.

    Parameters
    ----------
    report : EvaluationReport
    path : Path
        An ``.html`` file; needs nothing else beside it.
    """
    path.write_text(page_text(report), encoding="utf-8")


def page_text(report: EvaluationReport) -> str:
    """Return the page's HTML."""
    plots = [(image, words) for image, words in _plots(report) if image]
    notes = [*report.notes, *([report.single_trial_missing] if report.single_trial_missing else [])]
    kind = "Simulated" if report.simulated else "Real"
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(report.title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="data"><strong>{kind} data.</strong> {escape(report.data)}</p>',
        "<p>Top-k is greedy: every recording picks for itself. Bars and brackets are 95 % intervals over pictures, "
        "people or runs as the table says; p is the share of permutations that did as well; <em>noise input</em> is "
        "the same decoder given recordings without a stimulus.</p>",
        "".join(f"<p>{escape(note)}</p>" for note in notes),
        '<div class="plots">',
        *(
            f'<figure><img alt="{escape(words)}" src="data:image/png;base64,{image}">'
            f"<figcaption>{escape(words)}</figcaption></figure>"
            for image, words in plots
        ),
        "</div>",
        *(_confidence_table(report.confidence) if report.confidence else []),
        "<h2>All figures</h2>",
        '<div class="wide">',
        _table(_COLUMNS, [_cells(one) for one in report.figures]),
        "</div></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _cells(one: Figure) -> list[str]:
    group = ", ".join(f"{key} {value}" for key, value in one.group.items())
    return [
        one.metric.replace("_", " ") + (f" ({group})" if group else ""),
        f"{one.value:.3f}", f"{one.interval[0]:.3f} to {one.interval[1]:.3f}", f"{one.chance:.4g}",
        f"{one.noise_baseline:.4g}", f"{one.permutation_p:.2g} of {one.n_permutations}", str(one.n),
        f"{one.n_groups} by {one.resampled}", str(one.n_averaged), str(one.gallery_size), one.split,
        one.selection_split,
    ]  # fmt: skip


def _confidence_table(confidence: Sequence[ConfidenceFigures]) -> list[str]:
    kinds = sorted({kind for one in confidence for kind in one.surrogate_auroc})
    head = [
        "confidence of the first picture", "accuracy", "mean confidence", "calibration error (95 %)",
        "accuracy at half coverage", "gain", *(f"real against: {kind}, AUROC" for kind in kinds), "n",
        "calibrated on", "measured on",
    ]  # fmt: skip
    rows = [
        [
            _averaged_words(one.n_averaged) + "".join(f", {key} {value}" for key, value in one.group.items()),
            f"{one.accuracy:.3f} of {one.gallery_size}", f"{one.mean_confidence:.3f}",
            f"{one.expected_calibration_error:.3f} ({one.interval[0]:.3f} to {one.interval[1]:.3f}), "
            f"{len(one.bins)} bins",
            f"{one.accuracy_at_half:.3f}", f"{one.gain_at_half:.2f}",
            *(f"{one.surrogate_auroc[kind]:.3f}" if kind in one.surrogate_auroc else "" for kind in kinds), str(one.n),
            f"{one.calibration_split} (n {one.n_calibration})", one.split,
        ]
        for one in confidence
    ]  # fmt: skip
    return ["<h2>Confidence</h2>", '<div class="wide">', _table(head, rows), "</div>"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{escape(one)}</th>" for one in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(one)}</td>" for one in row) + "</tr>" for row in rows]
    return "\n".join([*lines, "</table>"])


def _plots(report: EvaluationReport) -> list[tuple[str, str]]:
    """Return (base64 PNG or "", words) of every plot."""
    top = [one for one in report.figures if one.metric in ("top_1", "top_5")]
    largest = max((one.gallery_size for one in top), default=0)
    whole = [one for one in top if one.gallery_size == largest]
    pooled = [one for one in whole if set(one.group) <= {"modality"}]
    people = [one for one in whole if set(one.group) == {"modality", "person"}]
    windows = [one for one in whole if set(one.group) == {"modality", "window"}]
    most = max((one.n_averaged for one in top), default=0)
    confidence = report.confidence
    gallery = [one for one in top if set(one.group) <= {"modality"} and one.n_averaged == most]
    pictured = f"of {largest} pictures, greedy; dotted: chance"
    return [
        (_drawn(_lines, pooled, "n_averaged", "presentations averaged", log=True),
         f"By presentations averaged, {pictured}"),
        (_drawn(_bars, people, "person", most), f"By person, {most} averaged, {pictured}"),
        (_drawn(_bars, windows, "window", most), f"By time window (nothing else left), {most} averaged, {pictured}"),
        (_drawn(_lines, gallery, "gallery_size", "pictures to choose from", log=True),
         f"By size of the gallery, {most} averaged; dotted: chance"),
        (_drawn(_reliability, confidence), "Reliability: how often answers of a confidence were right; size: how many"),
        (_drawn(_risk_coverage, confidence), "Accuracy of the most confident share of answers"),
    ]  # fmt: skip


def _drawn(draw: Callable[..., None], what: Sequence[Any], *arguments: Any, **options: Any) -> str:
    """Run a drawing function on fresh axes; an empty string if there is nothing to draw."""
    if not what:
        return ""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(5.6, 3.7), dpi=110, layout="constrained")
    axes = canvas.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes, what, *arguments, **options)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _lines(axes: Any, figures: Sequence[Figure], field: str, label: str, *, log: bool) -> None:
    series = sorted({(one.metric, one.group.get("modality", "")) for one in figures})
    colours = _colours(figures)
    for metric, modality in series:
        chosen = [one for one in figures if (one.metric, one.group.get("modality", "")) == (metric, modality)]
        chosen.sort(key=lambda one: float(getattr(one, field)))
        places = [float(getattr(one, field)) for one in chosen]
        values = [one.value for one in chosen]
        ends = [[one.value - one.interval[0] for one in chosen], [one.interval[1] - one.value for one in chosen]]
        colour = colours[modality]
        axes.errorbar(places, values, [[max(end, 0.0) for end in side] for side in ends], color=colour, marker="o",
                      linestyle="-" if metric == "top_1" else "--",
                      markersize=4, capsize=2, label=f"{metric.replace('_', '-')} {modality}".strip())  # fmt: skip
        axes.plot(places, [one.chance for one in chosen], ":", color=colour, linewidth=1)
    if log:
        axes.set_xscale("log", base=2)
        ticks = sorted({float(getattr(one, field)) for one in figures})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel("share of recordings")
    axes.set_ylim(0, None)


def _bars(axes: Any, figures: Sequence[Figure], key: str, n_averaged: int) -> None:
    chosen = [one for one in figures if one.n_averaged == n_averaged]
    names = list(dict.fromkeys(one.group[key] for one in chosen))
    series = sorted({(one.metric, one.group.get("modality", "")) for one in chosen})
    width = 0.8 / len(series)
    colours = _colours(chosen)
    for index, (metric, modality) in enumerate(series):
        some = [one for one in chosen if (one.metric, one.group.get("modality", "")) == (metric, modality)]
        places = [names.index(one.group[key]) + (index - (len(series) - 1) / 2) * width for one in some]
        ends = [[max(one.value - one.interval[0], 0.0) for one in some],
                [max(one.interval[1] - one.value, 0.0) for one in some]]  # fmt: skip
        colour = colours[modality]
        axes.bar(places, [one.value for one in some], width * 0.92, yerr=ends, color=colour, capsize=2,
                 alpha=1.0 if metric == "top_1" else 0.45,
                 label=f"{metric.replace('_', '-')} {modality}".strip())  # fmt: skip
        axes.axhline(some[0].chance, linestyle=":", color=colour, linewidth=1)
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 4 else 0, fontsize=8)
    axes.set_ylabel("share of recordings")


def _colours(figures: Sequence[Figure]) -> dict[str, str]:
    """Give each modality a colour, the same in every plot of a report."""
    names = sorted({one.group.get("modality", "") for one in figures})
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}


def _reliability(axes: Any, confidence: Sequence[ConfidenceFigures]) -> None:
    axes.plot([0, 1], [0, 1], ":", color="#6b6b6b", linewidth=1)
    for index, one in enumerate(confidence):
        some = [entry for entry in one.bins if entry.n]
        sizes = [12 + 120 * entry.n / one.n for entry in some]
        colour = COLOURS[index % len(COLOURS)]
        places, values = [entry.mean_confidence for entry in some], [entry.accuracy for entry in some]
        axes.plot(places, values, color=colour, linewidth=1)
        axes.scatter(places, values, sizes, color=colour, label=_name(one))
    axes.set_xlabel("confidence")
    axes.set_ylabel("share right")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _risk_coverage(axes: Any, confidence: Sequence[ConfidenceFigures]) -> None:
    for index, one in enumerate(confidence):
        axes.plot(one.coverage, one.selective_accuracy, color=COLOURS[index % len(COLOURS)], label=_name(one))
    axes.axvline(0.5, linestyle=":", color="#6b6b6b", linewidth=1)
    axes.set_xlabel("share of answers kept, most confident first")
    axes.set_ylabel("share right among them")
    axes.set_ylim(0, None)


def _name(one: ConfidenceFigures) -> str:
    return f"{one.group.get('modality', '')} {_averaged_words(one.n_averaged)}".strip()


def _averaged_words(n_averaged: int) -> str:
    return "single trials" if n_averaged == 1 else f"{n_averaged} averaged"
