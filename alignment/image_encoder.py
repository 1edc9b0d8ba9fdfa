"""A small transformers image encoder that imitates the image tower of a CLIP of ours.

A diffusers folder for Stable unCLIP holds a `CLIPVisionModelWithProjection`; the image tower of our CLIP is a ResNet,
for which transformers has no such class. The service feeds precomputed embeddings and never loads this copy: it is
there so that the folder opens, and runs on pictures, without anything of ours.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from alignment.clip_training import PIXEL_MEAN, PIXEL_STD, pixels
from alignment.fit import BatchAt, FitConfig, FitResult, fit
from alignment.runtime import Runtime

Pictures = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class ImageEncoderConfig(BaseModel):
    """Sizes of the vision transformer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(default=64, gt=0)
    patch_size: int = Field(default=8, gt=0)
    width: int = Field(default=64, gt=0)
    layers: int = Field(default=4, gt=0)


def image_processor(image_size: int) -> CLIPImageProcessor:
    """Give the preprocessing of our CLIP as transformers writes it into a folder."""
    return CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size},
        image_mean=list(PIXEL_MEAN), image_std=list(PIXEL_STD),
    )  # fmt: skip


def build_image_encoder(config: ImageEncoderConfig, embed_dim: int) -> CLIPVisionModelWithProjection:
    """Build an untrained encoder: (n, 3, h, w) float32 pixels to ``image_embeds`` (n, embed_dim)."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=config.width, intermediate_size=4 * config.width, projection_dim=embed_dim,
            num_hidden_layers=config.layers, num_attention_heads=max(config.width // 32, 1),
            image_size=config.image_size, patch_size=config.patch_size,
        )
    )  # fmt: skip


def load_image_encoder(folder: Path) -> CLIPVisionModelWithProjection:
    """Open a folder that ``save_pretrained`` wrote."""
    return CLIPVisionModelWithProjection.from_pretrained(folder, use_safetensors=True)


def embed_with_tower(
    tower: Path, processor: Path, images: Sequence[Pictures], runtime: Runtime
) -> npt.NDArray[np.float32]:
    """Embed pictures with an image tower as diffusers pipelines carry it.

    Parameters
    ----------
    tower, processor : Path
        Folders of a ``CLIPVisionModelWithProjection`` and of its image processor (the default one if it is missing).
    images : sequence of ndarray, (h, w, 3), uint8
        Of any sizes.
    runtime : Runtime

    Returns
    -------
    ndarray, (n, d), float32
    """
    model = load_image_encoder(tower)
    known = (processor / "preprocessor_config.json").is_file()
    size: Any = model.config.image_size
    prepare = CLIPImageProcessor.from_pretrained(processor) if known else image_processor(size)
    runtime.prepare(model.eval().requires_grad_(False))  # type: ignore[no-untyped-call]
    found = []
    for image in images:
        pixels = prepare([image], return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        with torch.no_grad():
            found.append(model(pixel_values=runtime.to_device(pixels)).image_embeds.float().cpu())
    return np.asarray(torch.cat(found).numpy(), dtype=np.float32)


def train_image_encoder(
    batch_at: BatchAt,
    config: ImageEncoderConfig,
    fit_config: FitConfig,
    runtime: Runtime,
    run_dir: Path,
    held_out: tuple[Pictures, Floats],
) -> tuple[CLIPVisionModelWithProjection, FitResult]:
    """Train by regression on the embeddings of the CLIP's own image tower.

    Parameters
    ----------
    batch_at : callable
        ``batch_at(step, rank, world) -> (uint8 (b, h, w, 3), embeddings (b, d) float32 raw)``.
    held_out : (images, embeddings)
        Validation pictures; the mean cosine with their embeddings, both less the mean embedding, is logged.

    Returns
    -------
    encoder : CLIPVisionModelWithProjection
        With averaged weights, in eval mode.
    result : FitResult
    """
    torch.manual_seed(runtime.seed)
    expected = torch.from_numpy(held_out[1])
    mean = expected.mean(dim=0)
    spread = float((expected - mean).std())
    encoder = build_image_encoder(config, expected.shape[1])

    def pixels_at(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        images, embeds = batch_at(step, rank, world)
        return pixels(images), torch.as_tensor(embeds)

    def loss_fn(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        answer = module(pixel_values=batch[0]).image_embeds.float()
        loss: Tensor = ((answer - batch[1]) / spread).square().mean()
        return loss

    def validate(module: nn.Module) -> dict[str, float]:
        answer = module(pixel_values=runtime.to_device(pixels(held_out[0]))).image_embeds.float().cpu()
        return {"cosine": float(torch.cosine_similarity(answer - mean, expected - mean).mean())}

    result = fit(encoder, loss_fn, pixels_at, fit_config, runtime, run_dir, validate)
    encoder.load_state_dict(result.weights)
    encoder.eval()  # type: ignore[no-untyped-call]
    return encoder, result
