"""Configs of public data sets: each is honest about itself, and each trains on a small laboratory of the same kind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from alignment.brain_training import BrainTraining
from alignment.image_spaces import SPACES, BlurBankSpec, ClipSpec
from alignment.recorded_sources import prepare
from alignment.runtime import Runtime
from alignment.target_table import read_target_table, write_target_table
from alignment.train_config import TrainConfig, choose
from encoders.augment import SubjectMixupStep
from tests.toy_lab import build_lab

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("things_*.yaml"))
TO_BEAT = {
    "things_eeg2_within": ("82 / 97", "91.3 / 98.8"),
    "things_eeg2_loso": ("25 / 52", "34.4 / 64.8"),
    "things_meg_within": ("46 / 71", "48.1 / 72.5"),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("lab")
    return folder, build_lab(folder)


def settings_for(path: Path, folder: Path, lab: dict[str, Any]) -> dict[str, Any]:
    """Put the laboratory in place of the public data: its stores, as many layers, its people, short epochs."""
    settings: dict[str, Any] = yaml.safe_load(path.read_text())
    n_members = TrainConfig.model_validate(settings).target_map.n_members
    table = read_target_table(lab["targets"])
    generator = np.random.default_rng(5)
    layers = [table.embeds + 0.5 * generator.standard_normal(table.embeds.shape) for _ in range(n_members)]
    bank = np.concatenate(layers, axis=1).astype(np.float32)
    targets = folder / f"bank-{n_members}.safetensors"
    write_target_table(targets, replace(table, embeds=bank))
    people = {"eeg": "sim-01", "meg": "sim-03"}
    for one in settings["modalities"].values():
        one["preprocess"] |= {"sfreq": 100.0, "h_freq": 40.0, "n_times": 55}
    data = settings["data"]
    names = list(settings["modalities"])
    data |= {"stores": {name: lab["data"]["stores"][name] for name in names}, "folder": str(folder / path.stem)}
    data |= {key: [people[names[0]]] for key in ("subjects", "held_out_subjects") if data.get(key)}
    settings |= {"targets": str(targets), "batch_size": 24, "threads": 1}
    settings["data"] |= {"n_val_concepts": 8, "n_fit_epochs": 60}
    if settings.get("group_size"):
        settings["group_size"] = 1 if data.get("held_out_subjects") else 2  # the laboratory has two people
    if settings["target_map"].get("embed_dim"):
        settings["target_map"]["embed_dim"] = 8
    settings["fit"] |= {"max_steps": 2, "warmup_steps": 0}
    return settings


def test_there_is_one_for_every_regime() -> None:
    assert {path.stem for path in CONFIGS} == {
        "things_eeg1", "things_eeg2_loso", "things_eeg2_within", "things_eeg2_within_blurs", "things_eeg_meg",
        "things_meg_loso", "things_meg_within",
    }  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_that_it_was_not_run_and_what_it_has_to_beat(path: Path) -> None:
    comment = " ".join(line[1:] for line in path.read_text().splitlines() if line.startswith("#")).lower()
    assert "not yet run on the real data" in comment and "chance 0.5 / 2.5" in comment
    for figure in TO_BEAT.get(path.stem, ()):
        assert figure in comment


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_layers_of_the_mix_are_those_of_the_space(path: Path) -> None:
    config = TrainConfig.model_validate(yaml.safe_load(path.read_text()))
    assert config.target_map.mixing is not None
    spec = SPACES["rn50_blurs" if "blurs" in path.stem else "vit_bigg_14_layers"]
    members = spec.kernels if isinstance(spec, BlurBankSpec) else spec.layers if isinstance(spec, ClipSpec) else ()
    assert tuple(config.target_map.mixing.layers) == tuple(float(one) for one in members)
    if config.group_size:
        assert config.batch_size % config.group_size == 0
        assert any(isinstance(step, SubjectMixupStep) for step in config.augment.steps)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_trains_on_a_laboratory_of_its_kind(path: Path, lab: tuple[Path, dict[str, Any]]) -> None:
    config = TrainConfig.model_validate(settings_for(path, *lab))
    prepare(config)
    training = BrainTraining(config, Runtime(threads=1))
    loss, _ = training.loss(training.module, training.batch_at(0, 0, 1))
    loss.backward()
    moved = [name for name, one in training.module.named_parameters() if one.grad is not None and one.grad.any()]
    assert loss.isfinite() and any(name.endswith("image_map.mixing.global_logits") for name in moved) and len(moved) > 4
    assert 0 <= training.validate(training.module.eval())["score"] <= 1
    assert not {"sim-01", "sim-03"} & set(training.study.subjects[next(iter(config.modalities))]) or not (
        config.data.held_out_subjects  # type: ignore[union-attr]
    )


def test_people_of_the_command_line_replace_those_of_the_file() -> None:
    within = yaml.safe_load((CONFIGS[0].parent / "things_eeg2_within.yaml").read_text())
    chosen = choose(within, subjects=["sub-07"])
    assert chosen.data.subjects == ("sub-07",)  # type: ignore[union-attr]
    loso = yaml.safe_load((CONFIGS[0].parent / "things_eeg2_loso.yaml").read_text())
    chosen = choose(loso, held_out=["sub-07"])
    assert chosen.data.held_out_subjects == ("sub-07",)  # type: ignore[union-attr]
    demo = yaml.safe_load((CONFIGS[0].parent / "demo.yaml").read_text())
    with pytest.raises(ValueError, match="no effect on simulated data"):
        choose(demo, subjects=["sub-07"])


def test_channels_are_taken_in_the_order_of_the_config(lab: tuple[Path, dict[str, Any]]) -> None:
    path = next(path for path in CONFIGS if path.stem == "things_eeg2_within")
    settings = settings_for(path, *lab)
    names = settings["modalities"]["eeg"]["channels"]
    prepare(TrainConfig.model_validate(settings))
    training = BrainTraining(TrainConfig.model_validate(settings), Runtime(threads=1))
    assert training.study.preprocessors["eeg"].layout.ch_names == tuple(names) and len(names) == 17
    assert training.batch_at(0, 0, 1)["data"]["eeg"].shape[1] == 17
    settings["modalities"]["eeg"]["channels"] = ["Oz", "Qz"]
    with pytest.raises(ValueError, match=r"lacks the channels \['Qz'\]"):
        BrainTraining(TrainConfig.model_validate(settings), Runtime(threads=1))
