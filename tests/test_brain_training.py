"""Training on prepared recordings of different people: it learns, never sees test epochs, and exports a model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from alignment.brain_model import BrainModel
from alignment.brain_training import BrainTraining, record_study
from alignment.fit import fit
from alignment.pairs import Pairs, TargetSplit, write_targets
from alignment.recorded_sources import prepare
from alignment.runtime import Runtime
from alignment.train import report_text, train
from alignment.train_config import TrainConfig
from encoders.store import EpochStore
from tests.toy_brain import EMBED_DIM
from tests.toy_lab import build_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = build_lab(tmp_path_factory.mktemp("lab"))
    prepare(TrainConfig.model_validate(settings))
    return settings


@pytest.fixture(scope="module")
def run(lab: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    chosen = TrainConfig.model_validate({**lab, "fit": {**lab["fit"], "max_steps": 90}})
    return folder, train(chosen, folder)


def test_it_learns_from_recordings_and_says_that_the_test_was_not_read(run: tuple[Path, dict[str, Any]]) -> None:
    folder, report = run
    assert report["selection"]["score"] > 0.3 and report["n_val_images"] == 24  # chance 0.04
    assert "scores" not in report and "test split was not read" in report["data"]
    assert "chance 0.0417" in report_text(report) and "phosphene evaluate" in report_text(report)
    assert (folder / "config.yaml").exists() and (folder / "log.jsonl").exists()


def test_the_exported_model_reads_the_stores_epochs(lab: dict[str, Any], run: tuple[Path, dict[str, Any]]) -> None:
    model = BrainModel.load(run[0] / "brain", Runtime(device="cpu"))
    assert model.people == {"eeg": ("sim-01", "sim-02"), "meg": ("sim-03", "sim-04")}
    store = EpochStore.open(lab["data"]["stores"]["meg"])
    rows = np.flatnonzero(
        (np.array(store.metadata["subject"].to_pylist()) == "sim-04")
        & (np.array(store.metadata["split"].to_pylist()) == "test")
    )
    answer = model.embed([store.epochs(rows)], average=True)
    assert answer.report.subject == "sim-04" and answer.brain_embeds.shape == (10, model.embed_dim)


def test_a_batch_mixes_pairs_and_single_epochs(lab: dict[str, Any]) -> None:
    training = BrainTraining(TrainConfig.model_validate(lab), Runtime(threads=1))
    batch = training.batch_at(0, 0, 1)
    assert batch["subject"].shape == (40, 2) and set(batch["available"]) == {"eeg", "meg"}
    both = batch["available"]["eeg"] & batch["available"]["meg"]
    assert 0 < int((~both).sum()) < 10
    loss, logs = training.loss(training.module, batch)
    assert loss.isfinite() and {"eeg_contrastive", "meg_contrastive", "eeg+meg_contrastive"} <= set(logs)


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "multi_positive"},
        {"name": "siglip"},
        {"name": "info_nce", "queue_size": 64},
        {
            "name": "sum",
            "terms": [{"weight": 1.0, "loss": {"name": "cosine"}}, {"weight": 0.5, "loss": {"name": "mse"}}],
        },
    ],
    ids=lambda loss: loss["name"],
)
def test_every_kind_of_loss_trains(lab: dict[str, Any], loss: dict[str, Any], tmp_path: Path) -> None:
    chosen = TrainConfig.model_validate(
        {**lab, "loss": loss, "fit": {**lab["fit"], "max_steps": 30}, "modalities": {"eeg": lab["modalities"]["eeg"]},
         "data": {**lab["data"], "stores": {"eeg": lab["data"]["stores"]["eeg"]}, "folder": str(tmp_path / "prepared")},
         "fusion": {"name": "single"}}
    )  # fmt: skip
    prepare(chosen)
    report = train(chosen, tmp_path / "run")
    assert report["selection"]["score"] > 0.15  # chance 0.04


def test_settings_that_do_nothing_are_refused(lab: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="simulation has no effect on recorded data"):
        TrainConfig.model_validate({**lab, "simulation": {"n_subjects": 3}})
    with pytest.raises(ValueError, match="give one per modality"):
        TrainConfig.model_validate({**lab, "modalities": {"eeg": lab["modalities"]["eeg"]}})
    with pytest.raises(ValueError, match="simulated data has no layout 'recorded'"):
        TrainConfig.model_validate({**lab, "data": {"name": "simulated"}})


def only(lab: dict[str, Any], name: str, folder: Path, **changes: Any) -> TrainConfig:
    """Settings of one modality, with its epochs prepared."""
    data = {**lab["data"], "stores": {name: lab["data"]["stores"][name]}, "folder": str(folder)}
    one = {**lab, "modalities": {name: lab["modalities"][name]}, "data": data, "fusion": {"name": "single"}}
    chosen = TrainConfig.model_validate({**one, **changes})
    prepare(chosen)
    return chosen


def test_grouped_batches_hold_all_peoples_answers_to_a_picture(lab: dict[str, Any], tmp_path: Path) -> None:
    chosen = only(lab, "eeg", tmp_path, group_size=2, loss={"name": "multi_positive"})
    batch = BrainTraining(chosen, Runtime(threads=1)).batch_at(3, 0, 1)
    pairs = list(zip(batch["stimulus"].tolist(), batch["subject"].tolist(), strict=True))
    assert len(set(pairs)) == 40
    twice = [picture for picture in set(batch["stimulus"].tolist()) if sum(one == picture for one, _ in pairs) == 2]
    assert len(twice) >= 19  # 40 rows of two people
    with pytest.raises(ValueError, match="group_size needs one modality of recorded data"):
        BrainTraining(TrainConfig.model_validate({**lab, "group_size": 2}), Runtime(threads=1))


def test_augmentation_changes_training_batches_alone_and_is_seeded(lab: dict[str, Any]) -> None:
    steps = [{"name": "noise", "p": 1.0}, {"name": "subject_mixup", "p": 1.0}]
    chosen = TrainConfig.model_validate({**lab, "augment": {"steps": steps}})
    plain, mixed, again = (
        BrainTraining(one, Runtime(threads=1)) for one in (TrainConfig.model_validate(lab), chosen, chosen)
    )
    one, other = plain.batch_at(2, 0, 1), mixed.batch_at(2, 0, 1)
    for name, rows in one["available"].items():
        assert not (other["data"][name][rows] == one["data"][name][rows]).all(dim=(1, 2)).any()
        assert (other["data"][name][~rows] == 0).all()
        assert (again.batch_at(2, 0, 1)["data"][name] == other["data"][name]).all()
    assert (one["stimulus"] == other["stimulus"]).all()
    assert plain.validate(plain.module) == mixed.validate(mixed.module)


def unseen_hits(config: TrainConfig, permuted: bool, folder: Path) -> tuple[int, int]:
    """Train and select on right or on permuted picture labels; hits among 200 unseen pictures, and presentations."""
    runtime = Runtime(threads=1)
    study = record_study(config, runtime)
    if permuted:
        assert isinstance(study.train, Pairs) and isinstance(study.val, Pairs)
        order = [np.random.default_rng(i).permutation(n) for i, n in enumerate((len(study.train_embeds), 20))]
        study = replace(
            study,
            train=replace(study.train, target=order[0][study.train.target]),
            val=replace(study.val, target=order[1][study.val.target]),
        )
    training = BrainTraining(config, runtime, study)
    result = fit(
        training.module, training.loss, training.batch_at, config.fit, runtime, folder, training.validate,
        progress=False,
    )  # fmt: skip
    model = training.export(result.weights)
    shown = splits_of_200()["test"].embeds
    hits = n = 0
    assert study.simulator is not None
    for subject in range(2):
        recording = study.simulator.record(
            shown, modality="eeg", subject=subject, n_repetitions=4, seed=3, stimulus=[str(i) for i in range(200)]
        )
        answer = model.embed([recording], average=True)
        hits += int((model.similarity(answer.brain_embeds, shown, ("eeg",)).argmax(axis=1) == np.arange(200)).sum())
        n += 200
    return hits, n


def splits_of_200() -> dict[str, TargetSplit]:
    generator, first, splits = np.random.default_rng(5), 0, {}
    for name, n in (("train", 120), ("val", 20), ("test", 200)):
        embeds = 3 * (2 + generator.standard_normal((n, EMBED_DIM))).astype(np.float32)
        splits[name] = TargetSplit(embeds, first + np.arange(n))
        first += n
    return splits


def test_permuted_labels_are_at_chance_of_200_pictures(lab: dict[str, Any], tmp_path: Path) -> None:
    """Goal T6, with the unpermuted run as its control; two people see the same 200 pictures."""
    write_targets(tmp_path / "targets.safetensors", splits_of_200(), {"clip_digest": "none"})
    eeg = {"layout": "things_eeg2_63", "encoder": lab["modalities"]["eeg"]["encoder"]}
    config = TrainConfig.model_validate({
        "targets": str(tmp_path / "targets.safetensors"),
        "modalities": {"eeg": eeg},
        "simulation": {"n_subjects": 2, "noise_scale": {"eeg": 0.05}},
        "data": {"n_train_images": 120, "n_val_images": 20, "train_repetitions": 2},
        "fusion": {"name": "single"}, "batch_size": 60, "threads": 1,
        "fit": {"max_steps": 100, "lr": 0.005, "schedule": "onecycle", "validate_every": 20},
    })  # fmt: skip
    hits, n = unseen_hits(config, True, tmp_path / "permuted")
    low, high = binom.interval(0.95, n, 1 / 200)
    assert n == 400 and low <= hits <= high
    control, _ = unseen_hits(config, False, tmp_path / "right")
    assert control > 10 * high
