"""Decoding with a calibration to one person: reading it for a bundle, and applying it to what the model answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from alignment.brain_model import BrainEmbedding, BrainModel
from alignment.person_calibration import calibrated_similarity
from alignment.person_map import PersonMap, load_person, without_csls
from encoders.modality import combination
from generation.bundle import Bundle, BundleError
from generation.person_files import KINDS, PersonFile, list_people


@dataclass(frozen=True)
class CalibratedAnswer:
    """What a calibration makes of an answer.

    Attributes
    ----------
    image_embeds : ndarray, (n, d), float32
        The model's projection of the mapped embeddings.
    cosines : ndarray, (n, m), float32
        Of mapped embeddings and gallery.
    ranking : ndarray, (n, m), float32
        What orders the gallery: cosines, less local means where the calibration corrects for hubs.
    """

    image_embeds: np.ndarray
    cosines: np.ndarray
    ranking: np.ndarray


def read_person(file: PersonFile, bundle: Bundle) -> PersonMap:
    """Read a calibration.

    Raises
    ------
    BundleError
        If it is damaged, or was made for another model than that of ``bundle``.
    """
    try:
        person = load_person(Path(file.path), bundle.brain_folder)
        if not (person.kind == file.kind and combination(person.modalities.split("+")) == file.modalities):
            raise ValueError(f"it is {person.kind} for {person.modalities}, and its name says something else")
        _check_arrays(person)
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise BundleError(
            f"calibration {file.path} cannot be used with bundle {bundle.id}: {error}; remove it, or calibrate the "
            f"person again: phosphene calibrate --model {bundle.brain_folder} --out {Path(file.path).parent}"
        ) from error
    return person


def check_people(folder: Path, bundle: Bundle) -> None:
    """Read every calibration for a bundle; raises what `read_person` does, and `BundleError` without a folder."""
    if not folder.is_dir():
        raise BundleError(
            f"there is no folder {folder} of calibrations to people; name the one that `phosphene calibrate --out` "
            "wrote <bundle id>/<group>/ into, or leave it out"
        )
    for file in list_people(folder, bundle.id):
        read_person(file, bundle)


def best_of(people: Sequence[PersonMap], modalities: Sequence[str]) -> PersonMap | None:
    """Choose a person's calibration for what a recording holds; None if there is none."""
    fitting = [one for one in people if one.modalities == combination(modalities)]
    return max(fitting, key=lambda one: KINDS.index(one.kind), default=None)


def calibrated_answer(
    brain: BrainModel, person: PersonMap, embedding: BrainEmbedding, gallery: np.ndarray
) -> CalibratedAnswer:
    """Apply a calibration to a model's answer.

    Parameters
    ----------
    brain : BrainModel
    person : PersonMap
        Made for ``brain``.
    embedding : BrainEmbedding
        What ``brain`` answered.
    gallery : ndarray, (m, d), float32
        Raw image embeddings.
    """
    mapped = person.transform(embedding.brain_embeds)
    return CalibratedAnswer(
        image_embeds=brain.projector(mapped, combination(embedding.report.modalities)),
        cosines=calibrated_similarity(brain, without_csls(person), embedding, gallery),
        ranking=calibrated_similarity(brain, person, embedding, gallery),
    )


def _check_arrays(person: PersonMap) -> None:
    d = len(person.mean)
    shapes = {"mean": (d,), "offset": (d,), "matrix": (d, d), "window": (len(person.window), d)}
    for name, shape in shapes.items():
        array = getattr(person, name)
        if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
            raise ValueError(f"its {name} is {array.dtype} {array.shape}, expected finite float32 {shape}")
