import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from test_clip_space import open_clip_folder, transformers_folder  # noqa: F401  (fixtures)

from alignment.blurred_pictures import foveal_blur, gaussian_blur
from alignment.image_spaces import (
    SPACES,
    BlurBankSpec,
    ClipSpec,
    Dinov2Spec,
    OpenClipSpec,
    SiglipSpec,
    n_members,
    open_space,
    split_members,
)
from alignment.runtime import Runtime

N_LAYERS = 3
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2}


def pictures(n: int = 5, height: int = 40, width: int = 36) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny random model of each architecture, saved as its library saves it."""
    from transformers import (
        BitImageProcessor,
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        Dinov2Config,
        Dinov2Model,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
    )

    made = {name: tmp_path_factory.mktemp(name) for name in ("dinov2", "siglip", "clip")}
    torch.manual_seed(0)
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    text = TOWER | {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    Dinov2Model(Dinov2Config(**vision, mlp_ratio=2)).save_pretrained(made["dinov2"])
    size = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    BitImageProcessor(**size).save_pretrained(made["dinov2"])
    SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).save_pretrained(made["siglip"])
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(made["siglip"])
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)).save_pretrained(made["clip"])
    CLIPImageProcessor(**size).save_pretrained(made["clip"])
    return made


def direct(kind: str, folder: Path, layers: tuple[int, ...], pooling: str, images: np.ndarray) -> np.ndarray:
    """The same embedding through the library's own classes, found by its Auto classes."""
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder)([Image.fromarray(i) for i in images], return_tensors="pt")
    vision = getattr(model, "vision_model", model)
    with torch.no_grad():
        answer = vision(pixels["pixel_values"], output_hidden_states=True)
    if not layers:
        return answer.pooler_output.numpy()
    skip = 1 if pooling == "patch_mean" and kind != "siglip" else 0
    parts = [answer.hidden_states[k] for k in layers]
    return torch.cat([p[:, 0] if pooling == "cls" else p[:, skip:].mean(1) for p in parts], dim=1).numpy()


CASES = [
    ("dinov2", Dinov2Spec, (), "tower", 32),
    ("dinov2", Dinov2Spec, (2,), "cls", 32),
    ("dinov2", Dinov2Spec, (2,), "token_mean", 32),
    ("dinov2", Dinov2Spec, (1, 3), "patch_mean", 64),
    ("siglip", SiglipSpec, (), "tower", 32),
    ("siglip", SiglipSpec, (2,), "patch_mean", 32),
    ("clip", ClipSpec, (2,), "patch_mean", 32),
    ("clip", ClipSpec, (1, 2, 3), "cls", 96),
]


@pytest.mark.parametrize(("kind", "spec", "layers", "pooling", "width"), CASES)
def test_embeddings_are_the_librarys_own(kind, spec, layers, pooling, width, folders) -> None:
    images = pictures()
    space = open_space(spec(model=str(folders[kind]), layers=layers, pooling=pooling), batch_size=2)
    embeds = space.encode_images(images)
    assert embeds.shape == (5, width) and space.embed_dim == width and embeds.dtype == np.float32
    assert np.isfinite(embeds).all() and n_members(space) == max(len(layers), 1)
    assert np.allclose(embeds, direct(kind, folders[kind], layers, pooling, images), atol=1e-5)
    assert np.array_equal(embeds, space.encode_images(images))
    assert np.allclose(embeds[3:4], space.encode_images(images[3:4]), atol=1e-5)
    assert not np.allclose(embeds[0], embeds[1], atol=1e-3)
    assert space.encode_images(images[:0]).shape == (0, width)


def test_dinov2_layers_are_not_normalised_and_the_last_one_is(folders) -> None:
    from transformers import AutoModel

    images, folder = pictures(), str(folders["dinov2"])
    model = AutoModel.from_pretrained(folder).eval()
    last = open_space(Dinov2Spec(model=folder, layers=(N_LAYERS,), pooling="cls")).encode_images(images)
    with torch.no_grad():
        normed = model.layernorm(torch.from_numpy(last)).numpy()
    assert np.allclose(normed, open_space(Dinov2Spec(model=folder)).encode_images(images), atol=1e-5)


def test_dinov2_takes_larger_pictures(folders) -> None:
    folder, images = str(folders["dinov2"]), pictures(3, 64, 64)
    small, large = (open_space(Dinov2Spec(model=folder, image_size=size)) for size in (0, 48))
    assert large.encode_images(images).shape == (3, 32) and small.digest != large.digest
    assert not np.allclose(small.encode_images(images), large.encode_images(images), atol=1e-3)


def test_clip_kinds_keep_their_text_towers(open_clip_folder, transformers_folder) -> None:  # noqa: F811
    for spec in (OpenClipSpec(model=str(open_clip_folder)), ClipSpec(model=str(transformers_folder))):
        space = open_space(spec, Runtime(device="cpu"))
        assert space.encode_texts(["a red circle"]).shape == (1, 16) and n_members(space) == 1
        assert space.encode_images(pictures()).shape == (5, 16)


@pytest.mark.parametrize("fovea", [0.0, 0.3])
def test_blur_bank_is_the_space_on_blurred_pictures(folders, fovea: float) -> None:
    inner = Dinov2Spec(model=str(folders["dinov2"]), layers=(1, 2), pooling="cls")
    bank = open_space(BlurBankSpec(space=inner, kernels=(1, 9, 21), side=0, fovea=fovea))
    space, images = open_space(inner), pictures()
    embeds = bank.encode_images(images)
    assert embeds.shape == (5, 3 * 64) and bank.embed_dim == 192 and n_members(bank) == 6
    blurred = [images, *(foveal_blur(images, k, fovea) if fovea else gaussian_blur(images, k) for k in (9, 21))]
    members = split_members(embeds, 3)
    for member, expected in zip(np.moveaxis(members, 1, 0), blurred, strict=True):
        assert np.allclose(member, space.encode_images(expected), atol=1e-5)


