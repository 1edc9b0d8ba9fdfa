"""Image embeddings to pictures: one class per diffusers pipeline that can start from a precomputed CLIP vector.

Sampling is diffusers' own; what is added is a seed per picture, cancelling, and loading without the text and image
towers, which a precomputed embedding does not need. Conditioning, seeds and noise belong to a row, so a neighbour in
the batch cannot change a picture. Batched matrix products still differ in the last bits from single ones: the same
seed gives the same bytes in the same batch, and at most one 8-bit level of difference in another batch, unless the
decoder was settled (`generation.steady_batches`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from alignment.runtime import Runtime
from generation.empty_prompt import EMPTY_PROMPT_FILE, encode_empty_prompt, load_empty_prompt
from generation.gallery import N_NEIGHBOURS
from generation.sampling import (
    DiffusersPipeline,
    OnStep,
    PassThroughEncoder,
    PreviewRequest,
    SamplingRequest,
    in_batches,
    load_pipeline,
    match_statistics,
    rounded,
)
from generation.steady_batches import FixedRows, settle_layers, steady_from

__all__ = [
    "AnyDecoderConfig",
    "GeneratorConfig",
    "ImageDecoder",
    "ImageDecoderConfig",
    "ImageVariationConfig",
    "ImageVariationDecoder",
    "RetrievalConfig",
    "StableUnCLIPConfig",
    "StableUnCLIPDecoder",
    "build_decoder",
    "match_statistics",
]


class StableUnCLIPConfig(BaseModel):
    """Settings of the Stable unCLIP backend.

    ``match`` says how embeddings are rescaled to the statistics stored in the decoder, see ``match_statistics``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["stable_unclip"] = "stable_unclip"
    num_inference_steps: int = Field(default=25, ge=1)
    guidance_scale: float = Field(default=3.0, ge=1.0)
    noise_level: int = Field(default=0, ge=0)
    match: Literal["none", "length", "spread"] = "length"
    max_batch: int = Field(default=16, ge=1)
    revision: str = "main"


class ImageVariationConfig(BaseModel):
    """Settings of the Stable Diffusion image variation backend.

    The pipeline stores no statistics of its embeddings, so ``match="length"`` needs their root-mean-square length.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["image_variation"] = "image_variation"
    num_inference_steps: int = Field(default=25, ge=1)
    guidance_scale: float = Field(default=3.0, ge=1.0)
    match: Literal["none", "length"] = "none"
    embed_length: float = Field(default=0.0, ge=0.0)
    max_batch: int = Field(default=16, ge=1)
    revision: str = "main"

    @model_validator(mode="after")
    def _length_goes_with_match(self) -> Self:
        if (self.match == "length") != (self.embed_length > 0.0):
            raise ValueError(
                f"image_variation got match={self.match!r} with embed_length={self.embed_length}, expected a positive "
                "length exactly when match is 'length'; set both or neither"
            )
        return self


class RetrievalConfig(BaseModel):
    """No pictures are made: the bundle answers with pictures of its gallery, see ``ReconstructionPipeline.retrieve``.

    ``shows`` is "nearest" (to the embedding, best first) or "category" (examples of the category that was decoded);
    ``max_images`` are the pictures that there are for every epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["retrieval"] = "retrieval"
    shows: Literal["nearest", "category"] = "nearest"
    max_images: int = Field(default=N_NEIGHBOURS, ge=1, le=N_NEIGHBOURS)


GeneratorConfig = StableUnCLIPConfig | ImageVariationConfig
AnyDecoderConfig = StableUnCLIPConfig | ImageVariationConfig | RetrievalConfig
ImageDecoderConfig = Annotated[AnyDecoderConfig, Field(discriminator="name")]


class ImageDecoder(Protocol):
    """Turns image embeddings into pictures."""

    embed_dim: int
    image_size: int

    def generate(
        self,
        image_embeds: np.ndarray,
        *,
        seeds: Sequence[int],
        num_inference_steps: int,
        guidance_scale: float,
        noise_level: int = 0,
        on_step: OnStep | None = None,
        previews: PreviewRequest | None = None,
    ) -> np.ndarray:
        """Generate one picture per row.

        Parameters
        ----------
        image_embeds : ndarray, (n, embed_dim), float32
            CLIP image embeddings on their raw scale, that is not normalised to length one.
        seeds : sequence of int, (n,)
            One seed per picture; all its noise is drawn on the CPU from it.
        num_inference_steps : int
            Sampler steps.
        guidance_scale : float
            Classifier-free guidance; 1 runs the conditional branch only.
        noise_level : int
            Steps of noise added to the embeddings. Level 0 still draws noise and adds a trace of it.
        on_step : callable
            Called after every step with the steps done and the steps in all. Raising from it cancels.
        previews : PreviewRequest, optional
            Which rows are shown while they are made; showing them changes no picture.

        Returns
        -------
        ndarray, (n, image_size, image_size, 3), uint8

        Raises
        ------
        ValueError
            If shapes or counts do not fit or a value is not finite.
        """
        ...

    def settle(self, max_batch: int, guidance_scales: Sequence[float]) -> tuple[int, ...]:
        """Make pictures independent of how many are made together, as far as layers can; call it once.

        Parameters
        ----------
        max_batch : int
            Most pictures that one call of `generate` will make.
        guidance_scales : sequence of float
            Layers are settled for the first.

        Returns
        -------
        tuple of int
            For each guidance, the number of pictures that smaller batches must be filled up to for pictures to be
            byte-equal in all batches up to ``max_batch``; 1 where nothing needs to be filled.
        """
        ...


