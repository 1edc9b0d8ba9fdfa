"""The embedding of the empty prompt, stored beside a Stable unCLIP model so that its text encoder is never loaded.

Stable unCLIP is conditioned on an image embedding and on a prompt; for pictures from brains the prompt is always
empty, so one small tensor stands for the text encoder, which is 340 million weights in the published models.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from generation.sampling import DiffusersPipeline, load_pipeline

EMPTY_PROMPT_FILE = "empty_prompt.safetensors"


def save_empty_prompt(folder: Path, prompt_embeds: torch.Tensor | None = None) -> None:
    """Store the embedding of the empty prompt in a Stable unCLIP folder.

    Parameters
    ----------
    folder : Path
        Diffusers folder; receives ``empty_prompt.safetensors``.
    prompt_embeds : Tensor, (1, n_tokens, cross_attention_dim), float32, optional
        The embedding that the UNet was trained with. Without it the folder's text encoder encodes the empty prompt.

    Raises
    ------
    ValueError
        If the shape is another, or there is neither an embedding nor a text encoder.
    """
    if prompt_embeds is None:
        from diffusers import StableUnCLIPImg2ImgPipeline

        unused = {"image_encoder": None, "feature_extractor": None}
        pipeline = load_pipeline(StableUnCLIPImg2ImgPipeline, folder, "main", unused)
        prompt_embeds = encode_empty_prompt(pipeline, folder)
    if prompt_embeds.ndim != 3 or prompt_embeds.shape[0] != 1:
        raise ValueError(
            f"prompt_embeds have shape {tuple(prompt_embeds.shape)}, expected (1, n_tokens, cross_attention_dim); "
            "add the batch axis"
        )
    save_file({"prompt_embeds": prompt_embeds.float().contiguous()}, folder / EMPTY_PROMPT_FILE)


def load_empty_prompt(folder: Path) -> torch.Tensor:
    """Read the stored embedding, (1, n_tokens, cross_attention_dim) float32."""
    prompt_embeds: torch.Tensor = load_file(folder / EMPTY_PROMPT_FILE)["prompt_embeds"]
    return prompt_embeds


def encode_empty_prompt(pipeline: DiffusersPipeline, source: str | Path) -> torch.Tensor:
    """Encode the empty prompt with the text encoder of a Stable unCLIP pipeline that came from ``source``."""
    if pipeline.text_encoder is None or pipeline.tokenizer is None:
        raise ValueError(
            f"{source} has neither {EMPTY_PROMPT_FILE} nor a text encoder with its tokenizer, expected one of them; "
            "store the embedding of the empty prompt with save_empty_prompt"
        )
    with torch.no_grad():
        prompt_embeds: torch.Tensor = pipeline.encode_prompt("", pipeline.device, 1, False)[0]
    return prompt_embeds
