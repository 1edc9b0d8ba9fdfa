"""What a calibration of a new person is worth: inductive, label-free and few-shot figures of the same epochs, apart.

Each figure says what it was allowed to see. Only the first is comparable with published results on people left out;
the transductive one uses the evaluated epochs themselves, without their labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.few_shot import FewShotConfig
from alignment.person_map import LabelFreeConfig, PersonMap, fit_label_free, fit_labelled
from alignment.retrieval import RetrievalReport, cosine_similarity, report_similarity

Float = NDArray[np.float32]
INDUCTIVE = "inductive: nothing known of this person"


@dataclass(frozen=True)
class LabelledEpochs:
    """Embeddings (n, d) of a person's epochs, what they showed (n, d), and its id and concept."""

    brain_embeds: Float
    shown: Float
    images: tuple[str, ...]
    concepts: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the lengths, and that every picture and concept has a name."""
        n = len(self.brain_embeds)
        if n == 0 or {len(self.shown), len(self.images), len(self.concepts)} != {n}:
            raise ValueError(
                f"{n} embeddings with {len(self.shown)} pictures, {len(self.images)} ids and {len(self.concepts)} "
                "concepts, expected one of each per epoch"
            )
        if "" in self.images or "" in self.concepts:
            raise ValueError("labelled epochs need a picture and a concept each; leave out those without")


@dataclass(frozen=True)
class CalibratedFigure:
    """Retrieval of one person's epochs with one kind of calibration.

    Attributes
    ----------
    name : str
        ``inductive``, ``label_free``, ``label_free_transductive`` or ``few_shot``.
    uses : str
        What of this person it was allowed to see.
    transductive : bool
        Whether an answer depends on the other evaluated epochs.
    report : RetrievalReport
    """

    name: str
    uses: str
    transductive: bool
    report: RetrievalReport

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "uses": self.uses, "transductive": self.transductive, **self.report.to_json(),
        }  # fmt: skip


def check_apart(calibration: LabelledEpochs, evaluated: LabelledEpochs) -> None:
    """Refuse labelled calibration epochs that show a picture, or a concept, that is evaluated.

    Raises
    ------
    ValueError
        It names what both have.
    """
    for what in ("images", "concepts"):
        both = sorted(set(getattr(calibration, what)) & set(getattr(evaluated, what)))
        if both:
            raise ValueError(
                f"{len(both)} {what} are both in the calibration and evaluated, the first {both[:3]}; calibrate on "
                "other pictures of other concepts"
            )
    pictures = [{row.tobytes() for row in one.shown} for one in (calibration, evaluated)]
    if pictures[0] & pictures[1]:
        raise ValueError(
            f"{len(pictures[0] & pictures[1])} pictures are both in the calibration and evaluated, under other names; "
            "calibrate on other pictures"
        )


def compare_calibrations(
    evaluated: LabelledEpochs,
    modalities: str,
    *,
    window: Float | None = None,
    labelled: LabelledEpochs | None = None,
    label_free: LabelFreeConfig | None = None,
    few_shot: FewShotConfig | None = None,
    n_bootstrap: int = 1000,
) -> list[CalibratedFigure]:
    """Score the evaluated epochs without and with each calibration.

    Parameters
    ----------
    evaluated : LabelledEpochs
        Their different pictures are the gallery.
    modalities : str
        Combination that the embeddings come from.
    window : ndarray, (w, d), float32, optional
        Embeddings of earlier epochs without labels, none of them evaluated.
    labelled : LabelledEpochs, optional
        Earlier labelled epochs, with other pictures of other concepts.
    label_free, few_shot : optional
        Settings; nothing in them may have been chosen by these figures.
    n_bootstrap : int
        For the interval; pictures are resampled.

    Returns
    -------
    list of CalibratedFigure
        ``inductive`` and ``label_free_transductive`` always, the others where their epochs are given.

    Raises
    ------
    ValueError
        If calibration and evaluation are not apart, or there is too little to calibrate on.
    """
    free = label_free or LabelFreeConfig()
    names = list(dict.fromkeys(evaluated.images))
    first = [evaluated.images.index(name) for name in names]
    gallery = np.ascontiguousarray(evaluated.shown[first])
    target = np.array([names.index(image) for image in evaluated.images], dtype=np.int64)

    def figure(name: str, uses: str, transductive: bool, person: PersonMap | None) -> CalibratedFigure:
        similarity = (
            cosine_similarity(evaluated.brain_embeds, gallery)
            if person is None
            else person.similarity(evaluated.brain_embeds, gallery)
        )
        return CalibratedFigure(
            name, uses, transductive, report_similarity(similarity, target, n_bootstrap=n_bootstrap)
        )  # fmt: skip

    found = [figure("inductive", INDUCTIVE, False, None)]
    if window is not None:
        known = {row.tobytes() for row in np.asarray(window, np.float32)}
        n_both = sum(row.tobytes() in known for row in np.asarray(evaluated.brain_embeds, np.float32))
        if n_both:
            raise ValueError(
                f"{n_both} evaluated epochs are in the label-free window, expected none; use earlier epochs (what is "
                "fitted on the evaluated epochs is reported as transductive anyway)"
            )
        person = fit_label_free(window, modalities, free)
        found.append(figure("label_free", person.provenance + ", before the evaluated ones", False, person))
    person = fit_label_free(evaluated.brain_embeds, modalities, free)
    found.append(figure("label_free_transductive", f"{person.provenance}: the evaluated ones", True, person))
    if labelled is not None:
        check_apart(labelled, evaluated)
        person = fit_labelled(
            labelled.brain_embeds, labelled.shown, labelled.concepts, modalities, few_shot or FewShotConfig()
        )
        told = f"{person.provenance}, other pictures of other concepts; map chosen on them: {person.facts['map']}"
        found.append(figure("few_shot", told, False, person))
    return found


def comparison_text(figures: Sequence[CalibratedFigure]) -> str:
    """Lay out the figures for the terminal, one line each, with chance, n and interval."""
    lines = []
    for one in figures:
        r = one.report
        low, high = r.interval_top_1
        lines.append(
            f"{one.name:24} top-1 {r.top_1:.3f} [{low:.3f}, {high:.3f}] top-5 {r.top_5:.3f} of {r.n_gallery} pictures "
            f"(chance {r.chance_top_1:.3f}, {r.chance_top_5:.3f}), n = {r.n}; {one.uses}"
        )
    return "\n".join(lines)


def comparison_json(figures: Sequence[CalibratedFigure], **facts: Any) -> dict[str, Any]:
    """Give the figures as JSON values, each under its own name."""
    return {**facts, "figures": {one.name: one.to_json() for one in figures}}
