import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from alignment.clip_space import open_clip_space, transformers_space
from alignment.runtime import Runtime

WORDS = ["red", "green", "circle", "square", "on", "a"]


def word_tokenizer(folder: Path, length: int) -> None:
    """Write a tokenizer of whole words whose end token has the highest id."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(["<pad>", "<start>", "<unk>", *WORDS, "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", ids["<end>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        model_max_length=length,
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from open_clip.model import CLIP

    folder = tmp_path_factory.mktemp("open_clip")
    word_tokenizer(folder, 8)
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": len(WORDS) + 4,
            "hf_tokenizer_name": "local",
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
    torch.manual_seed(0)
    model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    save_file(
        {name: value.clone() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(text)
    return folder


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("transformers")
    word_tokenizer(folder, 8)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(WORDS) + 4, "max_position_embeddings": 8, "eos_token_id": len(WORDS) + 3}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=tower | text, vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=16
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(params=["open_clip", "transformers"])
def space(request: pytest.FixtureRequest, open_clip_folder: Path, transformers_folder: Path):
    runtime = Runtime(device="cpu")
    if request.param == "open_clip":
        return open_clip_space(open_clip_folder, runtime, batch_size=4)
    return transformers_space(str(transformers_folder), runtime, batch_size=4)


def pictures(n: int = 6, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_embeddings_are_raw_float32_and_do_not_depend_on_the_batch(space) -> None:
    images = pictures()
    embeds = space.encode_images(images)
    assert embeds.shape == (6, space.embed_dim) and embeds.dtype == np.float32
    assert np.abs(np.linalg.norm(embeds, axis=1) - 1).min() > 1e-3
    assert np.allclose(embeds[3:4], space.encode_images(images[3:4]), atol=1e-5)
    assert space.encode_images(images[:0]).shape == (0, space.embed_dim)


def test_texts_share_the_space(space) -> None:
    embeds = space.encode_texts(["a red circle", "a green square on red", "a red circle"])
    assert embeds.shape == (3, space.embed_dim) and embeds.dtype == np.float32
    assert np.allclose(embeds[0], embeds[2], atol=1e-5) and not np.allclose(embeds[0], embeds[1], atol=1e-3)


def test_other_sizes_are_resized(space) -> None:
    assert space.encode_images(pictures(2, 48)).shape == (2, space.embed_dim)


def test_open_clip_path_is_open_clips_own(open_clip_folder: Path) -> None:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{open_clip_folder}")
    images = pictures(3, 40)
    with torch.no_grad():
        expected = model.eval().encode_image(torch.stack([transform(Image.fromarray(image)) for image in images]))
        words = model.encode_text(open_clip.get_tokenizer(f"local-dir:{open_clip_folder}")(["a red circle"]))
    space = open_clip_space(open_clip_folder)
    assert np.allclose(space.encode_images(images), expected.numpy(), atol=1e-5)
    assert np.allclose(space.encode_texts(["a red circle"]), words.numpy(), atol=1e-5)


def test_transformers_path_is_transformers_own(transformers_folder: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(transformers_folder).eval()
    pixels = CLIPImageProcessor.from_pretrained(transformers_folder)(list(pictures(3)), return_tensors="pt")
    with torch.no_grad():
        expected = model.get_image_features(**pixels)
    expected = getattr(expected, "pooler_output", expected)
    assert np.allclose(transformers_space(transformers_folder).encode_images(pictures(3)), expected.numpy(), atol=1e-5)


def test_digest_follows_the_weights(open_clip_folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(open_clip_folder, copy)
    assert open_clip_space(copy).digest == open_clip_space(open_clip_folder).digest
    config = json.loads((copy / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.4] * 3
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    assert open_clip_space(copy).digest != open_clip_space(open_clip_folder).digest


def test_refusals(open_clip_folder: Path, transformers_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no CLIP folder"):
        open_clip_space(tmp_path / "absent")
    with pytest.raises(ValueError, match="safetensors"):
        open_clip_space(transformers_folder)
    with pytest.raises(ValueError, match=r"expected uint8 \(n, h, w, 3\)"):
        open_clip_space(open_clip_folder).encode_images(pictures().astype(np.float32))
