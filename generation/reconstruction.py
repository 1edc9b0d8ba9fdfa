"""What a pipeline answers with: embeddings with everything that says how far to trust them, and pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignment.brain_model import InputReport
from alignment.person_map import PersonMap
from generation.gallery import Neighbour


@dataclass(frozen=True)
class EmbeddingResult:
    """What was read out of n epochs.

    Attributes
    ----------
    image_embeds : ndarray, (n, d), float32
        Raw CLIP image embeddings, which ``ReconstructionPipeline.generate`` takes.
    confidence : ndarray, (n,), float32
        Share of recordings without a picture whose best gallery similarity is lower, in [0, 1]: 0.5 on average for
        noise. Of a bundle that decodes categories: the probability of the decoded category.
    probability : ndarray, (n,), float64
        Calibrated chance that the first neighbour is what was shown, if the gallery holds it (or that the category is
        right); NaN where the bundle has no calibration for the row.
    noise_floor : float
        Similarity to the nearest picture that 95 of 100 recordings without a picture stay below; of a bundle that
        decodes categories, the probability of a guess.
    neighbours : list of list of Neighbour
        Nearest gallery pictures of every epoch, best first.
    report : InputReport
        What was used of the recordings and what was changed.
    stimulus, n_averaged : tuple, (n,)
        Stimulus id, empty if unknown, and presentations averaged, of every row.
    person : PersonMap or None
        The calibration to this person that ``image_embeds`` and ``neighbours`` come from. ``confidence`` and
        ``noise_floor`` are then those of the answer without it, since surrogates were not calibrated, and
        ``probability`` is NaN.
    """

    image_embeds: np.ndarray
    confidence: np.ndarray
    probability: np.ndarray
    noise_floor: float
    neighbours: list[list[Neighbour]]
    report: InputReport
    stimulus: tuple[str, ...]
    n_averaged: tuple[int, ...]
    person: PersonMap | None = None


@dataclass(frozen=True)
class Reconstruction:
    """Embeddings and their pictures, generated or retrieved, (n, n_images, h, w, 3) uint8."""

    embedding: EmbeddingResult
    images: np.ndarray
