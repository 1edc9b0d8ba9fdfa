"""CLIP spaces: pictures and texts to raw embeddings, through open_clip or transformers behind one adapter.

Embeddings leave here as the projection gives them, not normalised: generators expect raw lengths, and retrieval
normalises on its own. Only safetensors weights are read, from a hub snapshot or a local folder.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignment.runtime import Runtime
from encoders.durable_files import file_sha256

Images = NDArray[np.uint8]
Embeds = NDArray[np.float32]

OPEN_CLIP_CONFIG = "open_clip_config.json"
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


class ImageSpace(Protocol):
    """One image tower."""

    @property
    def embed_dim(self) -> int: ...

    @property
    def digest(self) -> str:
        """sha256 over library name, settings, configs, tokenizer and weights."""
        ...

    def encode_images(self, images: Images) -> Embeds:
        """Embed pictures: (n, h, w, 3) uint8 RGB -> (n, d) float32, raw."""
        ...


class ClipSpace(ImageSpace, Protocol):
    """One image tower and one text tower that share a space."""

    def encode_texts(self, texts: Sequence[str]) -> Embeds:
        """Embed sentences: n of them -> (n, d) float32, raw."""
        ...


@dataclass(frozen=True)
class _TowerSpace:
    """A `ClipSpace` made of four functions."""

    embed_dim: int
    digest: str
    preprocess: Callable[[Images], Tensor]
    image_tower: Callable[[Tensor], Tensor]
    tokenize: Callable[[list[str]], Any]
    text_tower: Callable[[Any], Tensor]
    runtime: Runtime
    batch_size: int

    def encode_images(self, images: Images) -> Embeds:
        check_images(images)
        return encode_in_parts(
            images, lambda part: self.image_tower(self.runtime.to_device(self.preprocess(part))), self.embed_dim,
            self.runtime, self.batch_size,
        )  # fmt: skip

    def encode_texts(self, texts: Sequence[str]) -> Embeds:
        return encode_in_parts(
            list(texts), lambda part: self.text_tower(self.runtime.to_device(self.tokenize(part))), self.embed_dim,
            self.runtime, self.batch_size,
        )  # fmt: skip


def check_images(images: Images) -> None:
    """Refuse what is not (n, h, w, 3) uint8."""
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype} {images.shape}, expected uint8 (n, h, w, 3) RGB")


def encode_in_parts(
    items: Any, encode: Callable[[Any], Tensor], embed_dim: int, runtime: Runtime, batch_size: int
) -> Embeds:
    """Run ``encode`` on slices of ``items`` and stack the answers: (n, d) float32."""
    parts = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    if not parts:
        return np.zeros((0, embed_dim), np.float32)
    with torch.no_grad(), runtime.autocast():
        return np.concatenate([encode(part).float().cpu().numpy() for part in parts])


def open_clip_space(model_or_folder: str | Path, runtime: Runtime | None = None, *, batch_size: int = 64) -> ClipSpace:
    """Open a CLIP in open_clip's format.

    Parameters
    ----------
    model_or_folder : str or Path
        Folder with ``open_clip_config.json`` and safetensors weights, or a hub id such as
        ``laion/CLIP-ViT-H-14-laion2B-s32B-b79K``.
    runtime : Runtime, optional
    batch_size : int

    Raises
    ------
    ValueError
        If the folder lacks the config or safetensors weights.
    """
    import open_clip

    runtime = runtime or Runtime()
    folder = local_folder(model_or_folder, OPEN_CLIP_CONFIG)
    source = f"local-dir:{folder}"
    model, _, transform = open_clip.create_model_and_transforms(source)
    towers: Any = runtime.prepare(model.eval().requires_grad_(False))
    config = json.loads((folder / OPEN_CLIP_CONFIG).read_text())
    tokenizer = open_clip.get_tokenizer(source)

    def preprocess(images: Images) -> Tensor:
        from PIL import Image

        return torch.stack([transform(Image.fromarray(image)) for image in images])

    return _TowerSpace(
        embed_dim=int(config["model_cfg"]["embed_dim"]), digest=folder_digest("open_clip", folder),
        preprocess=preprocess, image_tower=towers.encode_image,
        tokenize=tokenizer, text_tower=towers.encode_text, runtime=runtime, batch_size=batch_size,
    )  # fmt: skip


def transformers_space(id_or_folder: str | Path, runtime: Runtime | None = None, *, batch_size: int = 64) -> ClipSpace:
    """Open a CLIP in transformers' format: local folder or hub id, for example ``openai/clip-vit-large-patch14``.

    Raises
    ------
    ValueError
        If the folder lacks the config or safetensors weights.
    """
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    runtime = runtime or Runtime()
    folder = local_folder(id_or_folder, "preprocessor_config.json")
    model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    runtime.prepare(model.eval().requires_grad_(False))
    processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    length = model.config.text_config.max_position_embeddings

    def preprocess(images: Images) -> Tensor:
        pixels: Tensor = processor(list(images), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        return pixels

    def tokenize(texts: list[str]) -> dict[str, Tensor]:
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    def image_tower(pixels: Tensor) -> Tensor:
        projected: Tensor = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        return projected

    def text_tower(tokens: dict[str, Tensor]) -> Tensor:
        projected: Tensor = model.text_projection(model.text_model(**tokens).pooler_output)
        return projected

    return _TowerSpace(
        embed_dim=int(model.config.projection_dim), digest=folder_digest("transformers", folder),
        preprocess=preprocess, image_tower=image_tower,
        tokenize=tokenize, text_tower=text_tower, runtime=runtime, batch_size=batch_size,
    )  # fmt: skip


def local_folder(source: str | Path, config_name: str) -> Path:
    """Give the folder of a model, fetching a hub snapshot (no pickles) when ``source`` is not a folder."""
    folder = Path(source)
    if not folder.is_dir():
        if isinstance(source, Path) or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
            raise ValueError(f"no CLIP folder at {source!r}; expected an existing folder or a hub id 'owner/name'")
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(source), allow_patterns=HUB_FILES))
    found = sorted(path.name for path in folder.iterdir())
    if config_name not in found or not any(name.endswith(".safetensors") for name in found):
        raise ValueError(
            f"CLIP folder {folder} holds {found}, expected {config_name} and *.safetensors; convert the weights to "
            "safetensors, or use the other of open_clip_space and transformers_space"
        )
    return folder.resolve()


def folder_digest(library: str, folder: Path) -> str:
    """Hash a model folder's configs, tokenizer and weights together with the name of the library that reads them."""
    digest = hashlib.sha256(library.encode())
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt", ".model", ".safetensors")):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
