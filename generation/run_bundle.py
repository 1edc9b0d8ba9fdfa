"""A bundle of a training on recorded data: its model, somebody's generator or none, and somebody's gallery.

Whatever says how sure an answer is rests on validation pictures; test pictures enter through the report of
``phosphene evaluate`` only.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.brain_model import BrainModel
from alignment.clip_space import ImageSpace
from alignment.evaluation_report import EvaluationReport
from alignment.feature_store import compute_features
from alignment.image_spaces import open_space
from alignment.picture_files import find_pictures, read_picture
from alignment.recorded_data import RecordedDataConfig, split_rows
from alignment.recorded_sources import RecordedSources, open_sources
from alignment.runtime import Runtime
from alignment.target_table import TargetTable
from alignment.train_config import TrainConfig, read_run_config
from alignment.validation_answers import AnswerGallery, answer_calibrations, answer_null, validation_recordings
from generation.assemble import assemble_bundle
from generation.bundle import Bundle, BundleParts
from generation.gallery import N_NEIGHBOURS
from generation.gallery_pictures import THUMB_SIZE, picture_gallery
from generation.generator_source import GeneratorSource
from generation.image_decoder import AnyDecoderConfig, RetrievalConfig

logger = logging.getLogger(__name__)
N_COMPARED = 16  # pictures that the spaces of generator and training are compared on
REPORT = Path("evaluation") / "report.json"


@dataclass(frozen=True)
class GalleryRequest:
    """Somebody's gallery, and how to embed it.

    Attributes
    ----------
    folder : Path
        Of pictures, in any subfolders.
    space : str
        JSON of the space, as for `open_space`; empty for what the table of targets says.
    cache : Path
        Embeddings so far.
    size : int
        Side of the stored pictures in pixels.
    """

    folder: Path
    space: str = ""
    cache: Path = Path("out/features")
    size: int = THUMB_SIZE


def bundle_of_run(
    run_dir: Path,
    gallery: GalleryRequest,
    folder: Path,
    *,
    generator: str = "",
    replace: bool = False,
    runtime: Runtime | None = None,
    progress: bool = False,
) -> Bundle:
    """Write the bundle of a training on recorded data.

    Parameters
    ----------
    run_dir : Path
        Folder of the training.
    gallery : GalleryRequest
    folder : Path
        Where the bundle appears.
    generator : str
        Diffusers folder or hub id of a Stable unCLIP or image variation; empty for a bundle that retrieves gallery
        pictures and generates none.
    replace : bool
        Whether a bundle that is already there gives way.
    runtime : Runtime, optional
    progress : bool

    Returns
    -------
    Bundle

    Raises
    ------
    ValueError
        If the training was on simulated data, gallery or generator are of another space, or the gallery has one
        picture.
    """
    runtime = runtime or Runtime()
    config = read_run_config(run_dir)
    sources = open_sources(config)
    assert isinstance(config.data, RecordedDataConfig)
    splits = split_rows(config.data, sources.stores, sources.targets)
    model = BrainModel.load(run_dir / "brain", runtime)
    made_by = GeneratorSource.open(generator) if generator else None
    if made_by is not None:
        made_by.check_width(model.embed_dim, space_name(sources.targets))
    files = find_pictures(gallery.folder)
    features = compute_features(_space(sources.targets, gallery, runtime), files, gallery.cache, progress=progress)
    embeds = features.rows(list(files))
    cosine = _compared(made_by, files, embeds, sources.targets, runtime)
    answered = AnswerGallery(embeds, tuple(features.digests[name] for name in files))
    recordings = validation_recordings(sources.stores, splits, seed=config.seed)
    decoder: AnyDecoderConfig = RetrievalConfig(max_images=min(N_NEIGHBOURS, len(files)))
    parts = BundleParts(
        brain=run_dir / "brain",
        decoder=None if made_by is None else made_by.folder,
        gallery=picture_gallery(files, embeds, size=gallery.size, progress=progress),
        null=answer_null(model, answered, recordings, seed=config.seed),
        calibrations=answer_calibrations(model, answered, recordings, sources.targets, seed=config.seed),
        unused=() if made_by is None else made_by.unused_parts(),
    )
    compared = None if made_by is None else {"name": made_by.name, "cosine_of_spaces": cosine, "n": N_COMPARED}
    return assemble_bundle(
        folder, parts, decoder=decoder if made_by is None else made_by.config,
        data_statement=_statement(sources, splits.images, made_by),
        configs={"brain": _plain_config(config), "space": space_name(sources.targets), "generator": compared},
        scores=run_scores(run_dir), runtime=runtime, replace=replace,
    )  # fmt: skip


def space_name(targets: TargetTable) -> str:
    """Name the space of a table of targets: what opens it where that is known, and the start of its digest."""
    return f"{targets.spec or 'a space'}, digest {targets.space[:12]}"


def run_scores(run_dir: Path) -> dict[str, Any]:
    """Give what a bundle says about a training: figures over everybody of its evaluation, else the validation score.

    Returns
    -------
    dict
        JSON; every figure carries its chance level, n, interval and split.
    """
    if not (run_dir / REPORT).is_file():
        logger.warning("no %s in %s: the bundle says validation scores only; run phosphene evaluate", REPORT, run_dir)
        trained = json.loads((run_dir / "report.json").read_text())
        n = trained["n_val_images"]
        chosen = {**trained["selection"], "metric": "top_1", "chance": 1 / n, "n_images": n}
        return {"validation": chosen | {"note": "chose the weights, so it flatters; test pictures were not evaluated"}}
    report = EvaluationReport.read(run_dir / REPORT)
    figures = [one for one in report.figures if set(one.group) <= {"modality"}]
    confidence = [one for one in report.confidence if set(one.group) <= {"modality"}]
    return {
        "evaluation": {
            "title": report.title,
            "data": report.data,
            "notes": list(report.notes),
            "figures": [one.model_dump(mode="json") for one in figures],
            "confidence": [one.model_dump(mode="json") for one in confidence],
        }
    }


def _space(targets: TargetTable, gallery: GalleryRequest, runtime: Runtime) -> ImageSpace:
    """Open the space of the targets, and refuse another one, or one with other weights."""
    spec = gallery.space or targets.spec
    if not spec:
        raise ValueError(
            f"the table of targets does not say how its space ({targets.space[:12]}) is opened, and none was given; "
            "give the --space that made it, or run phosphene features again"
        )
    space = open_space(json.loads(spec), runtime)
    if space.digest != targets.space:
        raise ValueError(
            f"the space {spec} has digest {space.digest[:12]} and width {space.embed_dim}, the training's targets are "
            f"of {space_name(targets)} and width {targets.embeds.shape[1]}; give the space and weights of the training"
        )
    return space


def _compared(
    made_by: GeneratorSource | None,
    files: dict[str, Path],
    embeds: NDArray[np.float32],
    targets: TargetTable,
    runtime: Runtime,
) -> float | None:
    if made_by is None:
        return None
    pictures = [read_picture(path) for path in list(files.values())[:N_COMPARED]]
    cosine = made_by.check_space(pictures, embeds[:N_COMPARED], space_name(targets), runtime)
    if cosine is None:
        logger.warning(
            "the generator %s has no image tower: that its space is the training's (%s) could not be checked beyond "
            "the width", made_by.name, space_name(targets),
        )  # fmt: skip
    return cosine


def _statement(sources: RecordedSources, images: Any, made_by: GeneratorSource | None) -> str:
    names = sorted({store.info.dataset for store in sources.stores.values()})
    pictures = "generated" if made_by is not None else "retrieved from the bundle's gallery, not generated"
    return (
        f"Recorded {' and '.join(sources.stores)} epochs of {', '.join(names)}: {len(images['train'])} pictures "
        f"trained on, {len(images['val'])} validation pictures chose the weights and calibrated the confidence. "
        f"Pictures of an answer are {pictures}."
    )


def _plain_config(config: TrainConfig) -> dict[str, Any]:
    """Give the config without the paths of the machine that it ran on."""
    told = config.model_dump(mode="json", exclude={"simulation"})
    told["targets"] = Path(told["targets"]).name
    told["data"] |= {
        "folder": Path(told["data"]["folder"]).name,
        "stores": {name: Path(path).name for name, path in told["data"]["stores"].items()},
    }
    return told