def build_decoder(config: GeneratorConfig, source: str | Path, runtime: Runtime) -> ImageDecoder:
    """Load the decoder that ``config`` names from a diffusers folder or a hub id (safetensors only)."""
    if isinstance(config, StableUnCLIPConfig):
        return StableUnCLIPDecoder.load(config, source, runtime)
    return ImageVariationDecoder.load(config, source, runtime)


class StableUnCLIPDecoder:
    """Stable unCLIP (arXiv:2204.06125): the embedding, noised and with its noise level, is the UNet's class label."""

    def __init__(
        self, pipeline: DiffusersPipeline, prompt_embeds: torch.Tensor, config: StableUnCLIPConfig, runtime: Runtime
    ) -> None:
        self.embed_dim = int(pipeline.image_normalizer.config.embedding_dim)
        self.image_size = _image_size(pipeline)
        expected = pipeline.unet.config.projection_class_embeddings_input_dim
        if expected != 2 * self.embed_dim:
            raise ValueError(
                f"the UNet takes class labels of width {expected}, expected {2 * self.embed_dim}, twice the "
                f"normaliser's width {self.embed_dim}; save the normaliser that this UNet was trained with"
            )
        self.config = config
        self._mean = pipeline.image_normalizer.mean.detach().float().numpy()[0]
        self._std = pipeline.image_normalizer.std.detach().float().numpy()[0]
        pipeline.register_modules(image_encoder=PassThroughEncoder())
        self._pipeline = pipeline.to(runtime.device)
        # its own makes its parameters anew at every call; while another model loads, diffusers lets no thread make any
        normalizer = pipeline.image_normalizer
        normalizer.to = lambda *unused: normalizer
        self._prompt_embeds = prompt_embeds.to(runtime.device)
        self._runtime = runtime
        self._lock = threading.Lock()

    @classmethod
    def load(cls, config: StableUnCLIPConfig, source: str | Path, runtime: Runtime) -> StableUnCLIPDecoder:
        """Load a Stable unCLIP folder or hub id; the text encoder is read only if no empty prompt is stored."""
        from diffusers import StableUnCLIPImg2ImgPipeline

        stored = (Path(source) / EMPTY_PROMPT_FILE).is_file()
        unused: dict[str, Any] = {"image_encoder": None, "feature_extractor": None}
        if stored:
            unused |= {"text_encoder": None, "tokenizer": None}
        pipeline = load_pipeline(StableUnCLIPImg2ImgPipeline, source, config.revision, unused)
        prompt_embeds = load_empty_prompt(Path(source)) if stored else encode_empty_prompt(pipeline, source)
        pipeline.register_modules(text_encoder=None, tokenizer=None)
        return cls(pipeline, prompt_embeds, config, runtime)

    def generate(
        self,
        image_embeds: np.ndarray,
        *,
        seeds: Sequence[int],
        num_inference_steps: int,
        guidance_scale: float,
        noise_level: int = 0,
        on_step: OnStep | None = None,
        previews: PreviewRequest | None = None,
    ) -> np.ndarray:
        """Generate one picture per row; see ``ImageDecoder.generate``."""
        request = SamplingRequest(seeds, num_inference_steps, guidance_scale, on_step, previews)
        return rounded(self._pixels(image_embeds, request, noise_level))

    def settle(self, max_batch: int, guidance_scales: Sequence[float]) -> tuple[int, ...]:
        """Make pictures independent of how many are made together; see ``ImageDecoder.settle``."""
        return _settle(self, self._pipeline, max_batch, guidance_scales)

    def _pixels(self, image_embeds: np.ndarray, request: SamplingRequest, noise_level: int = 0) -> np.ndarray:
        request.check(image_embeds, self.embed_dim)
        levels = int(self._pipeline.image_noising_scheduler.config.num_train_timesteps)
        if not 0 <= noise_level < levels:
            raise ValueError(f"noise_level is {noise_level}, expected 0 to {levels - 1}; pick a level in this range")
        matched = match_statistics(image_embeds, self._mean, self._std, self.config.match)

        def sample(rows: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
            prompt_embeds = self._prompt_embeds.expand(len(rows), -1, -1)
            pixels: np.ndarray = self._pipeline(
                image_embeds=torch.from_numpy(rows).to(self._prompt_embeds.device),
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=prompt_embeds,
                noise_level=noise_level,
                **settings,
            ).images
            return pixels

        with self._lock, self._runtime.autocast():  # the scheduler keeps the state of one sampling run
            return in_batches(sample, matched, request, self.config.max_batch, self._pipeline)


class ImageVariationDecoder:
    """Stable Diffusion image variation: the embedding is the single token that the UNet attends to.

    The pipeline accepts pictures only, so the embedding passes as a one-pixel picture through an identity encoder.
    """

    def __init__(self, pipeline: DiffusersPipeline, config: ImageVariationConfig, runtime: Runtime) -> None:
        self.embed_dim = int(pipeline.unet.config.cross_attention_dim)
        self.image_size = _image_size(pipeline)
        self.config = config
        pipeline.register_modules(image_encoder=PassThroughEncoder())
        self._pipeline = pipeline.to(runtime.device)
        self._runtime = runtime
        self._lock = threading.Lock()

    @classmethod
    def load(cls, config: ImageVariationConfig, source: str | Path, runtime: Runtime) -> ImageVariationDecoder:
        """Load an image variation folder or hub id, without its safety checker: the towers are not read."""
        from diffusers import StableDiffusionImageVariationPipeline

        unused: dict[str, Any] = {"image_encoder": None, "feature_extractor": None, "safety_checker": None}
        unused["requires_safety_checker"] = False
        pipeline = load_pipeline(StableDiffusionImageVariationPipeline, source, config.revision, unused)
        return cls(pipeline, config, runtime)

    def generate(
        self,
        image_embeds: np.ndarray,
        *,
        seeds: Sequence[int],
        num_inference_steps: int,
        guidance_scale: float,
        noise_level: int = 0,
        on_step: OnStep | None = None,
        previews: PreviewRequest | None = None,
    ) -> np.ndarray:
        """Generate one picture per row; see ``ImageDecoder.generate``. There is no noise level but 0."""
        if noise_level != 0:
            raise ValueError(
                f"noise_level is {noise_level}, expected 0 because image variation does not noise its embedding; "
                "leave it out or use the stable_unclip decoder"
            )
        request = SamplingRequest(seeds, num_inference_steps, guidance_scale, on_step, previews)
        return rounded(self._pixels(image_embeds, request))

    def settle(self, max_batch: int, guidance_scales: Sequence[float]) -> tuple[int, ...]:
        """Make pictures independent of how many are made together; see ``ImageDecoder.settle``."""
        return _settle(self, self._pipeline, max_batch, guidance_scales)

    def _pixels(self, image_embeds: np.ndarray, request: SamplingRequest) -> np.ndarray:
        request.check(image_embeds, self.embed_dim)
        zeros = np.zeros(self.embed_dim, dtype=np.float32)
        std = np.full_like(zeros, self.config.embed_length / np.sqrt(self.embed_dim))
        matched = match_statistics(image_embeds, zeros, std, self.config.match)

        def sample(rows: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
            # (n, d) -> (n, d, 1, 1): the pipeline takes pictures with four axes
            pixels: np.ndarray = self._pipeline(image=torch.from_numpy(rows)[:, :, None, None], **settings).images
            return pixels

        with self._lock, self._runtime.autocast():  # the scheduler keeps the state of one sampling run
            return in_batches(sample, matched, request, self.config.max_batch, self._pipeline)


def _settle(
    decoder: StableUnCLIPDecoder | ImageVariationDecoder,
    pipeline: DiffusersPipeline,
    max_batch: int,
    guidance_scales: Sequence[float],
) -> tuple[int, ...]:
    rows = np.random.default_rng(0).normal(size=(max_batch, decoder.embed_dim)).astype(np.float32)

    def pixels(n: int, guidance_scale: float) -> np.ndarray:
        return decoder._pixels(rows[:n], SamplingRequest(range(n), 2, guidance_scale))

    usual = partial(pixels, guidance_scale=guidance_scales[0])
    settle_layers((pipeline.unet, pipeline.vae), usual, max_batch)
    if (least := steady_from(usual, max_batch)) > 1:
        # in which order a single row lies in memory cannot be told, so layers by themselves do not show it
        FixedRows(pipeline.vae.decoder, least)
    return tuple(steady_from(partial(pixels, guidance_scale=scale), max_batch) for scale in guidance_scales)


def _image_size(pipeline: DiffusersPipeline) -> int:
    return int(pipeline.unet.config.sample_size) * int(pipeline.vae_scale_factor)
