"""A bundle's scores: those in its manifest, the same measured on fresh simulated recordings, and a whole report."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from alignment.answer_figures import FigurePlan, Gallery, answer_confidence, answer_figures
from alignment.evaluation_report import ConfidenceFigures, EvaluationReport, Figure
from alignment.person_answers import KINDS, RECORDING, WINDOW_NOTE, PersonAnswers
from alignment.repetitions import repetition_counts
from alignment.report_page import write_page
from alignment.signal_evaluation import Answers, answers_by_count, collected
from generation.bundle import Bundle
from generation.demo_scores import N_REPETITIONS, interval, score_bundle
from generation.pipeline import ReconstructionPipeline
from generation.scene_judge import SceneJudge
from serving.simulated import TARGETS, recorder_of

JUDGE = "judge.safetensors"
TEST, VALIDATION = "test picture", "validation picture"
SIDES = {TEST: 3000, VALIDATION: 4000}
"""Which pictures were shown, and the first seed of their recordings."""
WINDOWS = ((0.0, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.6))


def stored_scores(bundle: Path) -> dict[str, Any]:
    """Return what the manifest says, with the statement on the data."""
    manifest = Bundle.load(bundle).manifest
    return {"bundle": manifest.id, "data": manifest.data_statement, **manifest.scores}


def measured_scores(bundle_folder: Path, data: Path, *, seed: int, pictures: bool) -> dict[str, Any]:
    """Record every gallery scene anew and find it again; with `pictures`, judge decoded pictures too.

    Returns
    -------
    dict
        Per combination of modalities the share of scenes found first among all, with 95 % interval, chance, n and
        presentations averaged; ``pictures`` holds `generation.demo_scores.score_bundle`.
    """
    bundle = Bundle.load(bundle_folder)
    pipeline = ReconstructionPipeline(bundle, embedding_only=True)
    recorder = recorder_of(bundle, data)
    gallery = pipeline.gallery
    n = len(gallery.names)
    scores: dict[str, Any] = {}
    for names in recorder.combinations:
        recordings = recorder.record(gallery.image_embeds, names, seed=2000 + seed)
        found = np.array([near[0].index for near in pipeline.embed(recordings).neighbours])
        top_1 = float((found == np.arange(n)).mean())
        scores["+".join(names)] = {
            "gallery_top_1": round(top_1, 4),
            "interval": interval(top_1, n),
            "chance": 1 / n,
            "n": n,
            "n_averaged": N_REPETITIONS,
        }
    if pictures:
        if not (data / JUDGE).is_file():
            raise ValueError(f"{data / JUDGE} is missing, expected the judge of the demo scenes; give its folder")
        from alignment.runtime import Runtime

        scores["pictures"] = score_bundle(bundle, SceneJudge.load(data / JUDGE), recorder, Runtime())
    return scores


def write_report(
    bundle_folder: Path, data: Path, out: Path, *, n_repetitions: int, seed: int, n_threads: int = 2
) -> EvaluationReport:
    """Show the gallery to every simulated person and write ``report.json`` and ``report.html``.

    Parameters
    ----------
    bundle_folder, data : Path
        The bundle, and the folder with the targets it was trained with.
    out : Path
        Folder for both files.
    n_repetitions : int
        Presentations of each picture; figures are given for 1, 2, 4, ... of them averaged.
    seed : int
        Of the recordings' noise.
    n_threads : int
        People, then combinations of modalities, worked on at once.

    Returns
    -------
    EvaluationReport
        Confidence is calibrated on recordings of validation pictures, which no test picture is among.
    """
    from alignment.brain_model import BrainModel
    from alignment.pairs import read_targets
    from alignment.runtime import Runtime

    bundle = Bundle.load(bundle_folder)
    recorder, gallery = recorder_of(bundle, data), bundle.gallery()
    brain = BrainModel.load(bundle.brain_folder, Runtime())
    others = read_targets(data / TARGETS)["val"].embeds[: len(gallery.names)]
    if len(others) < len(gallery.names):
        raise ValueError(
            f"{data / TARGETS} has {len(others)} validation pictures, expected at least the gallery's "
            f"{len(gallery.names)}; calibrate with as many to choose from"
        )
    asked = [(side, index) for index in range(len(brain.subjects)) for side in SIDES]
    shown = {TEST: gallery.image_embeds, VALIDATION: others}

    def answers(who: tuple[str, int]) -> Answers:
        side, index = who
        ids = [f"{side} {row}" for row in range(len(shown[side]))]
        parts = {
            name: recorder.simulator.record(
                shown[side], modality=name, layout=layout, subject=index, n_repetitions=n_repetitions,
                seed=SIDES[side] + seed, stimulus=ids,
            )
            for name, layout in recorder.layouts.items()
        }  # fmt: skip
        return answers_by_count(
            brain, parts, brain.subjects[index], shown[side], repetition_counts(n_repetitions), recorder.combinations,
            kinds=KINDS if side == TEST else (RECORDING,), windows=WINDOWS if side == TEST else (), seed=seed,
        )  # fmt: skip

    found: dict[str, dict[str, Answers]] = {side: {} for side in SIDES}
    with ThreadPoolExecutor(n_threads) as pool:
        done = tqdm(pool.map(answers, asked), total=len(asked), desc="decode people", mininterval=1.0)
        for (side, index), one in zip(asked, done, strict=True):
            found[side][brain.subjects[index]] = one
    answered = {side: collected(people) for side, people in found.items()}
    report = _report(bundle.manifest, answered, seed, n_threads)
    out.mkdir(parents=True, exist_ok=True)
    report.write(out / "report.json")
    write_page(report, out / "report.html")
    return report


def _report(
    manifest: Any, found: Mapping[str, Mapping[str, Mapping[int, Mapping[str, PersonAnswers]]]], seed: int,
    n_threads: int,
) -> EvaluationReport:  # fmt: skip
    """Turn the answers of both sides, by combination of modalities, into a report."""

    def scored(key: str) -> tuple[list[Figure], list[ConfidenceFigures]]:
        galleries = {side: _gallery(next(iter(by_key[key][1].values())).images) for side, by_key in found.items()}
        plan = FigurePlan(galleries[TEST], f"{TEST}s", f"{VALIDATION}s", {"modality": key}, seed=seed)
        confidence = answer_confidence(found[TEST][key], found[VALIDATION][key], galleries[VALIDATION], plan)
        return answer_figures(found[TEST][key], plan), confidence

    with ThreadPoolExecutor(n_threads) as pool:
        done = list(tqdm(pool.map(scored, found[TEST]), total=len(found[TEST]), desc="score combinations"))
    figures = [one for some, _ in done for one in some]
    confidence = [one for _, some in done for one in some]
    return EvaluationReport(
        title=f"Evaluation of bundle {manifest.id[:12]} on simulated recordings",
        data=f"{manifest.data_statement} Recordings of this report: simulated people of the bundle's training.",
        simulated=True, figures=tuple(figures), confidence=tuple(confidence), adapted=(), single_trial_missing="",
        notes=(
            "People were known to the training, pictures and their concepts were not.",
            "Modalities joined by + were recorded from the same simulated person at the same presentation.",
            WINDOW_NOTE,
        ),
    )  # fmt: skip


def _gallery(images: Sequence[str]) -> Gallery:
    """Make a gallery of the pictures that were shown, in their order, each of a concept of its own."""
    names = tuple(dict.fromkeys(images))
    return Gallery(names, names)


def score_table(stored: dict[str, Any]) -> list[str]:
    """Lay the scores that a demo bundle stores out as the README's tables, chance levels among them."""
    rows = [
        (name, label, row)
        for name, by_label in sorted(stored["retrieval"]["scores"].items(), key=lambda item: "+" in item[0])
        for label, row in sorted(by_label.items(), reverse=True)
    ]
    lines = [
        "| recording | epochs     | n    | network, 95 %     | ridge | ideal observer | network / ideal |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, label, row in rows:
        network = row["network"]
        lines.append(
            f"| {name:9} | {label.replace('_', ' '):10} | {network['n']:4} "
            f"| {network['top_1']:.3f} {_interval(network['interval_top_1'])} "
            f"| {row['ridge']['top_1']:.3f} | {row['ideal_observer']['top_1']:14.3f} | {row['ratio_to_ideal']:15.2f} |"
        )
    n_gallery, chance_top_1 = network["n_gallery"], network["chance_top_1"]
    lines += ["", f"Share found first among {n_gallery} unseen pictures; chance {chance_top_1:.3f}."]
    pictures = stored.get("pictures")
    if pictures is None:
        return lines
    factors = ("background", "colour", "shape", "texture")
    cells = "".join(f" {factor:17} |" for factor in factors)
    lines += ["", f"| {'pictures from':20} | n   |{cells} off, px |", "|---|---|---|---|---|---|---|"]
    for name, row in sorted(pictures.items(), key=lambda item: -item[1]["n"]):
        cells = "".join(f" {row[factor]['value']:.3f} {_interval(row[factor]['interval'])} |" for factor in factors)
        lines.append(f"| {name.replace('_', ' '):20} | {row['n']:3d} |{cells} {row['position_error_px']:7.1f} |")
    chance = "".join(f" {pictures['true_embeddings'][factor]['chance']:<17.3f} |" for factor in factors)
    lines.append(f"| {'chance':20} |     |{chance} {'':7} |")
    return lines


def _interval(low_high: Any) -> str:
    low, high = low_high
    return f"({low:.2f}-{high:.2f})"


def score_lines(scores: Any, indent: str = "") -> list[str]:
    """Lay nested scores out for a terminal."""
    lines = []
    for name, value in scores.items():
        if isinstance(value, dict) and any(isinstance(part, dict) for part in value.values()):
            lines += [f"{indent}{name}", *score_lines(value, indent + "  ")]
        elif isinstance(value, dict):
            lines.append(f"{indent}{name}: " + ", ".join(f"{key} {_plain(part)}" for key, part in value.items()))
        else:
            lines.append(f"{indent}{name}: {_plain(value)}")
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_plain(part) for part in value) + "]"
    return str(value)
