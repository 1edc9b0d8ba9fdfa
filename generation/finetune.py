"""Fine-tune a Stable unCLIP on what it will be served: brain-predicted embeddings next to true ones.

A generator that only ever saw true CLIP vectors draws confident nonsense from imperfect ones. Predictions come from
fresh recordings of training pictures, in all combinations of modalities, so test pictures take no part. They are shown
at a noise level of their own, which the decoder is then served with: a prediction looks like a true embedding of
another picture, and without that mark the generator learns to doubt true ones.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from alignment.brain_model import BrainModel
from alignment.fit import FitConfig, FitResult
from alignment.runtime import Runtime
from encoders.epochs import SignalEpochs
from generation.empty_prompt import save_empty_prompt
from generation.sampling import match_statistics
from generation.unclip_training import DenoiserConfig, UnclipParts, save_unclip, train_unet

Floats = npt.NDArray[np.float32]
_CHUNK = 250


class FinetuneConfig(BaseModel):
    """How much is learned from predictions.

    Rows of a batch are predictions with probability ``predicted_share`` and true embeddings otherwise. The noise that
    ``predicted_level`` adds (0.09 standard deviations at 50) is small beside the error of a prediction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_predicted: int = Field(default=6000, gt=0)
    predicted_share: float = Field(default=0.25, ge=0, le=1)
    predicted_level: int = Field(default=50, ge=0, lt=1000)
    batch: int = Field(default=64, gt=0)
    denoiser: DenoiserConfig = DenoiserConfig()
    fit: FitConfig = FitConfig(
        max_steps=2500, lr=3e-4, weight_decay=0.01, schedule="cosine", warmup_steps=100, ema_decay=0.998,
        checkpoint_every=250,
    )  # fmt: skip


class Recorder(Protocol):
    """Plays pictures to simulated people."""

    @property
    def combinations(self) -> list[tuple[str, ...]]: ...

    def record(self, image_embeds: Floats, modalities: tuple[str, ...], *, seed: int) -> list[SignalEpochs]: ...


def predict_embeds(model: BrainModel, recorder: Recorder, image_embeds: Floats, folder: Path) -> Floats:
    """Predict the embeddings of pictures from recordings of them, combination by combination in turn.

    Parameters
    ----------
    image_embeds : ndarray, (n, d), float32
        True raw embeddings of training pictures.
    folder : Path
        Receives ``predicted.safetensors``; read back if it is there.

    Returns
    -------
    ndarray, (n, d), float32
        Raw scale; row i belongs to picture i.
    """
    path = folder / "predicted.safetensors"
    if path.exists():
        return load_file(path)["image_embeds"]
    starts = range(0, len(image_embeds), _CHUNK)
    parts = []
    for turn, start in enumerate(tqdm(starts, desc="predictions", mininterval=1.0)):
        names = recorder.combinations[turn % len(recorder.combinations)]
        parts.append(model.embed(recorder.record(image_embeds[start : start + _CHUNK], names, seed=turn)).image_embeds)
    predicted = np.concatenate(parts)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"image_embeds": predicted}, path)
    return predicted


def finetune_unclip(
    parts: UnclipParts,
    latents: Tensor,
    image_embeds: Tensor,
    predicted: Floats,
    config: FinetuneConfig,
    runtime: Runtime,
    run_dir: Path,
) -> FitResult:
    """Train on and write ``run_dir/unclip``.

    Parameters
    ----------
    latents : Tensor, (n, c, 8, 8), float32
        Scaled VAE latents of training pictures.
    image_embeds : Tensor, (n, d), float32
        Their true raw embeddings.
    predicted : ndarray, (m, d), float32
        Predictions for the first ``m`` of them, rescaled here as the decoder will rescale them when it serves.
    """
    mean, std = (value.detach().numpy()[0] for value in (parts.normalizer.mean, parts.normalizer.std))
    served = torch.from_numpy(match_statistics(predicted, mean, std, "length"))
    true = torch.from_numpy(match_statistics(image_embeds.numpy(), mean, std, "length"))

    def batch_at(step: int, rank: int, world: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = np.random.default_rng([5, step, rank])
        n = config.batch // world
        n_served = int(generator.binomial(n, config.predicted_share))
        first = torch.from_numpy(generator.integers(0, len(served), n_served))
        other = torch.from_numpy(generator.integers(0, len(true), n - n_served))
        levels = torch.cat([torch.full_like(first, config.predicted_level), torch.zeros_like(other)])
        return torch.cat([latents[first], latents[other]]), torch.cat([served[first], true[other]]), levels

    result = train_unet(
        parts.unet, batch_at, parts.normalizer, parts.empty_prompt, config.denoiser, config.fit, runtime, run_dir
    )
    folder = run_dir / "unclip"
    save_unclip(folder, parts.unet, parts.vae, parts.normalizer, parts.towers)
    save_empty_prompt(folder, parts.empty_prompt)
    return result
