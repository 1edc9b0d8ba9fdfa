"""Plots of a report, as pictures that stand in the page itself; a plot with nothing to compare is left out."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from alignment.evaluation_report import ConfidenceFigures, EvaluationReport, Figure

COLOURS = ("#1f5fa8", "#c2541b", "#2c7a4b", "#7a4fa3", "#6b6b6b", "#a8871f", "#b03a6e", "#2a8f9a")
_Counted = TypeVar("_Counted", Figure, ConfidenceFigures)


def drawn_plots(report: EvaluationReport) -> list[tuple[str, str]]:
    """Draw what the report has enough figures for.

    Returns
    -------
    list of (str, str)
        Base64 of a PNG, and the words that explain it.
    """
    return [(image, words) for image, words in _plots(report) if image]


def _plots(report: EvaluationReport) -> list[tuple[str, str]]:
    """Return (base64 PNG or "", words) of every plot."""
    top = [one for one in report.figures if one.metric in ("top_1", "top_5")]
    largest = max((one.gallery_size for one in top), default=0)
    whole = [one for one in top if one.gallery_size == largest]
    pooled = [one for one in whole if set(one.group) <= {"modality"}]
    people = [one for one in whole if set(one.group) == {"modality", "person"}]
    windows = [one for one in whole if set(one.group) == {"modality", "window"} and one.metric == "top_1"]
    gallery = _largest([one for one in top if set(one.group) <= {"modality"}])
    averaged = [one for one in _largest(report.confidence) if one.n_averaged > 1]
    ends = [*(one for one in report.confidence if one.n_averaged == 1), *averaged]
    most = " and ".join(averaged_words(n) for n in sorted({one.n_averaged for one in gallery}))
    pictured = f"of {largest} pictures, greedy; bars: 95 %; dotted: chance"
    nulls = [one for one in report.confidence if one.surrogate_auroc]
    return [
        (_drawn(_lines, pooled, "n_averaged", "presentations averaged"),
         f"Share found by presentations averaged, {pictured}."),
        (_drawn(_bars, _largest(people), "person"), f"By person, {most}, {pictured}."),
        (_drawn(_bars, _largest(windows), "window"),
         f"By time window after onset, nothing else left, {most}, {pictured}."),
        (_drawn(_lines, _several(gallery), "gallery_size", "pictures to choose from"),
         f"By number of pictures to choose from, {most}; bars: 95 %; dotted: chance."),
        (_drawn(_reliability, ends),
         "Reliability: how often answers of a confidence were right. A larger dot stands for more answers; on the "
         "dotted line confidence is exact. Calibrated on the validation split."),
        (_drawn(_risk_coverage, ends),
         "Risk and coverage: share right among the most confident answers. At 1 all answers are kept; the dotted line "
         "is half of them."),
        (_drawn(_separation, nulls),
         "Recordings against surrogates without a stimulus, told apart by confidence (AUROC; dotted: chance), by "
         "presentations averaged."),
    ]  # fmt: skip


def _largest(figures: Sequence[_Counted]) -> list[_Counted]:
    """Keep those of the largest averages of each modality."""
    most: dict[str, int] = {}
    for one in figures:
        modality = one.group.get("modality", "")
        most[modality] = max(one.n_averaged, most.get(modality, 1))
    return [one for one in figures if one.n_averaged == most[one.group.get("modality", "")]]


def _several(figures: Sequence[Figure]) -> list[Figure]:
    """Return figures of more than one gallery size, or none."""
    return list(figures) if len({one.gallery_size for one in figures}) > 1 else []


def _drawn(draw: Callable[..., None], what: Sequence[Any], *arguments: Any, **options: Any) -> str:
    """Run a drawing function on fresh axes; an empty string if there is nothing to draw."""
    if not what:
        return ""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(5.6, 4.0), dpi=110, layout="constrained")
    axes = canvas.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes, what, *arguments, **options)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, ncols=2, handlelength=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _lines(axes: Any, figures: Sequence[Figure], field: str, label: str) -> None:
    series = sorted({(one.metric, one.group.get("modality", "")) for one in figures})
    colours = _colours([one.group.get("modality", "") for one in figures])
    for index, (metric, modality) in enumerate(series):
        chosen = [one for one in figures if (one.metric, one.group.get("modality", "")) == (metric, modality)]
        chosen.sort(key=lambda one: float(getattr(one, field)))
        # a little apart, so that equal values do not hide each other
        shift = 1 + 0.025 * (index - (len(series) - 1) / 2)
        axes.errorbar([float(getattr(one, field)) * shift for one in chosen], [one.value for one in chosen],
                      _ends(chosen), color=colours[modality], marker="o", markersize=4, capsize=2,
                      linestyle="-" if metric == "top_1" else "--",
                      label=f"{metric.replace('_', '-')} {modality}".strip())  # fmt: skip
        axes.plot([float(getattr(one, field)) for one in chosen], [one.chance for one in chosen], ":",
                  color="#6b6b6b", linewidth=1)  # fmt: skip
    _doubling(axes, [float(getattr(one, field)) for one in figures], label)
    axes.set_ylabel("share found")
    axes.set_ylim(0, 1.02)


def _bars(axes: Any, figures: Sequence[Figure], key: str) -> None:
    names = list(dict.fromkeys(one.group[key] for one in figures))
    colours = _colours([one.group.get("modality", "") for one in figures])
    here = {name: [one for one in figures if one.group[key] == name] for name in names}
    width = 0.8 / max(map(len, here.values()))
    said = set()
    for place, name in enumerate(names):
        some = sorted(here[name], key=lambda one: (one.group.get("modality", ""), one.metric))
        for index, one in enumerate(some):
            modality = one.group.get("modality", "")
            label = f"{one.metric.replace('_', '-')} {modality}".strip()
            axes.bar(place + (index - (len(some) - 1) / 2) * width, one.value, width * 0.92, yerr=_ends([one]),
                     color=colours[modality], capsize=2, alpha=1.0 if one.metric == "top_1" else 0.45,
                     label="_" if label in said else label)  # fmt: skip
            said.add(label)
    for chance in sorted({one.chance for one in figures}):
        axes.axhline(chance, linestyle=":", color="#6b6b6b", linewidth=1)
    crowded = max(map(len, names)) * len(names) > 60
    axes.set_xticks(range(len(names)), names, rotation=40 if crowded else 0, ha="right" if crowded else "center")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylabel("share found")
    axes.set_ylim(0, min(1.02, 1.15 * max(one.interval[1] for one in figures)))


def _ends(figures: Sequence[Figure]) -> list[list[float]]:
    """Give the lengths of error bars downwards and upwards."""
    return [
        [max(one.value - one.interval[0], 0.0) for one in figures],
        [max(one.interval[1] - one.value, 0.0) for one in figures],
    ]


def _doubling(axes: Any, places: Sequence[float], label: str) -> None:
    ticks = sorted(set(places))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(label)


def _colours(modalities: Sequence[str]) -> dict[str, str]:
    """Give each modality a colour, the same in every plot of a report."""
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(sorted(set(modalities)))}


def _modalities(confidence: Sequence[ConfidenceFigures]) -> dict[str, str]:
    return _colours([one.group.get("modality", "") for one in confidence])


def _reliability(axes: Any, confidence: Sequence[ConfidenceFigures]) -> None:
    axes.plot([0, 1], [0, 1], ":", color="#6b6b6b", linewidth=1)
    colours = _modalities(confidence)
    for one in confidence:
        some = [entry for entry in one.bins if entry.n]
        sizes = [10 + 90 * entry.n / one.n for entry in some]
        colour, single = colours[one.group.get("modality", "")], one.n_averaged == 1
        places, values = [entry.mean_confidence for entry in some], [entry.accuracy for entry in some]
        axes.plot(places, values, "--" if single else "-", color=colour, linewidth=1)
        axes.scatter(places, values, sizes, facecolor="white" if single else colour, edgecolor=colour)
        axes.plot([], [], "o--" if single else "o-", color=colour, markerfacecolor="white" if single else colour,
                  markersize=5, linewidth=1, label=_name(one))  # fmt: skip
    axes.set_xlabel("confidence")
    axes.set_ylabel("share right")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)


def _risk_coverage(axes: Any, confidence: Sequence[ConfidenceFigures]) -> None:
    colours = _modalities(confidence)
    for one in confidence:
        axes.plot(one.coverage, one.selective_accuracy, "--" if one.n_averaged == 1 else "-",
                  color=colours[one.group.get("modality", "")], label=_name(one))  # fmt: skip
    axes.axvline(0.5, linestyle=":", color="#6b6b6b", linewidth=1)
    axes.set_xlabel("coverage: share of answers kept, most confident first")
    axes.set_ylabel("share right among them")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)


def _separation(axes: Any, confidence: Sequence[ConfidenceFigures]) -> None:
    colours = _modalities(confidence)
    kinds = sorted({kind for one in confidence for kind in one.surrogate_auroc})
    for modality, colour in colours.items():
        some = sorted((one for one in confidence if one.group.get("modality", "") == modality), key=_count)
        for index, kind in enumerate(kinds):
            axes.plot([one.n_averaged for one in some], [one.surrogate_auroc[kind] for one in some],
                      "o" + ("-", "--", ":")[index % 3], color=colour, markersize=4,
                      label=f"{modality} {kind.removeprefix('phases random, ')}".strip())  # fmt: skip
    axes.axhline(0.5, linestyle=":", color="#6b6b6b", linewidth=1)
    _doubling(axes, [one.n_averaged for one in confidence], "presentations averaged")
    axes.set_ylabel("AUROC")
    axes.set_ylim(min(0.45, axes.get_ylim()[0]), 1.02)


def _count(one: ConfidenceFigures) -> int:
    return one.n_averaged


def _name(one: ConfidenceFigures) -> str:
    return f"{one.group.get('modality', '')} {averaged_words(one.n_averaged)}".strip()


def averaged_words(n_averaged: int) -> str:
    return "single trials" if n_averaged == 1 else f"{n_averaged} averaged"
