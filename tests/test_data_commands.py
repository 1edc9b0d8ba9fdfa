"""A laboratory's own files, from converter to evaluated model, by the commands that the README names."""

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

from alignment.target_table import read_target_table
from encoders.dataset_sources import SOURCES
from encoders.store import EpochStore
from serving.cli import main
from serving.data_commands import LAYOUTS

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
    """Two people look at every picture three times."""
    folder.mkdir()
    embeds = 3 * (2 + np.random.default_rng(1).standard_normal((len(IMAGES), 16))).astype(np.float32)
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


def test_from_own_files_to_an_evaluated_and_calibrated_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "pictures")
    write_tower(tmp_path / "tower")
    write_recordings(tmp_path / "lab")
    store = tmp_path / "eeg.store"
    columns = ("--option", "stimulus_column=picture", "--option", "concept_column=object")
    told = run(capsys, "convert", "own_lab", tmp_path / "lab", "--out", store, *columns)
    assert (told["n_epochs"], told["n_channels"], told["sfreq"]) == (2 * 3 * len(IMAGES), 63, 100.0)
    assert sorted(set(EpochStore.open(store).metadata["image"].to_pylist())) == IMAGES

    space = json.dumps({"name": "dinov2", "model": str(tmp_path / "tower")})
    targets = tmp_path / "targets.safetensors"
    features = ("features", tmp_path / "pictures", "--store", store, "--space", space, "--out", targets)
    told = run(capsys, *features, "--cache", tmp_path / "cache")
    table = read_target_table(targets)
    assert told["n_pictures"] == len(IMAGES) == len(table) and table.concepts[0] == "c00" and all(table.digests)

    config = tmp_path / "lab.yaml"
    config.write_text(yaml.safe_dump(settings(tmp_path)))
    told = run(capsys, "prepare", "--config", config)
    assert told["n_pictures"] == {"train": 28, "val": 10, "test": 10}
    run_dir = tmp_path / "run"
    report = run(capsys, "train", "--config", config, "--run-dir", run_dir, "--data", tmp_path)
    assert "test split was not read" in report["data"]

    found = run(capsys, "evaluate", "--run-dir", run_dir)
    assert found["simulated"] is False and found["figures"][0]["gallery_size"] == 10
    assert (run_dir / "evaluation" / "report.json").exists()
    assert "<html" in (run_dir / "evaluation" / "report.html").read_text()

    model, out = run_dir / "brain", tmp_path / "people"
    told = run(
        capsys, "calibrate", "--model", model, "--store", store, "--split", "", "--subject", "anna", "--out", out
    )
    assert "label-free" in told["provenance"] and Path(told["file"]).exists()


def test_names_of_layouts_are_those_of_the_converters() -> None:
    assert set(LAYOUTS) == set(SOURCES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("convert", "own_lab", "nowhere", "--out", "x"), "nowhere"),
        (("convert", "own_lab", ".", "--out", "x", "--option", "tmax"), "expected NAME=VALUE"),
        (("features", "nowhere", "--store", "nowhere", "--space", "vit", "--out", "x"), "allowed are"),
        (("evaluate", "--run-dir", "nowhere"), "config.yaml"),
        (
            ("calibrate", "--model", "m", "--store", "s", "--subject", "a", "--labelled", "--out", "o"),
            "needs --targets",
        ),
    ],
)
def test_wrong_input_is_named(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(arguments)) == 2
    assert said in capsys.readouterr().err
