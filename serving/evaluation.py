"""A bundle's scores: those in its manifest, the same measured on fresh simulated recordings, and a whole report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignment.evaluation_report import ConfidenceFigures, EvaluationReport, Figure
from alignment.report_page import write_page
from alignment.signal_evaluation import EvaluationPlan, Similarity, signal_confidence, signal_figures
from encoders.epochs import SignalEpochs
from generation.bundle import Bundle
from generation.demo_scores import N_REPETITIONS, interval, score_bundle
from generation.pipeline import ReconstructionPipeline
from generation.scene_judge import SceneJudge
from serving.simulated import TARGETS, recorder_of

JUDGE = "judge.safetensors"
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


def write_report(bundle_folder: Path, data: Path, out: Path, *, n_repetitions: int, seed: int) -> EvaluationReport:
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
    figures: list[Figure] = []
    confidence: list[ConfidenceFigures] = []
    for names in recorder.combinations:
        sides = []
        for embeds, prefix, offset in ((gallery.image_embeds, "test", 3000), (others, "validation", 4000)):
            ids = [f"{prefix} picture {row}" for row in range(len(embeds))]
            recordings = {
                person: [
                    recorder.simulator.record(
                        embeds, modality=name, layout=recorder.layouts[name], subject=index,
                        n_repetitions=n_repetitions, seed=offset + seed, stimulus=ids,
                    )
                    for name in names
                ]
                for index, person in enumerate(brain.subjects)
            }  # fmt: skip
            plan = EvaluationPlan(
                columns={one: row for row, one in enumerate(ids)}, n_repetitions=n_repetitions, windows=WINDOWS,
                split=f"{prefix} pictures", selection_split="validation pictures of the training",
                modalities="+".join(names), seed=seed,
            )  # fmt: skip
            sides.append((_similarity_to(brain, embeds), recordings, plan))
        (similarity, recordings, plan), (other_similarity, other_recordings, other_plan) = sides
        figures += signal_figures(similarity, recordings, plan)
        confidence += signal_confidence(similarity, recordings, other_similarity, other_recordings, plan, other_plan)
    report = EvaluationReport(
        title=f"Evaluation of bundle {bundle.manifest.id[:12]} on simulated recordings",
        data=f"{bundle.manifest.data_statement} Recordings of this report: simulated people of the bundle's training.",
        simulated=True, figures=tuple(figures), confidence=tuple(confidence), single_trial_missing="",
        notes=(
            "People were known to the training, pictures and their concepts were not.",
            "Time windows: the signal outside is set to its level before onset; the decoder knows whole epochs only.",
        ),
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    report.write(out / "report.json")
    write_page(report, out / "report.html")
    return report


def _similarity_to(brain: Any, image_embeds: Any) -> Similarity:
    def similarity(parts: Sequence[SignalEpochs]) -> Any:
        answer = brain.embed(parts)
        return brain.similarity(answer.brain_embeds, image_embeds, answer.report.modalities)

    return similarity


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
