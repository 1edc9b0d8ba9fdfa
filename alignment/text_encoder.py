"""The text tower of an open_clip folder as the transformers model that a diffusers folder holds."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

_RENAMED = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


def text_encoder_of(folder: Path) -> tuple[CLIPTextModel, PreTrainedTokenizerFast]:
    """Convert the text tower of an open_clip folder that has its own word-level tokenizer.

    The hidden states of the result equal open_clip's after its last layer norm; the projection is left out, as in the
    text encoders of Stable Diffusion.

    Parameters
    ----------
    folder : Path
        Written by `alignment.clip_training.write_clip`.

    Raises
    ------
    ValueError
        If weights are left over or missing after the conversion.
    """
    settings = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=settings["vocab_size"], hidden_size=settings["width"], intermediate_size=4 * settings["width"],
            num_hidden_layers=settings["layers"], num_attention_heads=settings["heads"],
            max_position_embeddings=settings["context_length"], hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    expected = model.state_dict()
    prefix = "text_model." if any(name.startswith("text_model.") for name in expected) else ""
    weights = _converted(load_file(folder / "open_clip_model.safetensors"), settings["layers"], prefix)
    missing = [name for name in expected if name not in weights and not name.endswith("position_ids")]
    if missing or set(weights) - set(expected):
        raise ValueError(f"{folder} does not hold the text tower its config describes; missing {missing[:3]}")
    model.load_state_dict(weights, strict=False)
    model.eval()  # type: ignore[no-untyped-call]
    return model, tokenizer


def _converted(weights: dict[str, Tensor], n_layers: int, prefix: str) -> dict[str, Tensor]:
    converted = {
        f"{prefix}embeddings.token_embedding.weight": weights["token_embedding.weight"],
        f"{prefix}embeddings.position_embedding.weight": weights["positional_embedding"],
        f"{prefix}final_layer_norm.weight": weights["ln_final.weight"],
        f"{prefix}final_layer_norm.bias": weights["ln_final.bias"],
    }
    for layer in range(n_layers):
        source, target = f"transformer.resblocks.{layer}", f"{prefix}encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            for theirs, ours in _RENAMED.items():
                converted[f"{target}.{ours}.{kind}"] = weights[f"{source}.{theirs}.{kind}"]
            thirds = torch.chunk(weights[f"{source}.attn.in_proj_{kind}"], 3)
            for name, third in zip(("q_proj", "k_proj", "v_proj"), thirds, strict=True):
                converted[f"{target}.self_attn.{name}.{kind}"] = third.contiguous()
    return converted


@torch.no_grad()
def empty_prompt_embeds(text_encoder: CLIPTextModel, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Encode the empty prompt, (1, context_length, width) float32, as diffusers' ``encode_prompt`` does."""
    ids = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    states: Tensor = text_encoder(ids).last_hidden_state
    return states.float()
