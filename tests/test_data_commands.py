"""A laboratory's own files, from converter to evaluated model, by the commands that the README names."""

import json
from pathlib import Path

import pytest
import yaml
from own_lab_files import IMAGES, run, settings, write_pictures, write_recordings, write_tower

from alignment.target_table import read_target_table
from encoders.dataset_sources import SOURCES
from encoders.store import EpochStore
from serving.cli import main
from serving.data_commands import LAYOUTS


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
