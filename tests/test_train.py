import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from alignment import study
from alignment.brain_model import BrainModel
from alignment.brain_training import BrainTraining
from alignment.fit import fit
from alignment.runtime import Runtime
from alignment.train import train
from alignment.train_config import TrainConfig, choose
from encoders.catalogue import encoder_names
from encoders.simulate import BrainSimulator
from tests.launched import kill_at, launch
from tests.toy_brain import toy_splits, write_toy_targets


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    encoder = {
        "name": "brain_module", "n_virtual": 16, "width": 16, "fourier_width": 32, "spatial_dropout": 0.0, "n_convs": 0,
        "init": "linear", "head_width": 0, "time_agg": "linear", "n_time_weights": 8,
    }  # fmt: skip
    base = {
        "targets": str(write_toy_targets(folder / "targets.safetensors")),
        "modalities": {
            "eeg": {"layout": "things_eeg2_63", "encoder": encoder},
            "meg": {"layout": "ctf275", "encoder": encoder},
        },
        "simulation": {"n_subjects": 2, "noise_scale": {"eeg": 0.05, "meg": 0.05}},
        "data": {"n_train_images": 100, "n_val_images": 20, "train_repetitions": 2},
        "fit": {"max_steps": 30, "lr": 0.005, "schedule": "onecycle", "validate_every": 15, "checkpoint_every": 5,
                "log_every": 1},
        "batch_size": 40,
        "threads": 1,
    }  # fmt: skip
    return base | changes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    config = TrainConfig.model_validate(settings(folder))
    return folder / "run", train(config, folder / "run")


def test_run_folder_holds_everything(run: tuple[Path, dict[str, Any]]) -> None:
    folder, report = run
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.yaml", "environment.json", "log.jsonl", "report.json"), *("checkpoints", "best", "brain")
    }  # fmt: skip
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(report))
    assert report["selection"]["split"] == "val" and list(report["scores"]) == ["eeg", "meg", "eeg+meg"]
    written = TrainConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text()))
    assert written.batch_size == 40


def test_training_learns(run: tuple[Path, dict[str, Any]]) -> None:
    lines = [json.loads(line) for line in (run[0] / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    averaged = run[1]["scores"]["eeg+meg"]["averaged_4"]
    assert averaged["network"]["top_1"] > 3 * averaged["network"]["chance_top_1"]


def test_exported_model_reads_recordings_as_in_the_report(run: tuple[Path, dict[str, Any]]) -> None:
    folder, report = run
    config = TrainConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text()))
    splits = toy_splits()
    simulator = BrainSimulator(config.simulation, 16, splits["train"].embeds, splits["train"].concepts)
    model = BrainModel.load(folder / "brain", Runtime(device="cpu"))
    shown = splits["test"].embeds
    hits = []
    for subject in range(2):
        recordings = [
            simulator.record(
                shown, modality=modality, subject=subject, n_repetitions=4, seed=3, stimulus=[str(i) for i in range(20)]
            )
            for modality in ("eeg", "meg")
        ]
        answer = model.embed(recordings, average=True)
        assert answer.report.subject == f"sim-{subject + 1:02d}"
        hits.append(model.similarity(answer.brain_embeds, shown, ("eeg", "meg")).argmax(axis=1) == np.arange(20))
        spread = (answer.image_embeds - shown.mean(axis=0)).std() / (shown - shown.mean(axis=0)).std()
        assert 0.6 < spread < 1.6
    assert np.mean(hits) == pytest.approx(report["scores"]["eeg+meg"]["averaged_4"]["network"]["top_1"], abs=0.03)


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> BrainTraining:
    """Recordings of both modalities, and encoders that draw random numbers in training."""
    base = settings(tmp_path_factory.mktemp("paired"))
    for one in base["modalities"].values():
        one["encoder"] = {**one["encoder"], "spatial_dropout": 0.2, "dropout": 0.3}
    fit_settings = {"max_steps": 12, "lr": 0.01, "grad_clip": 0.05, "log_every": 1}
    return BrainTraining(TrainConfig.model_validate({**base, "fit": fit_settings}), Runtime(threads=1))


def trained(paired: BrainTraining, fusion: dict[str, Any], names: tuple[str, ...], folder: Path) -> BrainTraining:
    settings = choose({**paired.config.model_dump(), "fusion": fusion}, modalities=names)
    training = BrainTraining(settings, paired.runtime, paired.study.view(names))
    fit(training.module, training.loss, training.batch_at, settings.fit, paired.runtime, folder, progress=False)
    return training


