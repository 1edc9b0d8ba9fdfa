"""Every space that pictures can be embedded in, by name: open_clip, CLIP, SigLIP, DINOv2, chosen layers, blurred banks.

A space of several members (layers, blur levels) puts them side by side in one row; `split_members` takes them apart.
Weights come from a local folder or a hub snapshot, safetensors only, and no code from either is run.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from torch import Tensor

from alignment.blurred_pictures import BLUR_KERNELS, foveal_blur, gaussian_blur
from alignment.clip_space import (
    Embeds,
    Images,
    ImageSpace,
    check_images,
    encode_in_parts,
    folder_digest,
    local_folder,
    open_clip_space,
    transformers_space,
)
from alignment.runtime import Runtime

PREPROCESSOR = "preprocessor_config.json"
Pooling = Literal["tower", "cls", "patch_mean", "token_mean"]


class _SpaceSpec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="hub id 'owner/name', or a local folder")


class OpenClipSpec(_SpaceSpec):
    """open_clip's own format; has a text tower."""

    name: Literal["open_clip"] = "open_clip"


class _LayeredSpec(_SpaceSpec):
    layers: tuple[int, ...] = Field(default=(), description="output of these blocks, from 1, before the last norm")
    pooling: Pooling = Field(default="tower", description="tower: what the whole tower answers")

    @model_validator(mode="after")
    def _together(self) -> "_LayeredSpec":
        if (self.pooling == "tower") != (not self.layers):
            raise ValueError(
                f"layers {self.layers} do not go with pooling {self.pooling!r}: choose layers together with 'cls', "
                "'patch_mean' or 'token_mean', or leave both out for the tower's answer"
            )
        return self


class ClipSpec(_LayeredSpec):
    """CLIP in transformers' format; the tower's answer is projected and shares a space with texts."""

    name: Literal["clip"] = "clip"


class SiglipSpec(_LayeredSpec):
    """SigLIP in transformers' format; it has no class token."""

    name: Literal["siglip"] = "siglip"


class Dinov2Spec(_LayeredSpec):
    """DINOv2 in transformers' format; the tower's answer is the class token after the last norm."""

    name: Literal["dinov2"] = "dinov2"
    image_size: int = Field(default=0, ge=0, description="side in pixels, a multiple of the patch; 0: as in the folder")


AnyPlainSpec = ClipSpec | Dinov2Spec | OpenClipSpec | SiglipSpec


