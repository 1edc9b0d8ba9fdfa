"""From recordings to pictures with one bundle: composition of brain model, gallery, null and image decoder.

Arguments and results are numpy arrays and dataclasses, so whoever calls this needs no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from alignment.brain_model import BrainEmbedding, BrainModel, InputReport
from alignment.category_model import CategoryModel, load_model
from alignment.person_map import PersonMap
from alignment.runtime import Runtime
from encoders.epochs import EpochsMismatch, SignalEpochs
from generation.bundle import Bundle, BundleError, CutWindow
from generation.calibrated_people import best_of, calibrated_answer
from generation.gallery import N_NEIGHBOURS, Gallery, Neighbour
from generation.image_decoder import (
    AnyDecoderConfig,
    ImageDecoderConfig,
    RetrievalConfig,
    StableUnCLIPConfig,
    build_decoder,
)
from generation.reconstruction import EmbeddingResult, Reconstruction
from generation.sampling import OnStep, PreviewRequest

__all__ = [
    "CutWindow",
    "EmbeddingResult",
    "InputReport",
    "Neighbour",
    "Reconstruction",
    "ReconstructionPipeline",
    "best_similarity",
    "decoder_config",
    "seed_for",
]


class ReconstructionPipeline:
    """A loaded bundle.

    Parameters
    ----------
    bundle : Bundle or path
        A path is opened, and so verified, first.
    runtime : Runtime, optional
        Device and precision; chosen by ``Runtime`` itself when left out.
    embedding_only, decoder_only : bool
        Load half, for two processes that share the work.

    Raises
    ------
    BundleError
        If the parts of the bundle do not fit together.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        runtime: Runtime | None = None,
        *,
        embedding_only: bool = False,
        decoder_only: bool = False,
    ) -> None:
        if embedding_only and decoder_only:
            raise ValueError("embedding_only and decoder_only are both set, expected one at most; leave one out")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        runtime = runtime or Runtime()
        self.decoder_config = decoder_config(self.bundle)
        if not decoder_only:
            self._brain = load_model(self.bundle.brain_folder, runtime)
            self._gallery = self.bundle.gallery()
            self._null = self.bundle.null()
            self._calibrations = self.bundle.calibrations()
            self._check_width("brain", self._brain.embed_dim)
            self._check_width("gallery", self._gallery.image_embeds.shape[1])
        self._has_brain, self._has_decoder = not decoder_only, not embedding_only and self.makes_pictures
        if self._has_decoder:
            assert not isinstance(self.decoder_config, RetrievalConfig)
            self._decoder = build_decoder(self.decoder_config, self.bundle.decoder_folder, runtime)
            self._check_width("decoder", self._decoder.embed_dim)

    @property
    def window(self) -> CutWindow:
        """How a reader should cut continuous recordings."""
        return self.bundle.manifest.window

    @property
    def makes_pictures(self) -> bool:
        """Whether the bundle has a generator; one without answers with pictures of its gallery."""
        return not isinstance(self.decoder_config, RetrievalConfig)

    @property
    def gallery(self) -> Gallery:
        """The pictures that embeddings are compared with."""
        self._need(self._has_brain, "gallery")
        return self._gallery

    def embed(
        self,
        recordings: Sequence[SignalEpochs],
        *,
        subject: str | None = None,
        average: bool = False,
        top_k: int = N_NEIGHBOURS,
        people: Sequence[PersonMap] = (),
    ) -> EmbeddingResult:
        """Read image embeddings out of recordings of the same stimuli.

        Parameters
        ----------
        recordings : sequence of SignalEpochs
            EEG, MEG, a recording with both kinds of channels, or one recording of each.
        subject : str, optional
            Whose brain; an unknown person is decoded with the mean person's layers, which the report says.
        average : bool
            Average the epochs of each stimulus first.
        top_k : int
            Neighbours per epoch.
        people : sequence of PersonMap
            Calibrations to this person; the one for the recordings' modalities is used, see ``EmbeddingResult.person``.

        Returns
        -------
        EmbeddingResult

        Raises
        ------
        EpochsMismatch
            If the recordings do not fit the model or each other.
        """
        self._need(self._has_brain, "embed")
        embedding = self._brain.embed(recordings, subject=subject, average=average)
        similarity = _similarity(self._brain, self._gallery, embedding)
        best, modalities = similarity.max(axis=1), embedding.report.modalities
        if isinstance(self._brain, CategoryModel):
            confidence, probability, floor = best, best.astype(np.float64), 1.0 / self._brain.embed_dim
        else:
            confidence, floor = self._null.percentile(best, modalities), self._null.floor(modalities)
            probability = np.full(len(best), np.nan)
            if self._calibrations is not None:
                probability = self._calibrations.chance_right(similarity, modalities, embedding.n_averaged)
        image_embeds, ranking = embedding.image_embeds, None
        person = best_of(people, modalities)
        if person is not None:
            if isinstance(self._brain, CategoryModel):
                raise EpochsMismatch("a bundle that decodes categories takes no calibration; leave the person out")
            answer = calibrated_answer(self._brain, person, embedding, self._gallery.image_embeds)
            image_embeds, similarity, ranking = answer.image_embeds, answer.cosines, answer.ranking
            probability = np.full(len(best), np.nan)
        return EmbeddingResult(
            image_embeds=image_embeds,
            confidence=confidence,
            probability=probability,
            noise_floor=floor,
            neighbours=self._gallery.neighbours(similarity, top_k, ranking),
            report=embedding.report,
            stimulus=embedding.stimulus,
            n_averaged=embedding.n_averaged,
            person=person,
        )

    def generate(
        self,
        image_embeds: np.ndarray,
        *,
        n_images: int = 1,
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        noise_level: int | None = None,
        on_step: OnStep | None = None,
    ) -> np.ndarray:
        """Generate pictures of embeddings.

        Parameters
        ----------
        image_embeds : ndarray, (n, d), float32
            Raw CLIP image embeddings.
        n_images : int
            Pictures per embedding, each with its own noise.
        seed : int
            Picture ``image`` of row ``epoch`` is sampled with ``seed_for(seed, epoch, image)``.
        num_inference_steps, guidance_scale, noise_level : optional
            The bundle's values when left out. Its noise level fits embeddings read from a brain; give true ones 0.
        on_step : callable
            Gets the steps done and the steps in all after every step. Raising from it cancels.

        Returns
        -------
        ndarray, (n, n_images, h, w, 3), uint8
        """
        if n_images < 1:
            raise ValueError(f"n_images is {n_images}, expected at least 1; ask for one picture or more")
        seeds = [seed_for(seed, epoch, image) for epoch in range(len(image_embeds)) for image in range(n_images)]
        images = self.decode(
            np.repeat(image_embeds, n_images, axis=0),
            seeds=seeds,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            noise_level=noise_level,
            on_step=on_step,
        )
        return images.reshape(len(image_embeds), n_images, *images.shape[1:])

    def decode(
        self,
        image_embeds: np.ndarray,
        *,
        seeds: Sequence[int],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        noise_level: int | None = None,
        on_step: OnStep | None = None,
        previews: PreviewRequest | None = None,
    ) -> np.ndarray:
        """Generate one picture per row and seed, (n, h, w, 3) uint8: what a batcher of several requests calls."""
        self._need(self._has_decoder, "decode")
        config = self.decoder_config
        assert not isinstance(config, RetrievalConfig)
        if noise_level is None:
            noise_level = config.noise_level if isinstance(config, StableUnCLIPConfig) else 0
        return self._decoder.generate(
            image_embeds,
            seeds=seeds,
            num_inference_steps=config.num_inference_steps if num_inference_steps is None else num_inference_steps,
            guidance_scale=config.guidance_scale if guidance_scale is None else guidance_scale,
            noise_level=noise_level,
            on_step=on_step,
            previews=previews,
        )

    def settle(self, max_batch: int) -> dict[bool, int]:
        """Make pictures independent of how many are decoded together; see ``ImageDecoder.settle``. Call it once.

        Returns
        -------
        dict of bool to int
            With guidance, and without: the number of rows that a smaller batch must be filled up to.
        """
        self._need(self._has_decoder, "settle")
        config = self.decoder_config
        assert not isinstance(config, RetrievalConfig)
        guided = max(config.guidance_scale, 1.5)
        scales = (guided, 1.0) if config.guidance_scale > 1.0 else (1.0, guided)
        sizes = self._decoder.settle(max_batch, scales)
        return {scale > 1.0: size for scale, size in zip(scales, sizes, strict=True)}

    def retrieve(self, embedding: EmbeddingResult, n_images: int = 1) -> np.ndarray:
        """Give the first neighbours of each epoch as pictures of a bundle without generator.

        Returns
        -------
        ndarray, (n, n_images, h, w, 3), uint8

        Raises
        ------
        ValueError
            If the bundle generates pictures, or has fewer for an epoch.
        """
        config = self.decoder_config
        if not isinstance(config, RetrievalConfig) or not 1 <= n_images <= config.max_images:
            allowed = f"1 to {config.max_images}" if isinstance(config, RetrievalConfig) else "generate to be called"
            raise ValueError(f"retrieve got n_images {n_images}, expected {allowed} with this bundle; change the call")
        rows = [[one.index for one in near[:n_images]] for near in embedding.neighbours]
        images: np.ndarray = self.gallery.thumbs[np.array(rows)]
        return images

    def __call__(
        self,
        recordings: Sequence[SignalEpochs],
        *,
        subject: str | None = None,
        average: bool = False,
        n_images: int = 1,
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        on_step: OnStep | None = None,
    ) -> Reconstruction:
        """Embed recordings and generate their pictures, or retrieve them; see ``embed``, ``generate``, ``retrieve``."""
        embedding = self.embed(recordings, subject=subject, average=average)
        if not self.makes_pictures:
            return Reconstruction(embedding, self.retrieve(embedding, n_images))
        images = self.generate(
            embedding.image_embeds,
            n_images=n_images,
            seed=seed,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            on_step=on_step,
        )
        return Reconstruction(embedding, images)

    def _check_width(self, part: str, width: int) -> None:
        expected = self.bundle.manifest.embed_dim
        if width != expected:
            raise BundleError(
                f"the {part} of bundle {self.bundle.folder} has embeddings of width {width}, expected {expected}; "
                "assemble the bundle from parts of one CLIP space"
            )

    @staticmethod
    def _need(loaded: bool, action: str) -> None:
        if not loaded:
            raise ValueError(
                f"{action} needs a part that was not loaded, expected a pipeline with it; load it without "
                "embedding_only and decoder_only, and for decode from a bundle with a generator"
            )


