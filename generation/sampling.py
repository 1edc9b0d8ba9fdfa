"""What every diffusers backend shares: rescaling embeddings, checking a request, loading a folder, running batches.

Pictures are sampled by diffusers' own pipelines; these functions only prepare their arguments, so that a new backend
states nothing but how its pipeline takes an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

DiffusersPipeline = Any  # the lazy exports of diffusers hide its classes from a type checker
OnStep = Callable[[int, int], None]
_MODEL_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")


@dataclass(frozen=True)
class PreviewRequest:
    """Which rows are shown while they are denoised, and to whom.

    ``on_preview(row, step, image)`` is called after every quarter of the steps but the last, with a (h, w, 3) uint8
    picture of what the latents of the row hold by then.
    """

    rows: tuple[int, ...]
    on_preview: Callable[[int, int, np.ndarray], None]


@dataclass(frozen=True)
class SamplingRequest:
    """How a batch of pictures is sampled: one seed per picture, the rest for all of them."""

    seeds: Sequence[int]
    num_inference_steps: int
    guidance_scale: float
    on_step: OnStep | None = None
    previews: PreviewRequest | None = None

    def check(self, image_embeds: np.ndarray, embed_dim: int) -> None:
        """Refuse embeddings, seeds or settings that do not fit together, with ValueError."""
        shape = image_embeds.shape
        if image_embeds.ndim != 2 or shape[1] != embed_dim or shape[0] == 0:
            raise ValueError(
                f"image_embeds have shape {shape}, expected (n, {embed_dim}) with n >= 1; "
                f"use embeddings of the CLIP model that this decoder was trained with (width {embed_dim})"
            )
        if not np.isfinite(image_embeds).all():
            row = int(np.flatnonzero(~np.isfinite(image_embeds).all(axis=1))[0])
            raise ValueError(
                f"image embedding {row} of {shape[0]} holds NaN or infinity, expected finite values; drop this row"
            )
        if len(self.seeds) != shape[0]:
            raise ValueError(
                f"got {len(self.seeds)} seeds for {shape[0]} image_embeds, expected one seed per row; pass {shape[0]}"
            )
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {self.num_inference_steps}, expected at least 1; raise it")
        if not self.guidance_scale >= 1.0:
            raise ValueError(
                f"guidance_scale is {self.guidance_scale}, expected at least 1; 1 switches guidance off"
            )


def match_statistics(image_embeds: np.ndarray, mean: np.ndarray, std: np.ndarray, how: str) -> np.ndarray:
    """Rescale embeddings to the statistics of the embeddings that a decoder was trained on.

    Works row by row, so the result of a row does not depend on its batch.

    Parameters
    ----------
    image_embeds : ndarray, (n, d), float32
        Predicted embeddings.
    mean, std : ndarray, (d,), float32
        Statistics per dimension of the decoder's training embeddings.
    how : {"none", "length", "spread"}
        "length" sets every row to the root-mean-square length ``sqrt(sum(mean^2 + std^2))``: for predictions whose
        direction alone was trained. "spread" whitens, sets every row to length ``sqrt(d)`` and undoes the whitening:
        for regressions, which shrink towards the mean.

    Returns
    -------
    ndarray, (n, d), float32

    Raises
    ------
    ValueError
        If ``how`` is unknown, or a row has no direction.
    """
    if how not in ("none", "length", "spread"):
        raise ValueError(f"match_statistics got how={how!r}, expected 'none', 'length' or 'spread'; pick one of these")
    if how == "none":
        return image_embeds.astype(np.float32)
    whitened = how == "spread"
    rows = (image_embeds - mean) / std if whitened else image_embeds
    length = np.sqrt(mean.size) if whitened else np.sqrt(np.sum(mean**2 + std**2))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.all(norms > 0):
        row = int(np.flatnonzero(norms[:, 0] <= 0)[0])
        origin = "the mean embedding" if whitened else "zero"
        raise ValueError(
            f"image embedding {row} equals {origin}, expected a direction to rescale; "
            "leave the row out or build the decoder with match='none'"
        )
    rows = rows * (length / norms)
    return np.asarray(rows * std + mean if whitened else rows, dtype=np.float32)


class PassThroughEncoder(torch.nn.Module):
    """Stand in for a pipeline's image tower: embeddings given as pictures of one pixel come back unchanged."""

    def __init__(self) -> None:
        super().__init__()
        # pipelines read dtype and device of the tower from its parameters
        self.marker = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype that embeddings are cast to."""
        return self.marker.dtype

    @property
    def device(self) -> torch.device:
        """Return the device that embeddings are moved to."""
        return self.marker.device

    def forward(self, image: torch.Tensor) -> SimpleNamespace:
        """Return ``image`` of shape (n, d, 1, 1) as ``image_embeds`` (n, d)."""
        return SimpleNamespace(image_embeds=image.flatten(1))


def load_pipeline(
    kind: type[DiffusersPipeline], source: str | Path, revision: str, replaced: dict[str, Any]
) -> DiffusersPipeline:
    """Open a diffusers folder or hub id as ``kind``, from safetensors and without running code that it brings.

    ``replaced`` names the parts that are not read, with their stand-ins.
    """
    if isinstance(source, Path) and not (source / "model_index.json").is_file():
        raise ValueError(
            f"no model_index.json in {source}, expected a folder that diffusers' save_pretrained wrote; check the path"
        )
    index = kind.load_config(str(source), revision=revision)
    found = index.get("_class_name")
    if found != kind.__name__:
        raise ValueError(
            f"{source} holds a {found}, expected a {kind.__name__}; choose the decoder config that fits, "
            "'stable_unclip' or 'image_variation'"
        )
    parts = {name: value[0] for name, value in index.items() if isinstance(value, list) and name[0] != "_"}
    foreign = {name: library for name, library in parts.items() if library not in (*_MODEL_LIBRARIES, None)}
    if foreign:
        raise ValueError(
            f"model_index.json of {source} takes parts from {foreign}, expected only {list(_MODEL_LIBRARIES)}; "
            "custom code is not run, save the pipeline with library classes"
        )
    absent = {name: None for name, library in parts.items() if library is None}  # diffusers wants these said again
    with _silenced():
        pipeline = kind.from_pretrained(str(source), revision=revision, use_safetensors=True, **absent | replaced)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep diffusers from drawing its own progress bars inside ours."""
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _show(
    pipeline: DiffusersPipeline, request: SamplingRequest, latents: torch.Tensor, step: int, start: int
) -> None:
    """Hand out previews of those rows of a batch that somebody wants to see, at the steps at which they are due."""
    steps = request.num_inference_steps
    if request.previews is None or step >= steps or step % max(1, steps // 4):
        return
    for row in request.previews.rows:
        if start <= row < start + len(latents):
            scaled = latents[row - start : row - start + 1] / pipeline.vae.config.scaling_factor
            decoded = pipeline.vae.decode(scaled, return_dict=False)[0]
            pixels = pipeline.image_processor.postprocess(decoded, output_type="np")[0]
            request.previews.on_preview(row, step, rounded(pixels))


def rounded(pixels: np.ndarray) -> np.ndarray:
    """Turn float pixels in [0, 1] into uint8."""
    return (pixels * 255).round().astype(np.uint8)


def in_batches(
    sample: Callable[[np.ndarray, dict[str, Any]], np.ndarray],
    image_embeds: np.ndarray,
    request: SamplingRequest,
    max_batch: int,
    pipeline: DiffusersPipeline,
) -> np.ndarray:
    """Sample rows in batches of at most ``max_batch``.

    Parameters
    ----------
    sample : callable
        Takes rows of ``image_embeds`` and the keyword arguments for a diffusers pipeline; returns float pixels
        (b, h, w, 3) in [0, 1].
    image_embeds : ndarray, (n, d), float32
        One row per picture.
    request : SamplingRequest
        Seeds and settings; its ``on_step`` counts the steps of all batches.
    max_batch : int
        Upper bound of rows per call.
    pipeline : DiffusersPipeline
        Decodes latents to previews.

    Returns
    -------
    ndarray, (n, h, w, 3), float32, in [0, 1]
    """
    n = len(image_embeds)
    steps = request.num_inference_steps
    total = steps * ceil(n / max_batch)
    images = []
    for start in range(0, n, max_batch):
        done = steps * (start // max_batch)

        def callback(step: int, timestep: Any, latents: torch.Tensor, done: int = done, start: int = start) -> None:
            if request.on_step is not None:
                # multi-step schedulers may evaluate the network more often than there are steps
                request.on_step(done + min(step + 1, steps), total)
            _show(pipeline, request, latents, step + 1, start)

        rows = slice(start, start + max_batch)
        settings = {
            "num_inference_steps": steps,
            "guidance_scale": request.guidance_scale,
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds[rows]],
            "output_type": "np",
            "callback": callback,
        }
        images.append(sample(image_embeds[rows], settings))
    return np.concatenate(images)
