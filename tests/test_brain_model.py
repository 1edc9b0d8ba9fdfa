import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alignment.brain_model import BrainModel
from alignment.projector import Projector
from alignment.runtime import Runtime
from alignment.target_space import TargetSpace
from encoders.build import PRESETS
from encoders.cross_attention import CrossAttentionFusionConfig
from encoders.early_fusion import EarlyFusionConfig
from encoders.epochs import EpochsMismatch
from encoders.fusion import AnyFusionConfig
from encoders.half_concat import HalfConcatFusionConfig
from encoders.late_fusion import LateFusionConfig
from encoders.modality import combination
from encoders.preprocess import Preprocessor, default_preprocess
from encoders.sensors import standard_layout
from tests.toy_brain import EMBED_DIM, LAYOUTS, ToyBrain, toy_splits

SPLITS = toy_splits()
BRAIN = ToyBrain()
BOTH = ("eeg", "meg")
STIMULI = [f"picture {i}" for i in range(8)]


def record(modality: str, n_repetitions: int = 1, subject: int = 0):
    return BRAIN.record(
        SPLITS["test"].embeds[:8], modality=modality, subject=subject, n_repetitions=n_repetitions, stimulus=STIMULI
    )


@pytest.fixture(scope="module")
def model() -> BrainModel:
    preprocessors = {}
    for name, layout in LAYOUTS.items():
        epochs = BRAIN.record(SPLITS["train"].embeds, modality=name, subject=0)
        preprocessors[name] = Preprocessor(default_preprocess(name), standard_layout(layout)).fit(epochs)
    generator = np.random.default_rng(0)
    keys = ("eeg", "meg", "eeg+meg")
    projector = Projector(
        {key: generator.standard_normal((EMBED_DIM, EMBED_DIM)).astype("f") for key in keys},
        {key: generator.standard_normal(EMBED_DIM).astype("f") for key in keys},
        SPLITS["train"].embeds.mean(axis=0),
    )
    torch.manual_seed(0)
    space = TargetSpace.fit(SPLITS["train"].embeds).with_basis(generator.standard_normal((EMBED_DIM, EMBED_DIM)))
    encoders = {"eeg": PRESETS["brain_module_demo"], "meg": PRESETS["brain_module_demo"]}
    model = BrainModel(
        preprocessors, encoders, LateFusionConfig(), ["sim-01", "sim-02"], space, projector, Runtime(device="cpu")
    )
    with torch.no_grad():  # people and heads differ only after training; make them differ here
        for parameter in model.fusion.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_saved_and_loaded_models_answer_alike(model: BrainModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["brain.json", "brain.safetensors"]
    again = BrainModel.load(tmp_path, Runtime(device="cpu"))
    both = [record("eeg"), record("meg")]
    one, other = model.embed(both), again.embed(both)
    assert np.array_equal(one.image_embeds, other.image_embeds) and one.report == other.report
    assert np.array_equal(one.brain_embeds, other.brain_embeds)
    gallery = SPLITS["test"].embeds
    assert np.array_equal(
        model.similarity(one.brain_embeds, gallery, BOTH), again.similarity(one.brain_embeds, gallery, BOTH)
    )
    assert again.preprocess_digests == model.preprocess_digests and again.subjects == model.subjects


@pytest.mark.parametrize(
    "config", [EarlyFusionConfig(), CrossAttentionFusionConfig(width=8, heads=2), HalfConcatFusionConfig()]
)
def test_models_of_other_fusions_are_saved_and_loaded(
    model: BrainModel, config: AnyFusionConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    other = BrainModel(
        model.preprocessors, model.encoders, config, model.subjects, model.spaces, model.projector, model.runtime
    )
    other.save(tmp_path)
    again = BrainModel.load(tmp_path, Runtime(device="cpu"))
    assert again.fusion_config == config
    for recordings in ([record("eeg"), record("meg")], [record("meg")]):
        assert np.array_equal(other.embed(recordings).brain_embeds, again.embed(recordings).brain_embeds)


def test_files_without_the_name_of_a_fusion_are_of_the_late_one(
    model: BrainModel, tmp_path: Path, project_root: Path
) -> None:
    model.save(tmp_path)
    meta = json.loads((tmp_path / "brain.json").read_text())
    assert meta["fusion"].pop("name") == "late"
    (tmp_path / "brain.json").write_text(json.dumps(meta))
    again = BrainModel.load(tmp_path, Runtime(device="cpu"))
    assert np.array_equal(again.embed([record("eeg")]).brain_embeds, model.embed([record("eeg")]).brain_embeds)
    shipped = BrainModel.load(project_root / "generation" / "demo_bundle" / "brain", Runtime(device="cpu"))
    assert shipped.fusion_config == LateFusionConfig(modality_dropout=0.0)


def test_every_combination_is_compared_in_its_own_space(model: BrainModel, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    assert isinstance(model.spaces, TargetSpace)
    spaces = {
        key: model.spaces.with_basis(generator.standard_normal((EMBED_DIM, EMBED_DIM)).astype("f"))
        for key in ("eeg", "meg", "eeg+meg")
    }
    other = BrainModel(
        model.preprocessors, model.encoders, model.fusion_config, model.subjects, spaces, model.projector, model.runtime
    )
    other.save(tmp_path)
    again, gallery = BrainModel.load(tmp_path, Runtime(device="cpu")), SPLITS["test"].embeds
    brain = generator.standard_normal((5, EMBED_DIM)).astype("f")
    for names in (("eeg",), ("meg",), ("meg", "eeg")):
        expected = spaces[combination(names)].similarity(brain, gallery)
        assert np.array_equal(again.similarity(brain, gallery, names), expected)
        assert not np.allclose(expected, model.similarity(brain, gallery, names))
    with pytest.raises(ValueError, match="no target space for the modalities 'ecog', only for"):
        again.similarity(brain, gallery, ("ecog",))


def test_models_with_one_space_keep_the_first_version_of_the_files(model: BrainModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    assert json.loads((tmp_path / "brain.json").read_text())["schema_version"] == 1
    assert isinstance(BrainModel.load(tmp_path, Runtime(device="cpu")).spaces, TargetSpace)


def test_other_schema_versions_are_refused(model: BrainModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    meta = json.loads((tmp_path / "brain.json").read_text())
    (tmp_path / "brain.json").write_text(json.dumps(meta | {"schema_version": 99}))
    with pytest.raises(ValueError, match="schema version 99"):
        BrainModel.load(tmp_path)


def test_shapes_and_report(model: BrainModel) -> None:
    for recordings, names in (
        ([record("eeg")], ("eeg",)),
        ([record("meg")], ("meg",)),
        ([record("meg"), record("eeg")], ("eeg", "meg")),
    ):
        answer = model.embed(recordings)
        assert answer.image_embeds.shape == answer.brain_embeds.shape == (8, EMBED_DIM)
        assert answer.image_embeds.dtype == answer.brain_embeds.dtype == np.float32
        assert answer.report.modalities == names and answer.report.subject == "sim-01"
        assert answer.stimulus == tuple(STIMULI) and answer.n_averaged == (1,) * 8
        assert model.similarity(answer.brain_embeds, SPLITS["test"].embeds, names).shape == (8, 20)


def test_a_file_with_both_kinds_is_fused_like_two_files(model: BrainModel) -> None:
    eeg, meg = record("eeg"), record("meg")
    both = replace(
        eeg,
        data=np.concatenate([eeg.data, meg.data], axis=1),
        ch_names=eeg.ch_names + meg.ch_names,
        ch_types=eeg.ch_types + meg.ch_types,
        positions=np.concatenate([eeg.positions, meg.positions]),
    )
    assert np.array_equal(model.embed([both]).image_embeds, model.embed([eeg, meg]).image_embeds)


def test_channel_order_is_free(model: BrainModel) -> None:
    eeg = record("eeg")
    order = np.random.default_rng(0).permutation(len(eeg.ch_names))
    shuffled = eeg.pick([eeg.ch_names[i] for i in order])
    assert np.allclose(model.embed([shuffled]).image_embeds, model.embed([eeg]).image_embeds, atol=1e-5)


def test_epochs_do_not_influence_each_other(model: BrainModel) -> None:
    eeg = record("eeg")
    alone = model.embed([eeg.select([3])]).brain_embeds
    assert np.allclose(alone, model.embed([eeg]).brain_embeds[3:4], atol=1e-5)


def test_averaging(model: BrainModel) -> None:
    repeated = record("eeg", n_repetitions=4)
    assert model.embed([repeated]).image_embeds.shape == (32, EMBED_DIM)
    answer = model.embed([repeated], average=True)
    assert answer.n_averaged == (4,) * 8 and answer.stimulus == tuple(STIMULI)
    expected = model.embed([repeated.average_repetitions()])
    assert np.array_equal(answer.image_embeds, expected.image_embeds)


def test_whose_layers_are_used(model: BrainModel) -> None:
    first, second = record("eeg"), replace(record("eeg"), subject="sim-02")
    assert model.embed([second]).report.subject == "sim-02"
    assert np.array_equal(model.embed([first], subject="sim-02").image_embeds, model.embed([second]).image_embeds)
    assert not np.allclose(model.embed([first]).image_embeds, model.embed([second]).image_embeds)
    stranger = model.embed([replace(first, subject="")])
    assert stranger.report.subject == "" and "mean person" in stranger.report.warnings[0]
    assert not np.allclose(stranger.image_embeds, model.embed([first]).image_embeds)
    assert "'nobody'" in model.embed([first], subject="nobody").report.warnings[0]


def test_two_people_are_not_fused(model: BrainModel) -> None:
    with pytest.raises(EpochsMismatch, match="different people"):
        model.embed([record("eeg"), record("meg", subject=1)])


def test_missing_channels_are_interpolated_and_reported(model: BrainModel) -> None:
    eeg = record("eeg")
    answer = model.embed([eeg.pick(eeg.ch_names[2:])])
    assert set(answer.report.interpolated) == set(eeg.ch_names[:2])


def test_people_may_differ_between_modalities(model: BrainModel, tmp_path: Path) -> None:
    people = {"eeg": ["sim-01", "sim-02"], "meg": ["sim-02", "other"]}
    mixed = BrainModel(
        model.preprocessors, model.encoders, model.fusion_config, people, model.spaces, model.projector, model.runtime
    )
    mixed.load_weights(model.fusion.state_dict())
    assert mixed.subjects == ("sim-01", "sim-02", "other")
    assert mixed.person_index("sim-02").tolist() == [[1, 0]] and mixed.person_index("nobody").tolist() == [[2, 2]]
    both = [record("eeg", subject=1), record("meg", subject=1)]
    expected = model.fusion  # the second person's layers for EEG, the first one's for MEG
    data = {name: model.preprocessors[name](one).data for name, one in zip(("eeg", "meg"), both, strict=True)}
    answer = mixed.embed(both)
    with torch.no_grad():
        columns = torch.tensor([[1, 0]]).expand(8, 2)
        told = expected({name: torch.from_numpy(one) for name, one in data.items()}, model.positions, columns)
    assert np.allclose(answer.brain_embeds, told.numpy(), atol=1e-6) and answer.report.subject == "sim-02"
    half = mixed.embed([replace(one, subject="other") for one in both])
    assert half.report.subject == "other" and "2 people of eeg" in half.report.warnings[0]
    mixed.save(tmp_path)
    again = BrainModel.load(tmp_path, Runtime(device="cpu"))
    assert again.people == mixed.people and np.array_equal(again.embed(both).brain_embeds, answer.brain_embeds)