@pytest.mark.parametrize(
    "fusion",
    [
        {"name": "late", "modality_dropout": 0.0},
        {"name": "concat"},
        {"name": "cross_attention", "width": 8, "heads": 2},
    ],
    ids=lambda fusion: fusion["name"],
)
def test_an_encoder_in_a_fusion_becomes_the_one_that_it_becomes_alone(
    fusion: dict[str, Any], paired: BrainTraining, tmp_path: Path
) -> None:
    both = trained(paired, fusion, ("eeg", "meg"), tmp_path / "both").module.state_dict()
    lines = [json.loads(line) for line in (tmp_path / "both" / "log.jsonl").read_text().splitlines()]
    assert min(line["grad_norm"] for line in lines) > 3 * 0.05  # clipping is at work
    for name in ("eeg", "meg"):
        alone = trained(paired, {"name": "single"}, (name,), tmp_path / name).module.state_dict()
        assert f"terms.{name}.image_map.weight" in alone
        for key, value in alone.items():
            assert torch.equal(both[key], value), key
    scales = [both[f"terms.{name}.loss.scale.logit_scale"].item() for name in ("eeg", "meg", "eeg+meg")]
    assert len(set(scales)) == 3


def test_one_network_over_all_channels_is_one_branch(paired: BrainTraining, tmp_path: Path) -> None:
    training = trained(paired, {"name": "early"}, ("eeg", "meg"), tmp_path)
    assert {training.module.branch_of(name) for name, _ in training.module.named_parameters()} == {""}
    batch = training.batch_at(0, 0, 1)
    training.module.eval()
    loss, logs = training.loss(training.module, batch)
    mix = training.config.loss.contrastive_weight
    terms = [mix * logs[f"{name}_contrastive"] + (1 - mix) * logs[f"{name}_mse"] for name in ("eeg", "meg", "eeg+meg")]
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item())


def test_the_test_split_is_not_read_before_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError("the test split was read")

    splits: dict[str, Any] = {**toy_splits(), "test": Untouchable()}
    monkeypatch.setattr(study, "read_targets", lambda path: splits)
    config = TrainConfig.model_validate(settings(tmp_path))
    training = BrainTraining(config, Runtime(device="cpu"))
    assert set(training.validate(training.module)) >= {"score", "eeg_top_1", "eeg+meg_two_way"}
    batch = training.batch_at(0, 0, 1)
    loss, logs = training.loss(training.module, batch)
    assert torch.isfinite(loss) and "eeg+meg_contrastive" in logs


def test_settings_that_do_nothing_or_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="modality_dropout 0.3 has no effect"):
        config = TrainConfig.model_validate(settings(tmp_path, fusion={"modality_dropout": 0.3}))
        BrainTraining(config, Runtime(device="cpu"))
    with pytest.raises(ValueError, match="learning_rate"):
        TrainConfig.model_validate(settings(tmp_path, fit={"max_steps": 1, "learning_rate": 1}))
    unknown = {"eeg": {"layout": "things_eeg2_63", "encoder": "nonsense"}}
    with pytest.raises(ValueError, match="'nonsense' is unknown.*brain_module_demo"):
        BrainTraining(TrainConfig.model_validate(settings(tmp_path, modalities=unknown)), Runtime(device="cpu"))


def test_demo_config_is_valid(project_root: Path) -> None:
    config = TrainConfig.model_validate(yaml.safe_load((project_root / "configs" / "demo.yaml").read_text()))
    assert set(config.modalities) == {"eeg", "meg"}
    assert all(one.network() for one in config.modalities.values())


@pytest.mark.slow
def test_launched_on_two_processes_killed_and_resumed(tmp_path: Path) -> None:
    config, run_dir = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(settings(tmp_path)))
    log = run_dir / "log.jsonl"
    kill_at(launch("cpu2", config, run_dir), log, 9)
    done = log.read_text().splitlines()
    assert launch("cpu2", config, run_dir).wait(timeout=600) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, 31)) and (tmp_path / "run" / "report.json").exists()
    again = {line["step"]: line["loss"] for line in lines if "loss" in line}
    for line in map(json.loads, done[:-1]):
        if "loss" in line:
            assert again[line["step"]] == line["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", encoder_names())
def test_every_encoder_of_the_catalogue_can_be_chosen(name: str, tmp_path: Path) -> None:
    small = {"n_train_images": 40, "n_val_images": 10, "train_repetitions": 1, "test_repetitions": 2}
    changes = {"data": small, "batch_size": 20, "simulation": {"n_subjects": 1}}
    config = choose(settings(tmp_path, **changes), encoder=name, modalities=["eeg"], steps=2)
    report = train(config, tmp_path / "run")
    assert report["selection"]["steps"] == 2 and report["skipped_steps"] == 0
    assert report["scores"]["eeg"]["averaged_2"]["network"]["n"] == 20
    assert BrainModel.load(tmp_path / "run" / "brain", Runtime(device="cpu")).encoders["eeg"].name == name
