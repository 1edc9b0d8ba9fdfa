"""The figures of a report that a terminal shows: top-1 and top-5 of everybody, confidence, and what was adapted."""

from collections.abc import Iterable

from alignment.evaluation_report import ADAPTATION, EvaluationReport, Figure


def summary_lines(report: EvaluationReport) -> list[str]:
    """Say top-1 and top-5 over everybody by number of averages, then confidence, then what was adapted."""
    lines = [_line(one) for one in _whole(report.figures, {"modality"})]
    for one in report.confidence:
        null = ", ".join(f"{kind} {value:.3f}" for kind, value in one.surrogate_auroc.items())
        lines.append(
            f"{one.group['modality']:8} confidence, {one.n_averaged} averaged (calibrated on {one.calibration_split}, "
            f"{one.calibration_n_averaged} averaged): calibration error {one.expected_calibration_error:.3f}, accuracy "
            f"at half coverage {one.accuracy_at_half:.3f} = {one.gain_at_half:.2f} x {one.accuracy:.3f}; AUROC {null}"
        )
    for some in report.adapted:
        lines.append(f"{some.name}, {'transductive' if some.transductive else 'not transductive'}: {some.uses}")
        lines += [_line(one) for one in _whole(some.figures, {"modality", ADAPTATION})]
    return lines


def _whole(figures: Iterable[Figure], keys: set[str]) -> list[Figure]:
    """Pick top-1 and top-5 of everybody in the whole gallery."""
    some = [one for one in figures if one.metric in ("top_1", "top_5") and set(one.group) == keys]
    largest = {
        modality: max(one.gallery_size for one in some if one.group["modality"] == modality)
        for modality in {one.group["modality"] for one in some}
    }
    return sorted(
        (one for one in some if one.gallery_size == largest[one.group["modality"]]),
        key=lambda one: (one.metric, one.group["modality"], one.n_averaged),
    )


def _line(one: Figure) -> str:
    low, high = one.interval
    return (
        f"{one.group['modality']:8} {one.metric} of {one.gallery_size}, {one.n_averaged} averaged: {one.value:.3f} "
        f"[{low:.3f}, {high:.3f}], chance {one.chance:.4f}, noise {one.noise_baseline:.3f}, p {one.permutation_p:.2g}, "
        f"n {one.n}"
    )