class BlurBankSpec(BaseModel):
    """The same tower on pictures blurred to several degrees; one member per kernel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["blur_bank"] = "blur_bank"
    space: Annotated[AnyPlainSpec, Field(discriminator="name")]
    kernels: tuple[int, ...] = Field(default=BLUR_KERNELS, min_length=1, description="widths in pixels, odd; 1: sharp")
    side: int = Field(default=224, ge=0, description="shorter side in pixels before blurring; 0: as it is")
    fovea: float = Field(default=0.0, ge=0, description="keep the centre sharp, see foveal_blur; 0: blur everywhere")


AnySpaceSpec = AnyPlainSpec | BlurBankSpec
SpaceSpec = Annotated[AnySpaceSpec, Field(discriminator="name")]

# Widths: RN50 1024, ViT-L-14 768, ViT-H-14 1024, bigG 1280, SigLIP so400m 1152; DINOv2 base 768, large 1024, g 1536.
SPACES: dict[str, AnySpaceSpec] = {
    "rn50": OpenClipSpec(model="timm/resnet50_clip.openai"),
    "vit_l_14": OpenClipSpec(model="laion/CLIP-ViT-L-14-laion2B-s32B-b82K"),
    "vit_h_14": OpenClipSpec(model="laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    "vit_bigg_14": OpenClipSpec(model="laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"),
    "clip_vit_l_14_layer_16": ClipSpec(model="openai/clip-vit-large-patch14", layers=(16,), pooling="patch_mean"),
    "clip_vit_l_14_layers": ClipSpec(
        model="openai/clip-vit-large-patch14", layers=(12, 14, 16, 18, 20), pooling="patch_mean"
    ),
    "vit_bigg_14_layers": ClipSpec(
        model="laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", layers=(20, 24, 28, 32, 36), pooling="patch_mean"
    ),
    "dinov2_base": Dinov2Spec(model="facebook/dinov2-base"),
    "dinov2_large_layer_16": Dinov2Spec(model="facebook/dinov2-large", layers=(16,), pooling="token_mean"),
    "dinov2_giant_layer_27": Dinov2Spec(
        model="facebook/dinov2-giant", layers=(27,), pooling="token_mean", image_size=518
    ),
    "siglip_so400m": SiglipSpec(model="google/siglip-so400m-patch14-384"),
    "rn50_blurs": BlurBankSpec(space=OpenClipSpec(model="timm/resnet50_clip.openai")),
}


def open_space(
    space: str | AnySpaceSpec | Mapping[str, Any], runtime: Runtime | None = None, *, batch_size: int = 64
) -> ImageSpace:
    """Open a space for pictures.

    Parameters
    ----------
    space : str, SpaceSpec or mapping
        Name of `SPACES`, a spec, or the settings of one.
    runtime : Runtime, optional
    batch_size : int
        Pictures at once in the tower.

    Returns
    -------
    ImageSpace
        See `n_members` for several layers or blur levels; a `ClipSpace`, with texts, for "open_clip" and for "clip"
        with its whole tower.

    Raises
    ------
    ValueError
        If the name is unknown, the folder lacks config or safetensors weights, or the model has no such layer.
    """
    if isinstance(space, str):
        if space not in SPACES:
            raise ValueError(
                f"space {space!r} is unknown, allowed are {sorted(SPACES)}; or give a spec, for instance "
                "{name: dinov2, model: FOLDER_OR_HUB_ID}"
            )
        space = SPACES[space]
    adapter: TypeAdapter[AnySpaceSpec] = TypeAdapter(SpaceSpec)
    spec = adapter.validate_python(space)
    runtime = runtime or Runtime()
    if isinstance(spec, BlurBankSpec):
        return BlurBank(open_space(spec.space, runtime, batch_size=batch_size), spec)
    if isinstance(spec, OpenClipSpec):
        return open_clip_space(spec.model, runtime, batch_size=batch_size)
    if isinstance(spec, ClipSpec) and spec.pooling == "tower":
        return transformers_space(spec.model, runtime, batch_size=batch_size)
    return _vision_space(spec, runtime, batch_size)


def n_members(space: ImageSpace) -> int:
    """Return how many layers or blur levels stand side by side in one row of a space."""
    return space.n_members if isinstance(space, (VisionSpace, BlurBank)) else 1


def split_members(embeds: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """Take rows (rows, n * d) of a space with ``n`` members apart: (rows, n, d)."""
    rows, width = embeds.shape
    if n < 1 or width % n:
        raise ValueError(f"embeddings of width {width} do not divide into {n} members; use n_members(space)")
    return embeds.reshape(rows, n, width // n)


@dataclass(frozen=True)
class VisionSpace:
    """An image tower of transformers."""

    embed_dim: int
    n_members: int
    digest: str
    preprocess: Callable[[Images], Tensor]
    tower: Callable[[Tensor], Tensor]
    runtime: Runtime
    batch_size: int

    def encode_images(self, images: Images) -> Embeds:
        check_images(images)
        return encode_in_parts(
            images, lambda part: self.tower(self.runtime.to_device(self.preprocess(part))), self.embed_dim,
            self.runtime, self.batch_size,
        )  # fmt: skip


class BlurBank:
    """A space on blurred pictures, see `BlurBankSpec`."""

    def __init__(self, space: ImageSpace, spec: BlurBankSpec) -> None:
        self.space, self.spec = space, spec
        self.n_members = len(spec.kernels) * n_members(space)
        self.embed_dim = len(spec.kernels) * space.embed_dim
        self.digest = _spec_digest(space.digest, {"kernels": spec.kernels, "side": spec.side, "fovea": spec.fovea})

    def encode_images(self, images: Images) -> Embeds:
        check_images(images)
        resized = _resized(images, self.spec.side) if self.spec.side else images
        fovea = self.spec.fovea
        parts = [
            self.space.encode_images(foveal_blur(resized, size, fovea) if fovea else gaussian_blur(resized, size))
            for size in self.spec.kernels
        ]
        return np.concatenate(parts, axis=1)


def _vision_space(spec: ClipSpec | SiglipSpec | Dinov2Spec, runtime: Runtime, batch_size: int) -> VisionSpace:
    folder = local_folder(spec.model, PREPROCESSOR)
    model, processor = _load_tower(spec, folder)
    config = model.config
    runtime.prepare(model.eval().requires_grad_(False))
    missing = [layer for layer in spec.layers if not 1 <= layer <= config.num_hidden_layers]
    if missing:
        known = f"1 .. {config.num_hidden_layers}"
        raise ValueError(f"{spec.model} has the layers {known}, got {missing}; choose among them")
    has_class_token = not isinstance(spec, SiglipSpec)
    if spec.pooling == "cls" and not has_class_token:
        raise ValueError(f"pooling 'cls' needs a class token, which {spec.name} lacks; use 'patch_mean'")

    def preprocess(images: Images) -> Tensor:
        pixels: Tensor = processor(list(images), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        return pixels

    def tower(pixels: Tensor) -> Tensor:
        answer = model(pixel_values=pixels, output_hidden_states=bool(spec.layers))
        if not spec.layers:
            pooled: Tensor = answer.pooler_output
            return pooled
        # (b, tokens, d) of each layer -> (b, layers * d)
        chosen = [_pooled(answer.hidden_states[layer], spec.pooling, has_class_token) for layer in spec.layers]
        return torch.cat(chosen, dim=1)

    count = max(len(spec.layers), 1)
    return VisionSpace(
        embed_dim=int(config.hidden_size) * count, n_members=count,
        digest=_spec_digest(folder_digest("transformers", folder), spec.model_dump(mode="json", exclude={"model"})),
        preprocess=preprocess, tower=tower, runtime=runtime, batch_size=batch_size,
    )  # fmt: skip


def _load_tower(spec: ClipSpec | SiglipSpec | Dinov2Spec, folder: Path) -> tuple[Any, Any]:
    """Give the vision tower and the image processor; each class is named here, none is taken from the folder."""
    from transformers import (
        BitImageProcessor,
        CLIPImageProcessor,
        CLIPVisionModel,
        Dinov2Model,
        SiglipImageProcessor,
        SiglipVisionModel,
    )

    if isinstance(spec, ClipSpec):
        return _complete(CLIPVisionModel, folder), CLIPImageProcessor.from_pretrained(folder)
    if isinstance(spec, SiglipSpec):
        return _complete(SiglipVisionModel, folder), SiglipImageProcessor.from_pretrained(folder)
    size = spec.image_size
    changed: dict[str, Any] = {}
    if size:
        changed = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    return _complete(Dinov2Model, folder), BitImageProcessor.from_pretrained(folder, **changed)


def _complete(kind: Any, folder: Path) -> Any:
    """Load a model and refuse one whose folder lacks weights: transformers would fill them with random numbers."""
    model, found = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} weights of {kind.__name__}, the first {missing[:3]}; fetch the model again "
            "or choose the spec of its kind"
        )
    return model


def _pooled(tokens: Tensor, pooling: Pooling, has_class_token: bool) -> Tensor:
    """Reduce (b, tokens, d) to (b, d)."""
    if pooling == "cls":
        return tokens[:, 0]
    return tokens[:, 1 if pooling == "patch_mean" and has_class_token else 0 :].mean(dim=1)


def _resized(images: Images, side: int) -> Images:
    """Resize pictures (n, h, w, 3) so that the shorter side is ``side``, with PIL's bicubic filter."""
    from PIL import Image

    height, width = images.shape[1:3]
    scale = side / min(height, width)
    size = (round(width * scale), round(height * scale))
    if size == (width, height) or not len(images):
        return images
    pictures = [Image.fromarray(image).resize(size, Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(picture) for picture in pictures])


def _spec_digest(digest: str, settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{digest} {json.dumps(settings, sort_keys=True)}".encode()).hexdigest()
