"""The map on the picture's side: one matrix in the end, learned weights of layers, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignment.brain_model import BrainModel
from alignment.brain_training import BrainTraining
from alignment.recorded_sources import prepare
from alignment.runtime import Runtime
from alignment.target_map import TargetMap, TargetMapConfig
from alignment.target_space import TargetSpace
from alignment.target_table import read_target_table, write_target_table
from alignment.train import train
from alignment.train_config import TrainConfig
from tests.toy_brain import EMBED_DIM
from tests.toy_lab import build_lab

MIXED = TargetMapConfig.model_validate({"mixing": {"layers": [1, 2], "centre": 1.5, "spread": 4.0}})
CONTRASTIVE = {"name": "info_nce"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Make a laboratory whose targets have two layers: noise without meaning, and what people see."""
    folder = tmp_path_factory.mktemp("lab")
    settings = build_lab(folder)
    table = read_target_table(settings["targets"])
    noise = np.random.default_rng(3).standard_normal(table.embeds.shape).astype(np.float32)
    path = folder / "bank.safetensors"
    write_target_table(path, replace(table, embeds=np.concatenate([noise, 5 * table.embeds], axis=1)))
    target_map = {**MIXED.model_dump(), "embed_dim": 12}
    changed = {**settings, "targets": str(path), "loss": CONTRASTIVE, "target_map": target_map}
    changed["data"] = {**settings["data"], "folder": str(folder / "bank")}
    prepare(TrainConfig.model_validate(changed))
    return changed


@pytest.mark.parametrize("embed_dim", [0, 3], ids=["square", "narrow"])
@pytest.mark.parametrize("projection_dim", [0, 5])
def test_mix_and_map_are_one_matrix(embed_dim: int, projection_dim: int) -> None:
    torch.manual_seed(0)
    mixing = {"layers": (8, 16, 24), "centre": 16, "spread": 4, "projection_dim": projection_dim}
    target_map = TargetMap(TargetMapConfig.model_validate({"mixing": mixing, "embed_dim": embed_dim}), 18, 2)
    assert target_map.mixing is not None
    torch.nn.init.normal_(target_map.mixing.global_logits)
    targets = torch.randn(7, 18)
    mapped = target_map.eval()(targets, torch.zeros(7, dtype=torch.int64))
    assert mapped.shape == (7, embed_dim or projection_dim or 6)
    assert torch.allclose(targets @ target_map.basis(), mapped, atol=1e-5)


def test_it_starts_as_the_identity_or_keeps_lengths_in_fewer_dimensions() -> None:
    targets = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(TargetMap(TargetMapConfig(), 8)(targets), targets)
    narrow = TargetMap(TargetMapConfig(embed_dim=3), 8)
    assert torch.allclose(narrow.weight @ narrow.weight.T, torch.eye(3), atol=1e-6)


def test_members_are_normalised_one_by_one_and_averaged_before_training() -> None:
    bank = np.random.default_rng(0).standard_normal((50, 12)).astype(np.float32) + 1
    space = TargetSpace.fit(bank, 3)
    assert (space.target_dim, space.embed_dim) == (12, 4)
    longer = bank * np.repeat([1, 10, 100], 4).astype(np.float32)  # a member's length does not matter
    assert np.allclose(space.standardise(longer), space.standardise(bank), atol=1e-5)
    members = space.standardise(bank).reshape(50, 3, 4)
    assert np.allclose(space.standardise(bank) @ space.basis, members.mean(axis=1), atol=1e-6)
    again = TargetSpace.from_arrays(space.arrays())
    assert again.n_members == 3 and np.array_equal(again.standardise(bank), space.standardise(bank))
    with pytest.raises(ValueError, match="do not divide into 5 members"):
        TargetSpace.fit(bank, 5)


def test_training_finds_the_layer_that_the_brain_sees(lab: dict[str, Any], tmp_path: Path) -> None:
    config = TrainConfig.model_validate({**lab, "fit": {**lab["fit"], "max_steps": 90}})
    report = train(config, tmp_path)
    assert report["selection"]["score"] > 0.3  # chance 0.04
    model = BrainModel.load(tmp_path / "brain", Runtime(device="cpu"))
    for names in (("eeg",), ("meg",), ("eeg", "meg")):
        basis = model.space_of(names).basis
        assert basis.shape == (2 * EMBED_DIM, 12) and model.embed_dim == 2 * EMBED_DIM
        noise, seen = np.linalg.norm(basis.reshape(2, -1), axis=1)
        assert seen > 1.1 * noise  # equal at first
    embeds = model.encode(
        {"eeg": np.zeros((2, *shape_of(model, "eeg")), np.float32)}, model.person_index("sim-01")
    )  # fmt: skip
    assert embeds.shape == (2, 12) and model.projector(embeds, "eeg").shape == (2, 2 * EMBED_DIM)
    table = read_target_table(lab["targets"])
    assert model.similarity(embeds, table.embeds[:4], ["eeg"]).shape == (2, 4)


def shape_of(model: BrainModel, name: str) -> tuple[int, int]:
    return model.preprocessors[name].layout.n_channels, model.preprocess_configs[name].n_times


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "cosine"},
        {"name": "combined", "contrastive_weight": 0.8},
        {"name": "info_nce", "image_map": False},
        {"name": "sum", "terms": [{"weight": 1, "loss": CONTRASTIVE}, {"weight": 1, "loss": {"name": "mse"}}]},
    ],
    ids=["cosine", "combined", "no map", "sum"],
)
def test_a_loss_on_the_targets_themselves_is_refused(lab: dict[str, Any], loss: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="compares answers with the targets themselves"):
        BrainTraining(TrainConfig.model_validate({**lab, "loss": loss}), Runtime(threads=1))


def test_a_combined_loss_without_its_second_part_is_accepted(lab: dict[str, Any]) -> None:
    loss = {"name": "combined", "contrastive_weight": 1.0}
    training = BrainTraining(TrainConfig.model_validate({**lab, "loss": loss}), Runtime(threads=1))
    value, _ = training.loss(training.module, training.batch_at(0, 0, 1))
    assert value.isfinite()


def test_targets_that_are_no_such_bank_are_named(lab: dict[str, Any]) -> None:
    mixing = {"layers": [1, 2, 3], "centre": 2, "spread": 1}
    with pytest.raises(ValueError, match="do not divide into"):
        BrainTraining(TrainConfig.model_validate({**lab, "target_map": {"mixing": mixing}}), Runtime(threads=1))
