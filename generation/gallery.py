"""The labelled pictures of a bundle that a decoded embedding is compared with."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

N_NEIGHBOURS = 5  # that an answer names
GALLERY_FILES = ("gallery.safetensors", "gallery.json")


@dataclass(frozen=True)
class Neighbour:
    """One gallery picture near an embedding; ``index`` is its row in the gallery."""

    index: int
    name: str
    caption: str
    similarity: float


@dataclass(frozen=True)
class Gallery:
    """Embeddings, thumbnails and labels of pictures.

    Parameters
    ----------
    image_embeds : ndarray, (m, d), float32
        CLIP image embeddings on their raw scale.
    thumbs : ndarray, (m, h, w, 3), uint8
        Pictures to show.
    names, captions : tuple of str, (m,)
        File-like name and describing sentence.

    Raises
    ------
    ValueError
        If the counts, shapes or types do not fit or an embedding is zero or not finite.
    """

    image_embeds: np.ndarray
    thumbs: np.ndarray
    names: tuple[str, ...]
    captions: tuple[str, ...]

    def __post_init__(self) -> None:
        m = len(self.names)
        shapes = (self.image_embeds.shape, self.thumbs.shape, len(self.captions))
        fits = self.image_embeds.ndim == 2 and self.thumbs.ndim == 4 and self.thumbs.shape[3:] == (3,)
        if m == 0 or not fits or any(count != m for count in (len(self.image_embeds), len(self.thumbs), shapes[2])):
            raise ValueError(
                f"a gallery of {m} names got embeddings, thumbs and captions of sizes {shapes}, expected (m, d), "
                "(m, h, w, 3) and m with m >= 1; pass one row per picture"
            )
        if self.image_embeds.dtype != np.float32 or self.thumbs.dtype != np.uint8:
            raise ValueError(
                f"gallery dtypes are {self.image_embeds.dtype} and {self.thumbs.dtype}, expected float32 embeddings "
                "and uint8 thumbs; convert them"
            )
        lengths = np.linalg.norm(self.image_embeds, axis=1)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            row = int(np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))[0])
            raise ValueError(
                f"gallery embedding {row} ({self.names[row]}) has length {lengths[row]}, expected a finite one "
                "above 0; leave the picture out"
            )

    def neighbours(
        self, similarity: np.ndarray, top_k: int, ranking: np.ndarray | None = None
    ) -> list[list[Neighbour]]:
        """Name the ``top_k`` most similar pictures of every row of ``similarity`` (n, m), best first.

        How brain and picture are compared is the brain model's matter, see ``BrainModel.similarity``. With ``ranking``
        (n, m) the best are those whose rank is highest.
        """
        order = np.argsort(-(similarity if ranking is None else ranking), axis=1, kind="stable")[:, :top_k]
        return [
            [Neighbour(int(i), self.names[i], self.captions[i], float(row[i])) for i in best]
            for row, best in zip(similarity, order, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write ``gallery.safetensors`` (embeddings, and the thumbnails as PNG one behind the other) and its labels."""
        pictures = [_to_png(thumb) for thumb in self.thumbs]
        arrays = {
            "image_embeds": self.image_embeds,
            "thumbs_png": np.frombuffer(b"".join(pictures), dtype=np.uint8),
            "thumbs_end": np.cumsum([len(picture) for picture in pictures]),
        }
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / GALLERY_FILES[0])
        labels = {"names": list(self.names), "captions": list(self.captions)}
        (folder / GALLERY_FILES[1]).write_text(json.dumps(labels, indent=0))

    @classmethod
    def load(cls, folder: Path) -> Gallery:
        """Read what ``save`` wrote."""
        arrays = load_file(folder / GALLERY_FILES[0])
        labels = json.loads((folder / GALLERY_FILES[1]).read_text())
        pictures = np.split(arrays["thumbs_png"], arrays["thumbs_end"][:-1])
        thumbs = np.stack([_from_png(picture.tobytes()) for picture in pictures])
        return cls(arrays["image_embeds"], thumbs, tuple(labels["names"]), tuple(labels["captions"]))


def _to_png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _from_png(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        return np.asarray(picture.convert("RGB"))
