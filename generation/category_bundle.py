"""A bundle that decodes categories of a public data set and answers with gallery pictures of the decoded one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from alignment.calibrate import build_null
from alignment.category_training import TrainedCategories, train_categories
from alignment.erp_study import ErpStudyConfig
from alignment.runtime import Runtime
from encoders.epochs import SignalEpochs
from generation.assemble import assemble_bundle
from generation.bundle import Bundle, BundleParts
from generation.gallery import N_NEIGHBOURS, Gallery
from generation.gallery_pictures import THUMB_SIZE, category_gallery
from generation.image_decoder import RetrievalConfig
from generation.pipeline import best_similarity


def bundle_of_study(
    config: ErpStudyConfig,
    data: Path,
    gallery_folder: Path,
    pictures: Mapping[str, Sequence[str]],
    folder: Path,
    *,
    leave_out: Sequence[str] = (),
    size: int = THUMB_SIZE,
    replace: bool = False,
) -> tuple[Bundle, TrainedCategories]:
    """Train a decoder of categories and write it as a bundle.

    Parameters
    ----------
    config : ErpStudyConfig
    data : Path
        Folder of the data sets.
    gallery_folder, pictures, size
        See `generation.gallery_pictures.category_gallery`.
    folder : Path
        Where the bundle appears.
    leave_out : sequence of str
        People who are not trained on; the first one's recording becomes the bundle's example. Without any there is no
        example: the answer to somebody whom the decoder learned from would say nothing.
    replace : bool
        Whether a bundle that is already there gives way.

    Returns
    -------
    bundle : Bundle
    trained : TrainedCategories
    """
    trained = train_categories(config, data, leave_out)
    gallery = category_gallery(gallery_folder, pictures, trained.model.classes, size=size)
    with TemporaryDirectory() as scratch:
        trained.model.save(Path(scratch) / "brain")
        parts = BundleParts(
            brain=Path(scratch) / "brain",
            decoder=None,
            gallery=gallery,
            null=build_null(
                lambda changed: np.concatenate([best_similarity(trained.model, gallery, [one]) for one in changed]),
                {trained.model.modality: trained.recordings},
            ),
            example=trained.left_out[0] if trained.left_out else None,
        )
        bundle = assemble_bundle(
            folder, parts, decoder=RetrievalConfig(shows="category", max_images=_fewest(gallery)),
            data_statement=_statement(config, trained), configs=_configs(config, trained, pictures),
            scores=_scores(trained), runtime=Runtime(), replace=replace,
        )  # fmt: skip
    return bundle, trained


def person_files(recordings: Sequence[SignalEpochs], folder: Path) -> list[Path]:
    """Write one ``PERSON.npz`` per recording, for the people that a bundle left out."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{one.subject}.npz" for one in recordings]
    for one, path in zip(recordings, paths, strict=True):
        one.save(path)
    return paths


def _fewest(gallery: Gallery) -> int:
    return min(N_NEIGHBOURS, int(gallery.image_embeds.sum(axis=0).min()))


def _statement(config: ErpStudyConfig, trained: TrainedCategories) -> str:
    figure = trained.result.figures[0]
    return (
        f"Recorded EEG of {len(trained.recordings)} people ({config.dataset}), as one average of about "
        f"{trained.model.n_averaged} presentations per person and category; no single presentation was decoded. What "
        f"is decoded is one of {len(trained.model.classes)} categories ({', '.join(trained.model.classes)}), not a "
        f"picture: in people left out {figure.value:.2f} of the averages are right, chance {figure.chance:.2f}, n "
        f"{figure.n}. The pictures are examples of the category from a gallery that nobody was shown."
    )


def _configs(
    config: ErpStudyConfig, trained: TrainedCategories, pictures: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    return {
        "study": config.model_dump(mode="json"),
        "chosen": trained.model.decoder.config.model_dump(mode="json"),
        "temperature": trained.model.decoder.temperature,
        "people": [one.subject for one in trained.recordings],
        "left_out": [one.subject for one in trained.left_out],
        "pictures": {name: list(found) for name, found in pictures.items()},
    }


def _scores(trained: TrainedCategories) -> dict[str, Any]:
    return {
        "people_left_out": {one.metric: one.model_dump(mode="json") for one in trained.result.figures},
        "probability": trained.calibration(),
    }
