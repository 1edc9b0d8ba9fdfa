"""A laboratory's own files on disk, as somebody brings them: pictures, recordings of two people, a tiny image tower."""

import json
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pandas
import pytest
import yaml
from PIL import Image
from toy_brain import ToyBrain

from alignment.image_spaces import open_space
from serving.cli import main

N_CONCEPTS, PER_CONCEPT = 24, 2
IMAGES = [f"c{c:02d}/c{c:02d}_{p}.png" for c in range(N_CONCEPTS) for p in range(PER_CONCEPT)]


def write_pictures(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for name in IMAGES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(folder / name)


def write_tower(folder: Path) -> None:
    """A tiny DINOv2 with random weights in the format of the published ones."""
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)


def write_recordings(folder: Path) -> None:
    """Two people look at every picture three times; what they see lies beside, as the tiny tower embeds it."""
    folder.mkdir()
    space = open_space({"name": "dinov2", "model": str(folder.parent / "tower")})
    shown = [np.asarray(Image.open(folder.parent / "pictures" / name)) for name in IMAGES]
    embeds = space.encode_images(np.stack(shown))
    embeds = 3 * (2 + (embeds - embeds.mean(axis=0)) / embeds.std(axis=0))
    for index, person in enumerate(("anna", "ben")):
        epochs = ToyBrain(0.3).record(embeds, modality="eeg", subject=index, n_repetitions=3, stimulus=IMAGES)
        info = mne.create_info(list(epochs.ch_names), epochs.sfreq, "eeg")
        table = pandas.DataFrame({"picture": epochs.stimulus, "object": [one[:3] for one in epochs.stimulus]})
        n = epochs.n_epochs
        events = np.column_stack([np.arange(n) * 100, np.zeros(n, int), np.ones(n, int)])
        made = mne.EpochsArray(epochs.data, info, events, epochs.tmin, metadata=table, verbose="error")
        made.set_montage("standard_1005", verbose="error").save(folder / f"{person}-epo.fif", verbose="error")


def settings(folder: Path) -> dict[str, Any]:
    encoder = {
        "name": "brain_module", "n_virtual": 16, "width": 16, "fourier_width": 32, "spatial_dropout": 0.0, "n_convs": 0,
        "init": "linear", "head_width": 0, "time_agg": "linear", "n_time_weights": 8,
    }  # fmt: skip
    return {
        "targets": str(folder / "targets.safetensors"),
        "modalities": {"eeg": {"layout": "recorded", "encoder": encoder}},
        "data": {
            "name": "recorded", "stores": {"eeg": str(folder / "eeg.store")}, "folder": str(folder / "prepared"),
            "n_test_concepts": 5, "n_val_concepts": 5, "n_fit_epochs": 100,
        },
        "fusion": {"name": "single"},
        "fit": {"max_steps": 20, "lr": 0.005, "validate_every": 10, "checkpoint_every": 10},
        "batch_size": 20,
        "threads": 1,
    }  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def train_own_lab(folder: Path) -> Path:
    """Go from files to a training and its evaluation by the commands of the README; returns the run's folder."""
    write_pictures(folder / "pictures")
    write_tower(folder / "tower")
    write_recordings(folder / "lab")
    store, targets, config = folder / "eeg.store", folder / "targets.safetensors", folder / "lab.yaml"
    config.write_text(yaml.safe_dump(settings(folder)))
    space = json.dumps({"name": "dinov2", "model": str(folder / "tower")})
    columns = ["--option", "stimulus_column=picture", "--option", "concept_column=object"]
    cache = ["--cache", folder / "cache"]
    for command in (
        ["convert", "own_lab", folder / "lab", "--out", store, *columns],
        ["features", folder / "pictures", "--store", store, "--space", space, "--out", targets, *cache],
        ["prepare", "--config", config],
        ["train", "--config", config, "--run-dir", folder / "run", "--data", folder],
        ["evaluate", "--run-dir", folder / "run"],
    ):
        assert main([*map(str, command), "--json"]) == 0
    return folder / "run"