def seed_for(seed: int, epoch: int, image: int) -> int:
    """Derive the seed of one picture: the first 63 bits of SHA-256 of ``"seed:epoch:image"``.

    A hash instead of a sum keeps the pictures of neighbouring seeds, epochs and images unrelated, and is the same on
    every machine.
    """
    digest = hashlib.sha256(f"{seed}:{epoch}:{image}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def best_similarity(
    brain: BrainModel | CategoryModel, gallery: Gallery, recordings: Sequence[SignalEpochs]
) -> np.ndarray:
    """Compute each epoch's largest similarity to the gallery, (n,) float32, as confidence does.

    ``alignment.calibrate.build_null`` takes this with ``brain`` and ``gallery`` filled in.
    """
    best: np.ndarray = _similarity(brain, gallery, brain.embed(recordings)).max(axis=1)
    return best


def decoder_config(bundle: Bundle) -> AnyDecoderConfig:
    """Read the decoder's backend and default settings from the manifest."""
    adapter: TypeAdapter[AnyDecoderConfig] = TypeAdapter(ImageDecoderConfig)
    try:
        return adapter.validate_python(bundle.manifest.decoder)
    except ValidationError as error:
        raise BundleError(
            f"manifest.json of {bundle.folder} has a decoder config that this release does not know: {error}; "
            "use the phosphene release that wrote the bundle"
        ) from error


def _similarity(brain: BrainModel | CategoryModel, gallery: Gallery, embedding: BrainEmbedding) -> np.ndarray:
    return brain.similarity(embedding.brain_embeds, gallery.image_embeds, embedding.report.modalities)