def test_blur_bank_resizes_first(folders) -> None:
    inner = {"name": "siglip", "model": str(folders["siglip"])}
    bank = open_space({"name": "blur_bank", "space": inner, "kernels": [5], "side": 20})
    images = pictures(2, 40, 60)
    small = np.stack([np.asarray(Image.fromarray(i).resize((30, 20), Image.Resampling.BICUBIC)) for i in images])
    assert np.allclose(
        bank.encode_images(images), open_space(inner).encode_images(gaussian_blur(small, 5)), atol=1e-5
    )


def test_digests_follow_settings_and_weights_but_not_the_place(folders, tmp_path: Path) -> None:
    folder, copy = folders["dinov2"], tmp_path / "copy"
    shutil.copytree(folder, copy)
    kinds = [
        Dinov2Spec(model=str(folder)),
        Dinov2Spec(model=str(folder), layers=(1,), pooling="cls"),
        Dinov2Spec(model=str(folder), layers=(2,), pooling="cls"),
        Dinov2Spec(model=str(folder), layers=(2,), pooling="patch_mean"),
    ]
    kinds += [BlurBankSpec(space=kinds[0], kernels=k, side=s) for k, s in (((1, 3), 0), ((1, 5), 0), ((1, 3), 9))]
    digests = [open_space(kind).digest for kind in kinds]
    assert len(set(digests)) == len(kinds)
    assert open_space(Dinov2Spec(model=str(copy))).digest == digests[0]
    weights = load_file(copy / "model.safetensors")
    weights["layernorm.bias"] += 1
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert open_space(Dinov2Spec(model=str(copy))).digest != digests[0]


def test_a_folder_without_some_weights_is_refused(folders, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders["dinov2"], copy)
    weights = load_file(copy / "model.safetensors")
    del weights["encoder.layer.1.mlp.fc1.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of Dinov2Model"):
        open_space(Dinov2Spec(model=str(copy)))


def test_code_in_a_folder_is_not_run(folders, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders["dinov2"], copy)
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\nclass Processor: pass\n")
    for name, key in (("config.json", "AutoModel"), ("preprocessor_config.json", "AutoImageProcessor")):
        settings = json.loads((copy / name).read_text())
        settings["auto_map"] = {key: "evil.Model"}
        (copy / name).write_text(json.dumps(settings))
    assert open_space(Dinov2Spec(model=str(copy))).encode_images(pictures()).shape == (5, 32)
    assert not (tmp_path / "ran").exists()


def test_refusals(folders, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'rn50'"):
        open_space("rn51")
    with pytest.raises(ValueError, match=r"has the layers 1 \.\. 3, got \[4\]"):
        open_space(Dinov2Spec(model=str(folders["dinov2"]), layers=(4,), pooling="cls"))
    with pytest.raises(ValueError, match="class token"):
        open_space(SiglipSpec(model=str(folders["siglip"]), layers=(1,), pooling="cls"))
    with pytest.raises(ValueError, match="no CLIP folder"):
        open_space(Dinov2Spec(model=str(tmp_path / "absent")))
    for wrong in ({"layers": (1,)}, {"pooling": "cls"}):
        with pytest.raises(ValidationError, match="do not go with"):
            ClipSpec(model="a/b", **wrong)
    with pytest.raises(ValueError, match=r"uint8 \(n, h, w, 3\)"):
        open_space(Dinov2Spec(model=str(folders["dinov2"]))).encode_images(pictures().astype(np.float32))
    with pytest.raises(ValueError, match="do not divide"):
        split_members(np.zeros((2, 5), np.float32), 2)
    (tmp_path / "pickled").mkdir()
    shutil.copy(folders["dinov2"] / "preprocessor_config.json", tmp_path / "pickled")
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        open_space(Dinov2Spec(model=str(tmp_path / "pickled")))


def test_named_spaces_name_hub_models() -> None:
    plain = [spec.space if isinstance(spec, BlurBankSpec) else spec for spec in SPACES.values()]
    assert all(spec.model.count("/") == 1 for spec in plain)


def test_a_residual_network_of_open_clip(open_clip_folder, tmp_path: Path) -> None:  # noqa: F811
    """RN50 and its kin end in an attention pool instead of a class token."""
    import open_clip
    from open_clip.model import CLIP

    copy = tmp_path / "resnet"
    shutil.copytree(open_clip_folder, copy)
    settings = json.loads((copy / "open_clip_config.json").read_text())
    settings["model_cfg"]["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    (copy / "open_clip_config.json").write_text(json.dumps(settings))
    config = settings["model_cfg"]
    torch.manual_seed(0)
    model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"]).eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(weights, copy / "open_clip_model.safetensors")
    transform = open_clip.create_model_and_transforms(f"local-dir:{copy}")[2]
    images = pictures(2)
    with torch.no_grad():
        expected = model.encode_image(torch.stack([transform(Image.fromarray(image)) for image in images]))
    bank = open_space(BlurBankSpec(space=OpenClipSpec(model=str(copy)), kernels=(1, 3), side=0))
    assert np.allclose(split_members(bank.encode_images(images), 2)[:, 0], expected.numpy(), atol=1e-5)
