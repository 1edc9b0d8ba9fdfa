"""The calibration of one person: fitted, stored beside a model as safetensors and JSON, and applied to embeddings.

Label-free and few-shot calibrations say so, with the number of epochs, wherever they are used: figures with them are no
inductive figures.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors.numpy import load_file, save

from alignment.brain_model import WEIGHTS
from alignment.few_shot import FewShotConfig, fit_few_shot
from alignment.person_whitening import Whitening, csls, fit_whitening
from alignment.retrieval import cosine_similarity
from encoders.durable_files import file_sha256, write_atomic

Float = NDArray[np.float32]
SCHEMA_VERSION = 1
ARRAYS = ("mean", "matrix", "offset", "window")
FIELDS = ("kind", "modalities", "n_neighbours", "whiten_gallery", "n_epochs", "facts")


class LabelFreeConfig(BaseModel):
    """What is done with a window of epochs whose pictures are unknown.

    Attributes
    ----------
    shrinkage
        Of the person's covariance, 0 to 1; -1: that of Ledoit and Wolf.
    n_neighbours
        Of CSLS; 0: cosines stay.
    whiten_gallery
        Whiten the pictures to choose from as well, by their own covariance: an answer then depends on the whole
        gallery, as it does with CSLS.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shrinkage: float = Field(default=-1.0, ge=-1, le=1)
    n_neighbours: int = Field(default=10, ge=0)
    whiten_gallery: bool = False


@dataclass(frozen=True)
class PersonMap:
    """A fitted calibration.

    Attributes
    ----------
    kind : "label-free" or "few-shot"
    modalities : str
        Combination that the embeddings come from (``"eeg"``, ``"eeg+meg"``).
    mean, offset : ndarray, (d,), float32
    matrix : ndarray, (d, d), float32
        ``(x - mean) @ matrix + offset`` is compared with pictures.
    window : ndarray, (w, d), float32
        Mapped embeddings of the window, for CSLS; empty without it.
    n_neighbours : int
        0: cosines.
    whiten_gallery : bool
    n_epochs : int
        That it was fitted on.
    facts : dict
        JSON values: what was chosen, and where the epochs came from.
    """

    kind: Literal["label-free", "few-shot"]
    modalities: str
    mean: Float
    matrix: Float
    offset: Float
    window: Float
    n_neighbours: int
    whiten_gallery: bool
    n_epochs: int
    facts: dict[str, Any]

    @property
    def provenance(self) -> str:
        """What must stand beside every figure that uses this."""
        unit = "labelled trials" if self.kind == "few-shot" else "epochs without labels"
        return f"{self.kind}, {self.n_epochs} {unit} of this person"

    def transform(self, brain_embeds: NDArray[Any]) -> Float:
        """Map brain embeddings (n, d)."""
        return np.asarray((brain_embeds - self.mean) @ self.matrix + self.offset, dtype=np.float32)

    def similarity(self, brain_embeds: NDArray[Any], gallery: Float) -> Float:
        """Compare embeddings with pictures.

        Parameters
        ----------
        brain_embeds : ndarray, (n, d)
            As the model gives them.
        gallery : ndarray, (m, d), float32
            Pictures as brain embeddings are compared with them: standardised, after the trained map.

        Returns
        -------
        ndarray, (n, m), float32
            Cosines, or with CSLS cosines less local means, which no threshold of cosines fits.
        """
        shown = fit_whitening(gallery)(gallery) if self.whiten_gallery else gallery
        cosines = cosine_similarity(self.transform(brain_embeds), shown)
        if not self.n_neighbours:
            return cosines
        return csls(cosines, cosine_similarity(self.window, shown), min(self.n_neighbours, len(shown)))


def fit_label_free(window: NDArray[Any], modalities: str, config: LabelFreeConfig, **facts: Any) -> PersonMap:
    """Calibrate on embeddings (w, d) of epochs whose pictures nobody knows; ``facts`` are stored with it.

    Raises
    ------
    ValueError
        If the window is too small; see `alignment.person_whitening.fit_whitening`.
    """
    whitening: Whitening = fit_whitening(window, None if config.shrinkage < 0 else config.shrinkage)
    if config.n_neighbours > len(window):
        raise ValueError(
            f"n_neighbours is {config.n_neighbours}, expected at most the {len(window)} epochs of the window; lower it"
        )
    kept = whitening(window) if config.n_neighbours else np.empty((0, window.shape[1]), np.float32)
    return PersonMap(
        "label-free", modalities, _float(whitening.mean), _float(whitening.matrix), _float(np.zeros(window.shape[1])),
        kept, config.n_neighbours, config.whiten_gallery, len(window), {"shrinkage": whitening.shrinkage, **facts},
    )  # fmt: skip


