"""Targets of the pictures that stores show: found in a folder, embedded once, with concept and hash."""

from collections.abc import Sequence
from pathlib import Path

from alignment.clip_space import ImageSpace
from alignment.feature_store import compute_features
from alignment.picture_files import find_pictures
from alignment.target_table import TargetTable
from encoders.datasets.stimulus_names import image_id
from encoders.store import EpochStore


def shown_pictures(stores: Sequence[str]) -> dict[str, str]:
    """List the pictures of stores with their concepts.

    Raises
    ------
    ValueError
        If stores disagree about a concept, or show no picture.
    """
    concepts: dict[str, str] = {}
    for path in stores:
        table = EpochStore.open(path).metadata
        pairs = zip(table["image"].to_pylist(), table["concept"].to_pylist(), strict=True)
        for image, concept in sorted({pair for pair in pairs if pair[0]}):
            if concepts.setdefault(image, concept) != concept:
                raise ValueError(
                    f"{image!r} is of concept {concepts[image]!r}, but in {path} of {concept!r}; convert both alike"
                )
    if not concepts:
        raise ValueError(f"no epoch of {list(stores)} names a picture; convert with the layout's stimulus column")
    return concepts


def embed_shown(
    space: ImageSpace, root: Path, stores: Sequence[str], cache: Path, *, progress: bool = False
) -> TargetTable:
    """Embed the pictures that stores show.

    Parameters
    ----------
    space : ImageSpace
    root : Path
        Folder of pictures, in any subfolders; a file belongs to an id that is its path under ``root``, or that
        `encoders.datasets.stimulus_names.image_id` makes of it.
    stores : sequence of str
    cache : Path
        Embeddings that were computed before.
    progress : bool

    Returns
    -------
    TargetTable

    Raises
    ------
    ValueError
        If a shown picture is not in the folder, or two files could be it.
    """
    concepts = shown_pictures(stores)
    files: dict[str, Path] = {}
    for name, path in find_pictures(root).items():
        for key in {name, image_id(name)} & set(concepts):
            if files.setdefault(key, path) != path:
                raise ValueError(f"picture {key!r} could be {files[key]} or {path}; give a folder with one of them")
    missing = [image for image in concepts if image not in files]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(concepts)} shown pictures are not in {root}, the first {sorted(missing)[:5]}; "
            "give the folder that holds them"
        )
    images = sorted(concepts)
    features = compute_features(space, {image: files[image] for image in images}, cache, progress=progress)
    return TargetTable(
        images=tuple(images),
        concepts=tuple(concepts[image] for image in images),
        digests=tuple(features.digests[image] for image in images),
        embeds=features.rows(images),
        space=space.digest,
    )
