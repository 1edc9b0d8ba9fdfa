"""`CategoryModel`: from evoked responses to the probability of each category, as a pair of files that serving loads.

It takes the place of a `BrainModel` in a bundle. Its embeddings are the probabilities of the k categories, a picture's
embedding is the one-hot vector of its category, and so their similarity is the probability of the picture's category.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from alignment.brain_model import BrainEmbedding, BrainModel, InputReport
from alignment.recordings import by_modality
from alignment.runtime import Runtime
from encoders.baselines import RidgeDecoder
from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.erp_decoder import ErpDecoder, ErpDecoderConfig
from encoders.preprocess import PreprocessConfig, Preprocessor
from encoders.sensors import SensorLayout

WEIGHTS, META = "category.safetensors", "category.json"
SCHEMA_VERSION = 1
Float = NDArray[np.float32]
_ARRAYS = ("weights", "data_mean", "embed_mean")


class CategoryModel:
    """A decoder of categories with its preprocessing.

    Parameters
    ----------
    decoder : ErpDecoder
        Without xDAWN part; its ``temperature`` was fitted on people left out.
    preprocessor : Preprocessor
        Its ``window`` is what the decoder reads, in SI units; statistics are not used.
    modality : str
    n_averaged : int
        Presentations averaged in the training epochs.

    Raises
    ------
    ValueError
        If the decoder has an xDAWN part.
    """

    def __init__(self, decoder: ErpDecoder, preprocessor: Preprocessor, modality: str, n_averaged: int) -> None:
        if decoder.tangent is not None:
            raise ValueError(
                f"the decoder has {decoder.config.n_filters} xDAWN filters per class, expected 0: they are not kept in "
                "files; set n_filters to 0"
            )
        self.decoder, self.preprocessor, self.modality, self.n_averaged = decoder, preprocessor, modality, n_averaged

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(str(name) for name in self.decoder.classes)

    @property
    def embed_dim(self) -> int:
        return len(self.decoder.classes)

    @property
    def modalities(self) -> tuple[str, ...]:
        return (self.modality,)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Nobody: there are no weights of a person's own."""
        return ()

    @property
    def preprocess_configs(self) -> dict[str, PreprocessConfig]:
        return {self.modality: self.preprocessor.config}

    @property
    def preprocess_digests(self) -> dict[str, str]:
        return {self.modality: self.preprocessor.digest}

    def similarity(self, brain_embeds: Float, image_embeds: Float, modalities: Sequence[str] = ()) -> Float:
        """Give the probability (n, m) of each picture's category; ``image_embeds`` (m, k) is one-hot.

        ``modalities`` is what a `BrainModel` has to be told; there is one decoder here.
        """
        return np.asarray(brain_embeds @ image_embeds.T, dtype=np.float32)

    def embed(
        self, recordings: Sequence[SignalEpochs], *, subject: str | None = None, average: bool = False
    ) -> BrainEmbedding:
        """Turn recordings of one person into category probabilities.

        Parameters
        ----------
        recordings : sequence of SignalEpochs
        subject : str, optional
            Without effect on the answer: nobody has weights of their own. Refused by serving, which knows nobody.
        average : bool
            Average the epochs of each stimulus first.

        Returns
        -------
        BrainEmbedding
            ``image_embeds`` and ``brain_embeds`` are both the probabilities, (n, k), in the order of ``classes``.

        Raises
        ------
        EpochsMismatch
            If the recording does not fit, or holds one epoch where the decoder aligns by several.
        """
        parts, notes = by_modality(recordings, self.modalities)
        part = parts[self.modality].average_repetitions() if average else parts[self.modality]
        data, report = self.preprocessor.window(part)
        aligned = self.decoder.config.alignment not in ("none", "scale")
        if aligned and part.n_epochs < 2:
            raise EpochsMismatch(
                "the recording has 1 epoch, and this decoder brings people together by several epochs of each, of all "
                "categories about equally; send more epochs of the person, or use a bundle without alignment"
            )
        probabilities = self.decoder.probabilities(data, np.zeros(part.n_epochs)).astype(np.float32)
        warnings = [*notes, *report.warnings, *self._warnings(part, aligned)]
        return BrainEmbedding(
            image_embeds=probabilities,
            brain_embeds=probabilities,
            stimulus=part.stimulus,
            n_averaged=part.n_averaged,
            report=InputReport(self.modalities, "", report.interpolated, report.dropped, tuple(warnings)),
        )

    def _warnings(self, epochs: SignalEpochs, aligned: bool) -> list[str]:
        found = []
        if aligned:
            found.append(
                f"answers rest on all {epochs.n_epochs} epochs of the recording together, taken for one person's, with "
                "all categories about equally often"
            )
        fewest = min(epochs.n_averaged)
        if 4 * fewest <= self.n_averaged:
            found.append(
                f"epochs average {fewest} presentations or more, those that the decoder was trained and measured on "
                f"about {self.n_averaged}: nothing is known about its answers to so few"
            )
        return found

    def save(self, folder: Path) -> None:
        """Write ``category.safetensors`` and ``category.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        ridge = self.decoder.ridge
        save_file({name: np.ascontiguousarray(getattr(ridge, name)) for name in _ARRAYS}, folder / WEIGHTS)
        meta = {
            "schema_version": SCHEMA_VERSION,
            "classes": self.classes,
            "modality": self.modality,
            "n_averaged": self.n_averaged,
            "penalty": ridge.penalty,
            "spread": self.decoder.spreads[0],
            "temperature": self.decoder.temperature,
            "sfreq": self.decoder.sfreq,
            "tmin": self.decoder.tmin,
            "decoder": self.decoder.config.model_dump(mode="json"),
            "preprocess": self.preprocessor.state()[0],
        }
        (folder / META).write_text(json.dumps(meta, indent=1))

    @classmethod
    def load(cls, folder: Path) -> "CategoryModel":
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If the files are of another schema version.
        """
        meta: dict[str, Any] = json.loads((folder / META).read_text())
        if meta["schema_version"] != SCHEMA_VERSION:
            raise ValueError(
                f"{META} has schema version {meta['schema_version']}, expected {SCHEMA_VERSION}; build the bundle again"
            )
        arrays = load_file(folder / WEIGHTS)
        decoder = ErpDecoder(
            classes=np.array(meta["classes"]),
            ridge=RidgeDecoder(**{name: arrays[name] for name in _ARRAYS}, penalty=meta["penalty"]),
            tangent=None,
            spreads=(meta["spread"],),
            sfreq=meta["sfreq"],
            tmin=meta["tmin"],
            config=ErpDecoderConfig.model_validate(meta["decoder"]),
            temperature=meta["temperature"],
        )
        stored = meta["preprocess"]
        layout = SensorLayout.from_json(json.dumps(stored["layout"]))
        preprocessor = Preprocessor(PreprocessConfig.model_validate(stored["config"]), layout)
        return cls(decoder, preprocessor, meta["modality"], meta["n_averaged"])


def load_model(folder: Path, runtime: Runtime) -> BrainModel | CategoryModel:
    """Open the folder of either kind of model."""
    return CategoryModel.load(folder) if (folder / META).is_file() else BrainModel.load(folder, runtime)