def fit_labelled(
    brain_embeds: NDArray[Any], shown: NDArray[Any], concepts: Sequence[str], modalities: str, config: FewShotConfig,
    **facts: Any,
) -> PersonMap:  # fmt: skip
    """Calibrate on labelled epochs.

    Parameters
    ----------
    brain_embeds : ndarray, (n, d)
    shown : ndarray, (n, d)
        The picture of each, as in ``gallery`` of `PersonMap.similarity`.
    concepts : sequence of str
    modalities : str
    config : FewShotConfig
    facts
        Stored with it.

    Raises
    ------
    ValueError
        See `alignment.few_shot.fit_few_shot`.
    """
    fitted = fit_few_shot(brain_embeds, shown, concepts, config)
    penalty = fitted.penalty if np.isfinite(fitted.penalty) else None
    d = brain_embeds.shape[1]
    return PersonMap(
        "few-shot", modalities, _float(fitted.mean), _float(fitted.matrix), _float(fitted.offset),
        np.empty((0, d), np.float32), 0, False, len(brain_embeds), {"map": fitted.kind, "penalty": penalty, **facts},
    )  # fmt: skip


def save_person(folder: Path, subject: str, person: PersonMap, model: Path) -> Path:
    """Write ``<subject>.<modalities>.<kind>.safetensors`` and ``.json``; return the latter.

    Parameters
    ----------
    folder : Path
        Made when missing; not inside a bundle, which refuses files that its manifest does not list.
    subject : str
        Letters, digits, ``.``, ``_`` and ``-``.
    person : PersonMap
    model : Path
        Folder of the `BrainModel` whose embeddings it maps; it is applied to no other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{_checked_name(subject)}.{person.modalities}.{person.kind}"
    arrays = {name: np.ascontiguousarray(getattr(person, name)) for name in ARRAYS}
    content = save(arrays)
    meta = {
        "schema_version": SCHEMA_VERSION,
        "subject": subject,
        "provenance": person.provenance,
        "model_sha256": file_sha256(model / WEIGHTS),
        "sha256": hashlib.sha256(content).hexdigest(),
        **{name: getattr(person, name) for name in FIELDS},
    }
    write_atomic(stem.with_name(stem.name + ".safetensors"), content)
    path = stem.with_name(stem.name + ".json")
    write_atomic(path, json.dumps(meta, indent=1).encode())
    return path


def load_person(path: Path, model: Path) -> PersonMap:
    """Read what `save_person` wrote.

    Raises
    ------
    ValueError
        If it is of another schema or model, or damaged.
    """
    meta = json.loads(path.read_text())
    version = meta.get("schema_version") if isinstance(meta, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path.name} has schema version {version}, expected {SCHEMA_VERSION}; calibrate again"
        )
    if meta["model_sha256"] != file_sha256(model / WEIGHTS):
        raise ValueError(f"{path.name} belongs to another model than {model}; calibrate the person for this one")
    tensors = path.with_suffix(".safetensors")
    if meta["sha256"] != file_sha256(tensors):
        raise ValueError(f"{tensors.name} does not match its sha256; calibrate the person again")
    arrays: dict[str, Any] = load_file(tensors)
    return PersonMap(**{name: meta[name] for name in FIELDS}, **{name: arrays[name] for name in ARRAYS})


def without_csls(person: PersonMap) -> PersonMap:
    """Give the same calibration with plain cosines, for what needs a scale: confidence, generation."""
    return replace(person, n_neighbours=0, window=person.window[:0])


def _checked_name(subject: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", subject):
        raise ValueError(
            f"{subject!r} cannot name a file, expected letters, digits, '.', '_' and '-'; give the person another name"
        )
    return subject


def _float(array: NDArray[Any]) -> Float:
    return np.asarray(array, dtype=np.float32)
