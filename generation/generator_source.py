"""Generators that somebody brings along: a diffusers folder or hub id, and whether it fits the space of a training."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.image_encoder import embed_with_tower
from alignment.runtime import Runtime
from generation.empty_prompt import EMPTY_PROMPT_FILE
from generation.image_decoder import GeneratorConfig, ImageVariationConfig, StableUnCLIPConfig

HUB_FILES = ("*.json", "*.safetensors", "*.txt")
SAME_SPACE = 0.9
"""Smallest mean cosine of a picture's embeddings by two copies of one model that may preprocess a little otherwise."""

_KINDS: dict[str, GeneratorConfig] = {
    "StableUnCLIPImg2ImgPipeline": StableUnCLIPConfig(),
    "StableDiffusionImageVariationPipeline": ImageVariationConfig(),
}


@dataclass(frozen=True)
class GeneratorSource:
    """A generator on disk.

    Attributes
    ----------
    folder : Path
    name : str
        As it was given.
    config : GeneratorConfig
        Backend with default settings.
    embed_dim : int
        Width of the image embeddings that it takes.
    """

    folder: Path
    name: str
    config: GeneratorConfig
    embed_dim: int

    @classmethod
    def open(cls, source: str) -> "GeneratorSource":
        """Find a generator, fetching a hub snapshot (no pickles) when ``source`` is not a folder.

        Raises
        ------
        ValueError
            If there is none, or it is of another kind than Stable unCLIP and image variation.
        """
        folder = Path(source)
        if not folder.is_dir():
            if source.count("/") != 1 or source.startswith((".", "/", "~")):
                raise ValueError(f"no generator at {source!r}, expected a diffusers folder, a hub id, or 'none'")
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(source, allow_patterns=list(HUB_FILES)))
        index = _json(folder / "model_index.json", source)
        kind = str(index.get("_class_name"))
        if kind not in _KINDS:
            raise ValueError(f"{source} holds a {kind}, expected one of {sorted(_KINDS)}; give a generator of these")
        if isinstance(_KINDS[kind], StableUnCLIPConfig):
            width = _json(folder / "image_normalizer" / "config.json", source)["embedding_dim"]
        else:
            width = _json(folder / "unet" / "config.json", source)["cross_attention_dim"]
        return cls(folder, source, _KINDS[kind], int(width))

    def check_width(self, embed_dim: int, space: str) -> None:
        """Refuse a generator for embeddings of another width.

        Raises
        ------
        ValueError
            It names the generator and the space of the training.
        """
        if self.embed_dim != embed_dim:
            raise ValueError(
                f"the generator {self.name} takes image embeddings of width {self.embed_dim}, the training's targets "
                f"are of width {embed_dim} ({space}); take a generator of that space, or train on targets of the "
                "generator's"
            )

    def check_space(
        self, images: Sequence[NDArray[np.uint8]], image_embeds: NDArray[np.float32], space: str, runtime: Runtime
    ) -> float | None:
        """Compare embeddings of pictures by the generator's own image tower with those of the training's space.

        Parameters
        ----------
        images : sequence of ndarray, (h, w, 3), uint8
        image_embeds : ndarray, (n, d), float32
            The same pictures in the training's space.
        space : str
            What to call that space.
        runtime : Runtime

        Returns
        -------
        float or None
            Mean cosine; None if the folder has no image tower, so that nothing but the width could be compared.

        Raises
        ------
        ValueError
            If the spaces are different; it names both.
        """
        if not any((self.folder / "image_encoder").glob("*.safetensors")):
            return None
        own = embed_with_tower(self.folder / "image_encoder", self.folder / "feature_extractor", images, runtime)
        cosine = float((_unit(own) * _unit(image_embeds)).sum(axis=1).mean())
        if cosine < SAME_SPACE:
            raise ValueError(
                f"the generator {self.name} was made for the space of its own image tower, the training's targets are "
                f"of {space}: of {len(images)} pictures the two embeddings have a mean cosine of {cosine:.2f}, "
                f"expected {SAME_SPACE} or more; take a generator of the training's space"
            )
        return cosine

    def unused_parts(self) -> tuple[str, ...]:
        """Name the subfolders that decoding never reads, and that a bundle need not hold."""
        towers = ("image_encoder", "feature_extractor", "safety_checker")
        return (*towers, "text_encoder", "tokenizer") if (self.folder / EMPTY_PROMPT_FILE).is_file() else towers


def _json(path: Path, source: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"no {path.name} in {path.parent} ({source}), expected a folder that diffusers' save_pretrained wrote"
        )
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _unit(embeds: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(embeds, axis=1, keepdims=True)
    return np.asarray(embeds / np.maximum(length, 1e-12), dtype=np.float32)
