"""Galleries made of somebody's own picture files: embedded in the space of a training, or as examples of categories."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from alignment.picture_files import find_pictures, read_picture
from generation.gallery import Gallery

THUMB_SIZE = 128


def picture_thumb(path: Path, size: int = THUMB_SIZE) -> NDArray[np.uint8]:
    """Read a picture and cut its middle square to (size, size, 3), uint8.

    Raises
    ------
    ValueError
        If the file is no readable picture; see `alignment.picture_files.read_picture`.
    """
    image = Image.fromarray(read_picture(path))
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS), dtype=np.uint8)


def picture_gallery(
    files: Mapping[str, Path], image_embeds: NDArray[np.float32], *, size: int = THUMB_SIZE, progress: bool = False
) -> Gallery:
    """Make a gallery of picture files and their embeddings.

    Parameters
    ----------
    files : mapping of str to Path
        By name. The caption is the text of ``NAME.txt`` beside the picture, else its name in words.
    image_embeds : ndarray, (m, d), float32
        Raw embeddings, in the order of ``files``.
    size : int
        Side of the stored pictures in pixels.
    progress : bool

    Returns
    -------
    Gallery
    """
    thumbs = [picture_thumb(path, size) for path in tqdm(files.values(), desc="gallery", disable=not progress)]
    captions = tuple(_caption(name, path) for name, path in files.items())
    return Gallery(image_embeds, np.stack(thumbs), tuple(files), captions)


def category_gallery(
    root: Path, patterns: Mapping[str, Sequence[str]], classes: Sequence[str], *, size: int = THUMB_SIZE
) -> Gallery:
    """Make a gallery whose embeddings are the one-hot vectors of categories.

    Parameters
    ----------
    root : Path
        Folder of pictures.
    patterns : mapping of str to sequence of str
        Per category the pictures that show it, as glob patterns of paths below ``root``. One picture of every pattern
        comes before the second of any, so that the first ones of a category show different things.
    classes : sequence of str, (k,)
        Categories in the order of the model's embedding.
    size : int
        Side of the stored pictures in pixels.

    Returns
    -------
    Gallery
        Captions are the categories.

    Raises
    ------
    ValueError
        If the categories are others than ``classes``, a pattern finds nothing, or a picture is of two categories.
    """
    if set(patterns) != set(classes):
        raise ValueError(f"pictures are given for {sorted(patterns)}, expected {sorted(classes)}; give each some")
    known = find_pictures(root)
    owner: dict[str, str] = {}
    for category in classes:
        for name in _taking_turns([_matches(root, pattern, known) for pattern in patterns[category]]):
            if owner.setdefault(name, category) != category:
                raise ValueError(f"{name} is of {owner[name]!r} and of {category!r}; put each picture in one category")
    index = {category: row for row, category in enumerate(classes)}
    embeds = np.eye(len(classes), dtype=np.float32)[[index[category] for category in owner.values()]]
    thumbs = np.stack([picture_thumb(known[name], size) for name in owner])
    return Gallery(embeds, thumbs, tuple(owner), tuple(owner.values()))


def _matches(root: Path, pattern: str, known: Mapping[str, Path]) -> list[str]:
    found = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
    found = [name for name in found if name in known]
    if not found:
        raise ValueError(f"no picture below {root} matches {pattern!r}; give the folder of the gallery, or mend it")
    return found


def _taking_turns(groups: Sequence[Sequence[Any]]) -> list[Any]:
    longest = max(len(group) for group in groups)
    return [group[turn] for turn in range(longest) for group in groups if turn < len(group)]


def _caption(name: str, path: Path) -> str:
    beside = path.with_suffix(".txt")
    if beside.is_file():
        return beside.read_text(encoding="utf-8").strip()
    return Path(name).with_suffix("").as_posix().replace("/", ", ").replace("_", " ")
