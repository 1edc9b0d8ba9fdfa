"""A report as one HTML file: tables, plots as embedded pictures, no scripts and nothing loaded from elsewhere."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from alignment.evaluation_report import ADAPTATION, AdaptedFigures, ConfidenceFigures, EvaluationReport, Figure
from alignment.report_plots import averaged_words, drawn_plots

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 2em auto; max-width: 76em;
  padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0.2em; } h2 { font-size: 1.15em; margin-top: 2em; }
.data { background: #fff3d6; border-left: 4px solid #d99a00; padding: 0.6em 1em; }
table { border-collapse: collapse; font-size: 0.82em; width: 100%; }
th, td { padding: 0.25em 0.5em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
tr:nth-child(even) td { background: #f7f7f7; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(26em, 1fr)); gap: 1.2em; }
figure { margin: 0; }
figure img { width: 100%; max-width: 36em; } figcaption { font-size: 0.86em; color: #444; } .wide { overflow-x: auto; }
"""
_COLUMNS = (
    "figure", "value", "95 %", "chance", "noise input", "p", "n", "groups", "averaged", "of", "measured on", "chosen on"
)  # fmt: skip
_READING = (
    "Top-k is greedy: every recording picks for itself. <em>Of</em> is the number of pictures it picks from.",
    "Brackets and bars are 95 % intervals; <em>groups</em> says what was resampled. All recordings of a picture move "
    "together.",
    "<em>Chance</em> is what guessing gives. <em>Noise input</em> is the same decoder given recordings without a "
    "stimulus; it should be at chance.",
    "<em>p</em> is the share of random assignments of pictures to recordings that did as well, the true one counted.",
    "<em>Averaged</em> is the number of presentations in each recording; 1 is a single trial. <em>n</em> counts "
    "recordings.",
    "<em>Measured on</em> is the split of the recordings, <em>chosen on</em> the one that chose the weights and every "
    "setting.",
)


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
    notes = [*report.notes, *([report.single_trial_missing] if report.single_trial_missing else [])]
    kind = "Simulated" if report.simulated else "Real"
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(report.title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="data"><strong>{kind} data.</strong> {escape(report.data)}</p>',
        _section("At a glance", _table(_COLUMNS, [_cells(one) for one in at_a_glance(report.figures)])),
        "<h2>How to read this</h2>",
        "<ul>" + "".join(f"<li>{one}</li>" for one in (*_READING, *map(escape, notes))) + "</ul>",
        "<h2>Plots</h2>",
        '<div class="plots">',
        *(
            f'<figure><img alt="{escape(words)}" src="data:image/png;base64,{image}">'
            f"<figcaption>{escape(words)}</figcaption></figure>"
            for image, words in drawn_plots(report)
        ),
        "</div>",
        _confidence_section(report.confidence) if report.confidence else "",
        *(_adapted_section(one) for one in report.adapted),
        _section("All figures", _table(_COLUMNS, [_cells(one) for one in report.figures])),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def at_a_glance(figures: Sequence[Figure]) -> list[Figure]:
    """Pick top-1 and top-5 of everybody in the largest gallery, for single trials and for the largest averages."""
    top = [one for one in figures if one.metric in ("top_1", "top_5") and set(one.group) <= {"modality"}]
    found = []
    for modality in dict.fromkeys(one.group.get("modality", "") for one in top):
        some = [one for one in top if one.group.get("modality", "") == modality]
        largest = max(one.gallery_size for one in some)
        most = max(one.n_averaged for one in some)
        found += [one for one in some if one.gallery_size == largest and one.n_averaged in (1, most)]
    return found


def _section(title: str, table: str, *words: str) -> str:
    """Give a heading, paragraphs of HTML, and a table that may be wider than the page."""
    told = "".join(f"<p>{one}</p>" for one in words)
    return f'<h2>{escape(title)}</h2>{told}<div class="wide">\n{table}</div>'


def _adapted_section(adapted: AdaptedFigures) -> str:
    kind = "Transductive: answers depend on each other." if adapted.transductive else "Not transductive."
    return _section(
        f"Adapted to the person: {adapted.name.replace('_', ' ')}",
        _table(_COLUMNS, [_cells(one) for one in adapted.figures]),
        f"<strong>Not inductive.</strong> Uses: {escape(adapted.uses)}. {kind} Not to be compared with the figures "
        "above or with published inductive ones.",
    )


def _cells(one: Figure) -> list[str]:
    group = ", ".join(
        value if key == "modality" else f"{key} {value}" for key, value in one.group.items() if key != ADAPTATION
    )
    return [
        one.metric.replace("_", " ") + (f" ({group})" if group else ""),
        f"{one.value:.3f}", f"{one.interval[0]:.3f} to {one.interval[1]:.3f}", f"{one.chance:.3f}",
        f"{one.noise_baseline:.3f}", f"{one.permutation_p:.2g} of {one.n_permutations}", str(one.n),
        f"{one.n_groups} by {one.resampled}", str(one.n_averaged), str(one.gallery_size), one.split,
        one.selection_split,
    ]  # fmt: skip


def _confidence_section(confidence: Sequence[ConfidenceFigures]) -> str:
    kinds = sorted({kind for one in confidence for kind in one.surrogate_auroc})
    head = [
        "recordings", "accuracy", "mean confidence", "calibration error (95 %)",
        "accuracy at half coverage", "gain", *(f"AUROC, {kind}" for kind in kinds), "n",
        "calibrated on", "averaged there", "n there", "measured on",
    ]  # fmt: skip
    rows = [
        [
            ", ".join([*one.group.values(), averaged_words(one.n_averaged)]),
            f"{one.accuracy:.3f} of {one.gallery_size}", f"{one.mean_confidence:.3f}",
            f"{one.expected_calibration_error:.3f} ({one.interval[0]:.3f} to {one.interval[1]:.3f})",
            f"{one.accuracy_at_half:.3f}", f"{one.gain_at_half:.2f}",
            *(f"{one.surrogate_auroc[kind]:.3f}" if kind in one.surrogate_auroc else "" for kind in kinds), str(one.n),
            one.calibration_split, averaged_words(one.calibration_n_averaged), str(one.n_calibration), one.split,
        ]
        for one in confidence
    ]  # fmt: skip
    return _section(
        "Confidence that the first picture is the right one",
        _table(head, rows),
        "Fitted on validation answers only. Calibration error is the mean distance of confidence and share right over "
        f"{len(confidence[0].bins)} bins of confidence, 0 is best. Gain is the accuracy of the more confident half "
        "over that of all. AUROC is the chance that a recording gets more confidence than a surrogate with its "
        "spectrum and no stimulus: 0.5 if they cannot be told apart.",
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{escape(one)}</th>" for one in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{_unbroken(one)}</td>" for one in row) + "</tr>" for row in rows]
    return "\n".join([*lines, "</table>"])


def _unbroken(cell: str) -> str:
    """Keep a short cell on one line; long ones may wrap, so that the table fits the page."""
    return escape(cell).replace(" ", "&nbsp;") if len(cell) <= 16 else escape(cell)
