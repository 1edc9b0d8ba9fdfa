"""Picture files: found by name, hashed, opened one at a time and within limits."""

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from encoders.durable_files import file_sha256

Images = NDArray[np.uint8]
Picture = Path | Images
"""A file, or an array (h, w, 3) uint8."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 64_000_000
"""Pictures of more pixels than that are refused before they are decoded."""


def find_pictures(root: Path | str) -> dict[str, Path]:
    """List the picture files under a folder.

    Parameters
    ----------
    root : Path or str

    Returns
    -------
    dict of str to Path
        By path relative to ``root``, with forward slashes and the suffix, in sorted order. Hidden files are left out.

    Raises
    ------
    ValueError
        If there is no such folder, or no picture in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"no folder of pictures at {root}; give the folder that holds the data set's pictures")
    files = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    named = {path.relative_to(root).as_posix(): path for path in files if not path.name.startswith(".")}
    if not named:
        raise ValueError(f"{root} holds no picture, expected files ending in {', '.join(SUFFIXES)}")
    return dict(sorted(named.items()))


def read_picture(picture: Picture, *, max_pixels: int = MAX_PIXELS) -> Images:
    """Decode one picture.

    Parameters
    ----------
    picture : Path, or ndarray, (h, w, 3), uint8
        An array is checked and returned.
    max_pixels : int

    Returns
    -------
    ndarray, (h, w, 3), uint8
        RGB; transparency is dropped, orientation tags are not applied.

    Raises
    ------
    ValueError
        If the file is no JPEG, PNG, WebP or BMP, is cut short or damaged, or has more than ``max_pixels`` pixels; it
        names the file.
    """
    if not isinstance(picture, Path):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
            raise ValueError(f"picture is {picture.dtype} {picture.shape}, expected uint8 (h, w, 3) RGB")
        return picture
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels decides
            with Image.open(picture, formats=FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise ValueError(f"it has {width} x {height} pixels, at most {max_pixels} are allowed")
                return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"picture {picture} cannot be read: {error}; replace it or leave it out") from error


def picture_digest(picture: Picture) -> str:
    """Hash a file's bytes, or an array's shape and pixels, with sha256."""
    if isinstance(picture, Path):
        return file_sha256(picture)
    digest = hashlib.sha256(f"{picture.dtype} {picture.shape}".encode())
    digest.update(np.ascontiguousarray(picture).data)
    return digest.hexdigest()


def picture_digests(pictures: Mapping[str, Picture], *, progress: bool = False) -> dict[str, str]:
    """Hash many pictures, by id.

    Raises
    ------
    ValueError
        If files are missing; it names the first.
    """
    missing = [name for name, picture in pictures.items() if isinstance(picture, Path) and not picture.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(pictures)} pictures have no file, the first {missing[:5]}; add them")
    bar = tqdm(pictures.items(), desc="hash pictures", disable=not progress, mininterval=1.0)
    return {name: picture_digest(picture) for name, picture in bar}
