import numpy as np
import pytest
import torch

from alignment.clip_space import open_clip_space
from alignment.clip_training import ClipTowerConfig, build_tokenizer, train_clip
from alignment.fit import FitConfig
from alignment.runtime import Runtime
from alignment.text_encoder import empty_prompt_embeds, text_encoder_of

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "grey": (120, 120, 120)}
TOWERS = ClipTowerConfig(embed_dim=32, image_width=8, text_width=32, text_layers=1, context_length=8)


def coloured(step, rank, world):
    generator = np.random.default_rng([step, rank])
    names = generator.choice(list(COLOURS), 16)
    images = np.array([np.full((64, 64, 3), COLOURS[name], np.uint8) for name in names])
    noise = generator.integers(-15, 15, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8), [f"a {name} wall" for name in names]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    fit_config = FitConfig(max_steps=40, lr=3e-3, checkpoint_every=100, validate_every=100)
    captions = [f"a {name} wall" for name in COLOURS]
    runtime = Runtime(device="cpu", seed=0)
    return train_clip(coloured, captions, TOWERS, fit_config, runtime, folder, coloured(999, 0, 1))[0]


def test_tokenizer_ends_with_its_highest_id():
    tokenizer = build_tokenizer(["a red wall", "a blue wall"], TOWERS)
    ids = tokenizer.encode("A red  unheard wall").ids
    assert len(ids) == TOWERS.context_length
    assert max(ids) == tokenizer.get_vocab_size() - 1 == tokenizer.token_to_id("<end>")
    assert tokenizer.token_to_id("<unk>") in ids


def test_trained_clip_opens_as_an_open_clip_folder_and_matches_text(clip_folder):
    space = open_clip_space(clip_folder, Runtime(device="cpu"))
    images, _ = coloured(5000, 0, 1)
    names = list(COLOURS)
    texts = space.encode_texts([f"a {name} wall" for name in names])
    pictures = np.array([np.full((64, 64, 3), COLOURS[name], np.uint8) for name in names])
    embeds = space.encode_images(pictures)
    assert embeds.shape == (4, 32) and embeds.dtype == np.float32
    cosine = (embeds / np.linalg.norm(embeds, axis=1, keepdims=True)) @ (
        texts / np.linalg.norm(texts, axis=1, keepdims=True)
    ).T
    assert (cosine.argmax(axis=1) == np.arange(4)).mean() >= 0.75
    assert 0.5 < np.square(space.encode_images(images)).mean() < 2, "raw embeddings have a mean square of 1"
    assert np.allclose(space.encode_images(images)[:3], space.encode_images(images[:3]), atol=1e-4)


def test_converted_text_encoder_equals_open_clip(clip_folder):
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{clip_folder}")(["a red wall", "blue"])
    encoder, tokenizer = text_encoder_of(clip_folder)
    with torch.no_grad():
        states = model.token_embedding(tokens) + model.positional_embedding
        states = model.ln_final(model.transformer(states, attn_mask=model.attn_mask))
        ours = encoder(tokens).last_hidden_state
    assert torch.allclose(ours, states, atol=1e-5)
    assert empty_prompt_embeds(encoder, tokenizer).shape == (1, TOWERS.context_length, 32)
