import numpy as np
import torch

from alignment.clip_training import pixels
from alignment.fit import FitConfig
from alignment.image_encoder import ImageEncoderConfig, image_processor, load_image_encoder, train_image_encoder
from alignment.runtime import Runtime

SIZES = ImageEncoderConfig(image_size=32, patch_size=8, width=32, layers=1)


def coloured(n, seed):
    """Plain pictures and an embedding that is linear in their colour."""
    generator = np.random.default_rng(seed)
    colour = generator.integers(0, 256, (n, 3), dtype=np.uint8)
    mixing = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    return np.broadcast_to(colour[:, None, None], (n, 32, 32, 3)).copy(), (colour / 128 - 1).astype(np.float32) @ mixing


def test_learns_the_embeddings_and_survives_saving(tmp_path):
    config = FitConfig(max_steps=60, lr=5e-3, validate_every=60, checkpoint_every=60)
    runtime = Runtime(device="cpu", seed=0)
    held_out = coloured(50, 1)
    encoder, _ = train_image_encoder(
        lambda step, rank, world: coloured(32, (2, step)), SIZES, config, runtime, tmp_path, held_out
    )
    encoder.save_pretrained(tmp_path / "encoder")
    again = load_image_encoder(tmp_path / "encoder").eval()
    with torch.no_grad():
        answer, expected = (model(pixel_values=pixels(held_out[0])).image_embeds for model in (again, encoder))
    assert torch.equal(answer, expected)
    centred = [x - x.mean(0) for x in (answer, torch.from_numpy(held_out[1]))]
    assert torch.cosine_similarity(*centred).mean() > 0.9


def test_processor_equals_the_clips_own_preprocessing():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    theirs = image_processor(32)(list(images), return_tensors="pt").pixel_values
    assert torch.allclose(theirs, pixels(images), atol=1e-5)
