"""Random models of a few thousand weights in the real file formats, for tests of everything above them."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from encoders.epochs import SignalEpochs
from encoders.sensors import standard_layout

EMBED_DIM = 128
IMAGE_SIZE = 32
LAYOUTS = {"eeg": "things_eeg2_63", "meg": "ctf275"}
AMPLITUDES = {"eeg": 10e-6, "meg": 200e-15}
SUBJECTS = ("sim-01", "sim-02")


def tiny_recording(kind: str = "eeg", n: int = 2, *, seed: int = 0, subject: str = "sim-01") -> SignalEpochs:
    """Make noise that has the sensors, units and time axis of a recording; stimuli are "image-0", "image-1", ..."""
    layout = standard_layout(LAYOUTS[kind])
    rng = np.random.default_rng([seed, len(kind), layout.n_channels])
    return SignalEpochs(
        data=(AMPLITUDES[kind] * rng.standard_normal((n, layout.n_channels, 100))).astype(np.float32),
        sfreq=100.0,
        tmin=-0.2,
        ch_names=layout.ch_names,
        ch_types=layout.ch_types,
        positions=layout.positions,
        subject=subject,
        stimulus=tuple(f"image-{i}" for i in range(n)),
    )


def make_tiny_bundle(folder: Path, *, seed: int = 0, retrieves: bool = False) -> Path:
    """Write a complete bundle of random weights: 63-channel EEG and CTF-275 MEG in, 32 px or gallery pictures out."""
    from functools import partial

    from alignment.brain_model import BrainModel
    from alignment.calibrate import ConfidenceNull, surrogates
    from alignment.runtime import Runtime
    from generation.assemble import assemble_bundle
    from generation.bundle import BundleParts
    from generation.gallery import Gallery
    from generation.image_decoder import RetrievalConfig, StableUnCLIPConfig
    from generation.pipeline import best_similarity

    runtime = Runtime(device="cpu")
    rng = np.random.default_rng(seed)
    gallery = Gallery(
        image_embeds=rng.normal(0.2, 1.0, size=(20, EMBED_DIM)).astype(np.float32),
        thumbs=rng.integers(0, 256, size=(20, 16, 16, 3), dtype=np.uint8),
        names=tuple(f"picture-{i:02d}" for i in range(20)),
        captions=tuple(f"random picture number {i}" for i in range(20)),
    )
    scratch = folder.parent / f".{folder.name}-parts"
    brain = make_tiny_brain(scratch / "brain", gallery.image_embeds, seed=seed)
    score = partial(best_similarity, BrainModel.load(brain, runtime), gallery)
    noise = {"eeg": [tiny_recording("eeg", 40, seed=9)], "meg": [tiny_recording("meg", 40, seed=9)]}
    noise["eeg+meg"] = noise["eeg"] + noise["meg"]
    null = {key: np.sort(score([surrogates(part, "white", 1) for part in parts])) for key, parts in noise.items()}
    assemble_bundle(
        folder,
        BundleParts(
            brain=brain,
            decoder=None if retrieves else make_tiny_unclip(scratch / "unclip", seed=seed),
            gallery=gallery,
            null=ConfidenceNull(null),
            example=tiny_recording("eeg"),
        ),
        decoder=RetrievalConfig() if retrieves else StableUnCLIPConfig(num_inference_steps=2, guidance_scale=2.0),
        data_statement="random weights; no data of any person",
        configs={"seed": seed},
        scores={"top_1": 0.005, "chance": 0.005},
        runtime=runtime,
    )
    shutil.rmtree(scratch)
    return folder


def make_tiny_brain(folder: Path, image_embeds: np.ndarray, *, seed: int = 0) -> Path:
    """Save a brain model of random weights for EEG and MEG whose targets have the statistics of ``image_embeds``."""
    from alignment.brain_model import BrainModel
    from alignment.projector import Projector
    from alignment.runtime import Runtime
    from alignment.target_space import TargetSpace
    from encoders.build import EEGProjectConfig
    from encoders.late_fusion import LateFusionConfig
    from encoders.preprocess import Preprocessor, default_preprocess

    torch.manual_seed(seed)
    d = image_embeds.shape[1]
    combinations = ("eeg", "meg", "eeg+meg")
    projector = Projector(
        weights={key: np.eye(d, dtype=np.float32) for key in combinations},
        centres={key: np.zeros(d, dtype=np.float32) for key in combinations},
        mean=image_embeds.mean(axis=0),
    )
    BrainModel(
        preprocessors={
            name: Preprocessor(default_preprocess(name), standard_layout(layout)).fit(tiny_recording(name, 20, seed=3))
            for name, layout in LAYOUTS.items()
        },
        encoders={name: EEGProjectConfig() for name in LAYOUTS},
        fusion_config=LateFusionConfig(),
        subjects=SUBJECTS,
        spaces=TargetSpace.fit(image_embeds),
        projector=projector,
        runtime=Runtime(device="cpu"),
    ).save(folder)
    return folder


def make_tiny_unclip(folder: Path, *, embed_dim: int = EMBED_DIM, towers: bool = False, seed: int = 0) -> Path:
    """Save a Stable unCLIP folder of random weights: 32 px, DDIM, v-prediction.

    Without ``towers`` the folder has no image and text encoder, but a stored empty prompt.
    """
    from diffusers import DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
    from transformers import CLIPImageProcessor

    from generation.empty_prompt import save_empty_prompt

    torch.manual_seed(seed)
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=embed_dim)
    normalizer.mean.data.normal_(std=0.3)
    normalizer.std.data.uniform_(0.5, 1.5)
    pipeline = StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor() if towers else None,
        image_encoder=_tiny_vision(embed_dim) if towers else None,
        image_normalizer=normalizer,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tiny_tokenizer(folder.parent / f"{folder.name}-tokenizer") if towers else None,
        text_encoder=_tiny_text() if towers else None,
        unet=_tiny_unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * embed_dim),
        scheduler=DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False),
        vae=_tiny_vae(),
    )
    pipeline.save_pretrained(folder)
    if not towers:
        save_empty_prompt(folder, torch.zeros(1, 4, 16))
    return folder


def make_tiny_image_variation(folder: Path, *, embed_dim: int = EMBED_DIM, seed: int = 0) -> Path:
    """Save a Stable Diffusion image variation folder of random weights, image tower included: 32 px, DDIM."""
    from diffusers import DDIMScheduler, StableDiffusionImageVariationPipeline
    from transformers import CLIPImageProcessor

    torch.manual_seed(seed)
    StableDiffusionImageVariationPipeline(
        vae=_tiny_vae(),
        image_encoder=_tiny_vision(embed_dim),
        unet=_tiny_unet(cross_attention_dim=embed_dim),
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def _tiny_unet(**conditioning: object) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    settings: dict[str, object] = {
        "sample_size": IMAGE_SIZE // 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(settings | conditioning))


def _tiny_vae() -> torch.nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
    )


def _tiny_vision(embed_dim: int) -> torch.nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=embed_dim,
    )
    return CLIPVisionModelWithProjection(config)


def _tiny_text() -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config)


def tiny_tokenizer(folder: Path) -> object:
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    vocabulary = ["<|startoftext|>", "<|endoftext|>", "a", "b", "a</w>", "b</w>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=4)
