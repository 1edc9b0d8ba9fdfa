"""VAE latents as targets: what a picture looks like (layout, colour), for the low-level path of a decoder.

Sampling from the posterior would make targets random, so its mean is taken, times the VAE's ``scaling_factor`` as a
diffusion model expects it.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from alignment.clip_space import check_images, folder_digest
from alignment.runtime import Runtime
from generation.autoencoder import encode_latents, load_vae

Images = NDArray[np.uint8]
Float = NDArray[np.float32]


class LatentSpace:
    """Pictures to flattened latents; an `alignment.clip_space.ImageSpace`, so `compute_features` stores them.

    Parameters
    ----------
    folder : Path or str
        Of an ``AutoencoderKL`` that ``save_pretrained`` wrote: ``config.json`` and safetensors weights.
    side : int
        Pictures are resized to this many pixels squared (bicubic), a multiple of the VAE's reduction.
    runtime : Runtime, optional

    Raises
    ------
    ValueError
        If the folder lacks config or safetensors weights, or ``side`` is no multiple of the reduction.
    """

    def __init__(self, folder: Path | str, side: int, runtime: Runtime | None = None) -> None:
        folder = Path(folder)
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        if "config.json" not in found or not any(name.endswith(".safetensors") for name in found):
            raise ValueError(f"VAE folder {folder} holds {found}, expected config.json and *.safetensors; convert it")
        self.runtime, self.side = runtime or Runtime(), side
        vae: AutoencoderKL = load_vae(folder)
        reduction = 2 ** (len(vae.config.block_out_channels) - 1)
        if side < reduction or side % reduction:
            raise ValueError(f"side {side} must be a multiple of {reduction}, by which this VAE reduces pictures")
        self.runtime.prepare(vae.eval().requires_grad_(False))
        self.vae = vae
        self.shape = (int(vae.config.latent_channels), side // reduction, side // reduction)
        digest = folder_digest("diffusers", folder)
        self.digest = hashlib.sha256(f"{digest} side {side}".encode()).hexdigest()

    @property
    def embed_dim(self) -> int:
        return int(np.prod(self.shape))

    def encode_images(self, images: Images) -> Float:
        """Encode pictures (n, h, w, 3) uint8 to scaled posterior means, (n, c * h * w) float32."""
        check_images(images)
        if not len(images):
            return np.zeros((0, self.embed_dim), np.float32)
        latents = encode_latents(self.vae, self._resized(images), self.runtime)
        return latents.numpy().reshape(len(images), -1)

    def latents(self, rows: Float) -> Tensor:
        """Give rows (n, c * h * w) the shape that the VAE's decoder takes, (n, c, h, w) float32."""
        return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)).reshape(len(rows), *self.shape)

    def _resized(self, images: Images) -> Images:
        if images.shape[1:3] == (self.side, self.side):
            return images
        size = (self.side, self.side)
        return np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in images])
