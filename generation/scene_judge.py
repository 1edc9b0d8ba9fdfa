"""An independent classifier of scenes: says what a generated picture shows, factor by factor.

It is trained on rendered scenes only, shares no weights with the CLIP, the VAE or the generator, and takes no part in
their training. Its verdict on validation scenes was read when guidance and fine-tuning of the demo were chosen.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignment.fit import BatchAt, FitConfig, fit
from alignment.runtime import Runtime
from generation.scenes import BACKGROUNDS, COLOURS, IMAGE_SIZE, SHAPES, TEXTURES, SceneFactors

Pictures = npt.NDArray[np.uint8]
FACTOR_SIZES = {"background": len(BACKGROUNDS), "colour": len(COLOURS), "shape": len(SHAPES), "texture": len(TEXTURES)}


@dataclass(frozen=True)
class JudgeReport:
    """Agreement of pictures with the factors they should show.

    ``accuracy`` and ``chance`` per factor (chance: always naming the most frequent value); ``position_error`` is the
    median distance of the main object's centre in pixels of a 64-pixel picture.
    """

    n: int
    accuracy: dict[str, float]
    chance: dict[str, float]
    position_error: float


class SceneJudge(nn.Module):
    """Five convolutions, pooled over space, with one head per factor and one for the centre of the main object."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 6 * width)
        blocks: list[nn.Module] = []
        for i, (n_in, n_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            kernel, padding = (5, 2) if i == 0 else (3, 1)
            blocks += [nn.Conv2d(n_in, n_out, kernel, 2, padding), nn.BatchNorm2d(n_out), nn.GELU()]
        self.features = nn.Sequential(*blocks)  # (b, 3, 64, 64) -> (b, 6 w, 4, 4)
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(6 * width * 16, 128), nn.GELU(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict({name: nn.Linear(128, size) for name, size in FACTOR_SIZES.items()})
        self.centre = nn.Linear(128, 2)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        hidden = self.trunk(self.features(pixels))
        return {name: head(hidden) for name, head in self.heads.items()} | {"centre": self.centre(hidden)}

    @torch.no_grad()
    def judge(self, images: Pictures, factors: SceneFactors) -> JudgeReport:
        """Compare pictures, uint8 (n, 64, 64, 3), with the factors of the scenes they should show."""
        if images.shape != (len(factors), IMAGE_SIZE, IMAGE_SIZE, 3):
            raise ValueError(f"images have shape {images.shape}, expected ({len(factors)}, 64, 64, 3): one per scene")
        self.eval()
        parts = [self(judge_pixels(images[i : i + 100])) for i in range(0, len(images), 100)]
        said = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        true = factor_labels(factors)
        accuracy = {n: float((said[n].argmax(1) == true[n]).float().mean()) for n in FACTOR_SIZES}
        chance = {n: float(np.bincount(true[n].numpy()).max() / len(factors)) for n in FACTOR_SIZES}
        distance = (said["centre"] - true["centre"]).norm(dim=1) * IMAGE_SIZE
        return JudgeReport(len(factors), accuracy, chance, float(distance.median()))

    def save(self, path: Path) -> None:
        """Write the weights as safetensors."""
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: Path) -> "SceneJudge":
        """Read weights that `save` wrote."""
        judge = cls()
        judge.load_state_dict(load_file(path))
        return judge.eval()


def judge_pixels(images: Pictures) -> Tensor:
    """Turn (n, h, w, 3) uint8 into (n, 3, h, w) float32 in [-1, 1]."""
    # (n, h, w, c) -> (n, c, h, w)
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def factor_labels(factors: SceneFactors) -> dict[str, Tensor]:
    """Give the target of every head; the centre is in units of the picture's size."""
    labels = {name: torch.from_numpy(getattr(factors, name)) for name in FACTOR_SIZES}
    return labels | {"centre": torch.from_numpy(np.stack([factors.x, factors.y], axis=1) / IMAGE_SIZE)}


def train_judge(batch_at: BatchAt, fit_config: FitConfig, runtime: Runtime, run_dir: Path) -> SceneJudge:
    """Train a judge; ``batch_at(step, rank, world) -> (uint8 images, SceneFactors)``."""
    torch.manual_seed(runtime.seed)

    def labelled_at(step: int, rank: int, world: int) -> tuple[Tensor, dict[str, Tensor]]:
        images, factors = batch_at(step, rank, world)
        generator = runtime.generator(step, rank)
        pixels = judge_pixels(images)
        # generated pictures are a little soft and noisy: let half of the training pictures be so too
        soft = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        mix = torch.rand(len(pixels), 1, 1, 1, generator=generator) * (step % 2)
        noise = torch.randn(pixels.shape, generator=generator) * 0.05 * mix
        return pixels * (1 - mix) + soft * mix + noise, factor_labels(factors)

    def loss_fn(module: nn.Module, batch: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
        said = module(batch[0])
        loss = 20 * F.smooth_l1_loss(said["centre"], batch[1]["centre"], beta=0.05)
        for name in FACTOR_SIZES:
            loss = loss + F.cross_entropy(said[name], batch[1][name])
        return loss

    judge = SceneJudge()
    result = fit(judge, loss_fn, labelled_at, fit_config, runtime, run_dir)
    judge.load_state_dict(result.weights)
    return judge.eval()
