"""Train a small CLIP of our own on any stream of captioned pictures and save it in open_clip's folder format.

The result is an ordinary open_clip model (``local-dir:`` folder with config JSON, safetensors, tokenizer), so every
later stage treats it exactly like ViT-H-14. The image tower is open_clip's ModifiedResNet: on a CPU it learns shapes
from some 10^5 pictures, where a ViT of equal cost does not.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from alignment.fit import FitConfig, FitResult, fit
from alignment.losses import info_nce
from alignment.runtime import STORED_WEIGHTS, Runtime

Pictures = npt.NDArray[np.uint8]
CaptionedAt = Callable[[int, int, int], tuple[Pictures, list[str]]]
PIXEL_MEAN = PIXEL_STD = (0.5, 0.5, 0.5)


class ClipTowerConfig(BaseModel):
    """Sizes of the two towers; the defaults train on a CPU in under half an hour."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embed_dim: int = Field(default=128, gt=0)
    image_size: int = Field(default=64, gt=0)
    image_width: int = Field(default=16, gt=0, description="channels of the first stage; the last has 32 times as many")
    text_width: int = Field(default=96, gt=0)
    text_layers: int = Field(default=2, gt=0)
    context_length: int = Field(default=32, gt=2)
    max_words: int = Field(default=4096, gt=0)


def build_tokenizer(captions: Sequence[str], config: ClipTowerConfig) -> Tokenizer:
    """Build a word-level tokenizer over the words of ``captions``, the most frequent first.

    The end token has the highest id, where open_clip's text tower looks for the sentence embedding.
    """
    normalizer, splitter = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(w for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)))
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: config.max_words]]
    vocabulary = ["<pad>", "<start>", "<unk>", *words, "<end>"]
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", ids["<end>"])]
    )
    tokenizer.enable_truncation(config.context_length)
    tokenizer.enable_padding(length=config.context_length, pad_id=0, pad_token="<pad>")
    return tokenizer


def model_config(config: ClipTowerConfig, vocabulary_size: int) -> dict[str, Any]:
    """Give the open_clip ``model_cfg`` of a configuration."""
    return {
        "embed_dim": config.embed_dim,
        "vision_cfg": {
            "image_size": config.image_size,
            "layers": [1, 1, 1, 1],
            "width": config.image_width,
            "head_width": 32,
            "patch_size": None,
        },
        "text_cfg": {
            "context_length": config.context_length,
            "vocab_size": vocabulary_size,
            "hf_tokenizer_name": "local",
            "width": config.text_width,
            "heads": max(config.text_width // 32, 1),
            "layers": config.text_layers,
        },
    }


def pixels(images: Pictures) -> Tensor:
    """Turn (n, h, w, 3) uint8 pictures into (n, 3, h, w) float32 tower inputs."""
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (PIXEL_MEAN, PIXEL_STD))
    # (n, h, w, c) -> (n, c, h, w)
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


class _Contrast(nn.Module):
    """Both towers in one module, so that a wrapper for several processes sees one forward call."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image_embeds, text_embeds, logit_scale = self.clip(images, tokens)
        return image_embeds, text_embeds, logit_scale


def train_clip(
    captioned_at: CaptionedAt,
    captions: Sequence[str],
    config: ClipTowerConfig,
    fit_config: FitConfig,
    runtime: Runtime,
    run_dir: Path,
    held_out: tuple[Pictures, list[str]],
) -> tuple[Path, FitResult]:
    """Train contrastively and write ``run_dir/clip``.

    Parameters
    ----------
    captioned_at : callable
        ``captioned_at(step, rank, world) -> (images uint8 (b, h, w, 3), captions)``, a pure function of its arguments.
    captions : sequence of str
        A sample of captions that covers the vocabulary.
    held_out : (images, captions)
        Validation pictures; image-to-text top-1 accuracy on them is logged and never used for selection.

    Returns
    -------
    folder : Path
        open_clip folder: ``open_clip_config.json``, ``open_clip_model.safetensors``, tokenizer files.
    result : FitResult
    """
    from open_clip.model import CLIP

    tokenizer = build_tokenizer(captions, config)
    settings = model_config(config, tokenizer.get_vocab_size())
    torch.manual_seed(runtime.seed)
    clip = CLIP(settings["embed_dim"], settings["vision_cfg"], settings["text_cfg"])
    module = _Contrast(clip)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on a CPU

    def tokens(sentences: list[str]) -> Tensor:
        return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(sentences)])

    def batch_at(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        images, sentences = captioned_at(step, rank, world)
        return pixels(images), tokens(sentences)

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        image_embeds, text_embeds, logit_scale = model(*batch)
        image_embeds, text_embeds = map(runtime.gather_with_grad, (image_embeds, text_embeds))
        return info_nce(image_embeds, text_embeds, logit_scale)

    def validate(model: nn.Module) -> dict[str, float]:
        image_embeds, text_embeds, _ = model(*runtime.to_device((pixels(held_out[0]), tokens(held_out[1]))))
        best = (image_embeds @ text_embeds.T).argmax(dim=1).cpu()
        right = [held_out[1][int(j)] == held_out[1][i] for i, j in enumerate(best)]
        return {"top_1": float(np.mean(right))}

    result = fit(module, loss_fn, batch_at, fit_config, runtime, run_dir, validate)
    clip.load_state_dict({name.removeprefix("clip."): value for name, value in result.weights.items()})
    scale_image_embeds(clip, [pixels(captioned_at(step, 0, 1)[0]) for step in range(4)], runtime)
    return write_clip(run_dir / "clip", settings, clip.state_dict(), tokenizer), result


@torch.no_grad()
def scale_image_embeds(clip: nn.Module, batches: Sequence[Tensor], runtime: Runtime) -> None:
    """Scale the last layer of the image tower so that raw embeddings have a mean square of 1 per dimension.

    The contrastive loss leaves their length open. Published CLIP models lie near 1, and a generator that takes raw
    embeddings learns badly from much larger ones: the step of an adaptive optimiser grows with its inputs.
    """
    clip.eval()
    embeds = torch.cat([clip.encode_image(runtime.to_device(batch)).float() for batch in batches])  # type: ignore[operator]
    for value in clip.visual.attnpool.c_proj.parameters():  # type: ignore[union-attr]
        value /= embeds.square().mean().sqrt()


def write_clip(folder: Path, settings: dict[str, Any], weights: dict[str, Tensor], tokenizer: Tokenizer) -> Path:
    """Write an open_clip ``local-dir:`` folder; matrices and kernels as `STORED_WEIGHTS`, the rest as it is."""
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": PIXEL_MEAN, "std": PIXEL_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    text = json.dumps({"model_cfg": settings, "preprocess_cfg": preprocess}, indent=2)
    (folder / "open_clip_config.json").write_text(text)
    stored = {name: value.to(STORED_WEIGHTS) if value.dim() > 1 else value for name, value in weights.items()}
    save_file({name: value.contiguous() for name, value in stored.items()}, folder / "open_clip_model.safetensors")
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unk>",
        model_max_length=settings["text_cfg"]["context_length"],
    ).save_pretrained(folder)  # fmt: skip
    return folder
