"""Check of generated pictures with a Stable Diffusion safety checker, where an operator or a bundle brings weights.

The network compares a CLIP embedding of the picture with embeddings of what is not wanted. It was made for pictures
from text and misses things, and it also flags harmless pictures; it is a net, not a proof. Only safetensors are read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from alignment.runtime import Runtime

# Of CLIP's image processor, which the checker was trained behind.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class PictureSafety:
    """A loaded safety checker.

    Parameters
    ----------
    folder : path
        What ``StableDiffusionSafetyChecker.save_pretrained`` writes: ``config.json`` and ``model.safetensors``.
    runtime : Runtime, optional
        Device; chosen by ``Runtime`` itself when left out.

    Raises
    ------
    ValueError
        If the folder holds no such checker.
    """

    def __init__(self, folder: str | Path, runtime: Runtime | None = None) -> None:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        self._runtime = runtime or Runtime()
        try:
            model, info = StableDiffusionSafetyChecker.from_pretrained(
                str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{folder} holds no safety checker ({type(error).__name__}), expected config.json and "
                "model.safetensors of a StableDiffusionSafetyChecker; give such a folder"
            ) from None
        if info["missing_keys"]:
            raise ValueError(
                f"the safety checker in {folder} lacks {sorted(info['missing_keys'])[:3]}, expected all weights; "
                "take the whole file"
            )
        self._model = model.eval().requires_grad_(False).to(self._runtime.device)
        self._size = int(model.config.vision_config.image_size)

    @torch.no_grad()
    def flagged(self, images: np.ndarray) -> np.ndarray:
        """Tell which pictures should not be shown.

        Parameters
        ----------
        images : ndarray, (n, h, w, 3), uint8

        Returns
        -------
        ndarray, (n,), bool
        """
        inputs = self._runtime.to_device(torch.from_numpy(np.stack([self._input(image) for image in images])))
        # the second argument is where the checker blackens pictures itself, which is not used here
        _, found = self._model(inputs, np.zeros((len(images), 1)))
        return np.array(found, dtype=bool)

    def _input(self, image: np.ndarray) -> np.ndarray:
        """Resize the short side, crop the middle and normalise: (3, size, size) float32."""
        picture = Image.fromarray(image)
        scale = self._size / min(picture.size)
        width, height = (max(self._size, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self._size) // 2, (height - self._size) // 2
        picture = picture.crop((left, top, left + self._size, top + self._size))
        pixels = np.asarray(picture, dtype=np.float32) / 255.0
        normalised: np.ndarray = (pixels - np.array(_MEAN, dtype=np.float32)) / np.array(_STD, dtype=np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))
