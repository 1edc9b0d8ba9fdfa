"""THINGS-EEG2 test set as published embeddings: 200 pictures, one averaged EEG embedding each, and CLIP's of the same.

A plain npz: ``eeg_embedding``, ``clip_image``, ``clip_text`` (200, 1024) float32, ``image_id``, ``concept`` (200,).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = "things_eeg2/zero_shot_200.npz"
N_AVERAGED = 80
"""Presentations behind each EEG embedding; no single-trial embedding was published."""
_ARRAYS = ("eeg_embedding", "clip_image", "clip_text", "image_id", "concept")


@dataclass(frozen=True)
class PictureEmbeddings:
    """Embeddings of the test pictures, row by row the same picture.

    Attributes
    ----------
    brain_embeds, image_embeds, text_embeds : ndarray, (n, d), float32
        ATM-S output for subject 8; CLIP ViT-H/14 of pictures and of concept names, of unit length.
    image, concept : tuple of str, (n,)
    """

    brain_embeds: NDArray[np.float32]
    image_embeds: NDArray[np.float32]
    text_embeds: NDArray[np.float32]
    image: tuple[str, ...]
    concept: tuple[str, ...]


def read_test_embeddings(folder: Path) -> PictureEmbeddings:
    """Read the file below the folder of shared data.

    Raises
    ------
    ValueError
        If an array is missing, shapes disagree, or a picture appears twice.
    """
    path = folder / FILE
    with np.load(path, allow_pickle=False) as file:
        missing = [name for name in _ARRAYS if name not in file.files]
        if missing:
            raise ValueError(f"{path} lacks {missing}, it has {file.files}; take zero_shot_200.npz")
        eeg, image, text, image_id, concept = (file[name] for name in _ARRAYS)
    if eeg.ndim != 2 or not (eeg.shape == image.shape == text.shape) or len(set(image_id.tolist())) != len(eeg):
        raise ValueError(
            f"{path} has embeddings {eeg.shape}, {image.shape}, {text.shape} of {len(set(image_id.tolist()))} pictures"
            ", expected three equal (n, d) of n different pictures"
        )
    return PictureEmbeddings(
        eeg.astype(np.float32), image.astype(np.float32), text.astype(np.float32),
        tuple(str(one) for one in image_id), tuple(str(one) for one in concept),
    )  # fmt: skip
