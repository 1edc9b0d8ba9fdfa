"""What holds for every fusion, whichever it is."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from alignment.brain_training import BrainTraining
from alignment.fit import fit
from alignment.runtime import Runtime
from alignment.train_config import TrainConfig
from encoders.build import build_encoder
from encoders.fusion import AnyFusionConfig, Fusion, FusionConfig, LateFusionConfig, build_fusion
from encoders.modality import combination
from encoders.networks.eeg_project import EEGProjectConfig
from encoders.score_fusion import average_ranks, average_similarities
from encoders.separate_encoders import SeparateEncoders
from encoders.single_modality import SingleFusionConfig
from tests.toy_fusion import CHANNELS, ENCODERS, N_SUBJECTS, N_TIMES, SHAPES, D, inputs

ADAPTER: TypeAdapter[AnyFusionConfig] = TypeAdapter(FusionConfig)
KINDS = ("concat", "add", "mean", "max", "gated", "attention", "film", "lowrank_bilinear")
STYLES = ("albef", "bidirectional", "two_way")
TOKENS = {"width": 8, "heads": 2, "layers": 2, "n_queries": 3, "layer_scale": 0.1}
CONFIGS = {
    "late": {},
    "concat": {"name": "concat"},
    "add": {"name": "add"},
    "half_concat": {"name": "half_concat"},
    "early": {"name": "early"},
    **{f"aggregate {kind}": {"name": "aggregate", "kind": kind} for kind in KINDS},
    "aggregate token": {"name": "aggregate", "kind": "gated", "missing": "token"},
    **{f"cross_attention {style}": {"name": "cross_attention", "style": style, **TOKENS} for style in STYLES},
}
OWN = sorted(set(CONFIGS) - {"early", "half_concat", "aggregate token"})  # a modality alone is its encoder's embedding


def build(case: str, seed: int = 0, **changes: object) -> Fusion:
    """Return a fusion whose weights are no longer at their neutral start."""
    torch.manual_seed(seed)
    fusion = build_fusion(ADAPTER.validate_python({**CONFIGS[case], **changes}), ENCODERS, SHAPES, D)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return fusion.eval()


@pytest.mark.parametrize("case", CONFIGS)
def test_answers_for_either_modality_and_both(case: str) -> None:
    fusion = build(case)
    data, positions, subject = inputs()
    both = fusion(data, positions, subject)
    assert (fusion.modalities, fusion.embed_dim) == (("eeg", "meg"), D)
    assert both.shape == (6, D) and both.dtype == torch.float32 and both.isfinite().all()
    for name in CHANNELS:
        alone = fusion({name: data[name]}, {name: positions[name]}, subject)
        assert alone.isfinite().all() and alone.abs().sum() > 0 and not torch.allclose(alone, both)


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("missing", CHANNELS)
def test_a_missing_modality_has_no_influence(case: str, missing: str) -> None:
    fusion = build(case)
    data, positions, subject = inputs()
    available = {missing: torch.zeros(6, dtype=torch.bool)}
    rest = next(name for name in CHANNELS if name != missing)
    expected = fusion({rest: data[rest]}, {rest: positions[rest]}, subject)
    for rubbish in (0.0, 1e6, math.nan, math.inf):
        other = {**data, missing: torch.full_like(data[missing], rubbish)}
        assert torch.equal(fusion(other, positions, subject, available), expected)


@pytest.mark.parametrize("case", CONFIGS)
def test_availability_is_per_sample_and_batch_mates_are_independent(case: str) -> None:
    fusion = build(case)
    data, positions, subject = inputs()
    available = {
        "eeg": torch.tensor([True, True, False, True, False, True]),
        "meg": torch.tensor([True, False, True, True, True, False]),
    }
    spoilt = {name: one.masked_fill(~available[name][:, None, None], math.nan) for name, one in data.items()}
    per_sample = {name: place.expand(6, -1, -1) for name, place in positions.items()}
    together = fusion(spoilt, positions, subject, available)
    torch.testing.assert_close(fusion(spoilt, per_sample, subject, available), together, atol=1e-5, rtol=1e-5)
    for row in range(6):
        names = [name for name in CHANNELS if available[name][row]]
        one = {name: data[name][row : row + 1] for name in names}
        alone = fusion(one, {name: positions[name] for name in names}, subject[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", [case for case in CONFIGS if case.split()[0] not in {"early", "cross_attention"}])
def test_embeddings_marked_unavailable_are_ignored(case: str) -> None:
    fusion = build(case)
    assert isinstance(fusion, SeparateEncoders)
    embeds, available = fusion.embed_each(*inputs())
    available["meg"] = torch.tensor([True, False] * 3)
    expected = fusion.combine(embeds, available)
    embeds["meg"] = embeds["meg"].masked_fill(~available["meg"][:, None], math.nan)
    assert torch.equal(fusion.combine(embeds, available), expected)


@pytest.mark.parametrize("case", CONFIGS)
def test_answers_for_training_are_those_of_forward(case: str) -> None:
    fusion = build(case)
    data, positions, subject = inputs()
    answers = fusion.answers(data, positions, subject)
    assert list(answers) == ["eeg", "meg", "eeg+meg"]
    torch.testing.assert_close(answers["eeg+meg"], fusion(data, positions, subject), atol=1e-6, rtol=1e-5)
    for name in CHANNELS:
        alone = fusion({name: data[name]}, {name: positions[name]}, subject)
        torch.testing.assert_close(answers[name], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", CONFIGS)
def test_samples_without_a_modality_answer_for_what_they_have(case: str) -> None:
    fusion = build(case)
    data, positions, subject = inputs()
    full = fusion.answers(data, positions, subject)
    present = {"eeg": torch.tensor([1, 1, 1, 1, 0, 0]).bool(), "meg": torch.tensor([1, 0, 1, 0, 1, 1]).bool()}
    holes = {name: one.masked_fill(~present[name][:, None, None], math.nan) for name, one in data.items()}
    some = fusion.answers(holes, positions, subject, present)
    for key, rows in {**present, "eeg+meg": present["eeg"] & present["meg"]}.items():
        torch.testing.assert_close(some[key], full[key][rows], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", CONFIGS)
def test_every_parameter_learns_from_the_answers(case: str) -> None:
    fusion = build(case).train()
    data, positions, subject = inputs(n=12)
    answers = fusion.answers(data, positions, subject)
    goal = torch.randn(12, D, generator=torch.Generator().manual_seed(0))
    torch.stack([(one * goal).sum() + one.pow(3).sum() for one in answers.values()]).sum().backward()
    idle = [name for name, p in fusion.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [name for name in idle if "people" not in name]
    assert all(p.grad is None or p.grad.isfinite().all() for p in fusion.parameters())


@pytest.mark.parametrize("case", sorted(set(CONFIGS) - {"early"}))
def test_the_joint_answer_leaves_the_encoders_alone(case: str) -> None:
    fusion = build(case).train()
    joint = fusion.answers(*inputs())["eeg+meg"]
    if joint.requires_grad:
        joint.pow(2).sum().backward()
    assert all(p.grad is None for name, p in fusion.named_parameters() if name.startswith("encoders."))


@pytest.mark.parametrize("case", OWN)
def test_one_modality_alone_is_that_encoders_embedding_bit_for_bit(case: str) -> None:
    fusion = build(case)
    assert not isinstance(fusion, nn.Sequential) and hasattr(fusion, "encoders")
    data, positions, subject = inputs()
    for name in CHANNELS:
        expected = fusion.encoders[name](data[name], positions[name], subject)
        assert torch.equal(fusion({name: data[name]}, {name: positions[name]}, subject), expected)


@pytest.mark.parametrize("case", CONFIGS)
def test_modality_dropout_hides_modalities_in_training_only(case: str) -> None:
    fusion = build(case, modality_dropout=0.5)
    data, positions, subject = inputs(n=32)
    whole = fusion(data, positions, subject)
    assert torch.equal(whole, fusion(data, positions, subject))
    for module in fusion.modules():  # batch statistics would depend on who is hidden
        module.eval()
    fusion.training = True
    torch.manual_seed(0)
    dropped = fusion(data, positions, subject)
    same = (dropped - whole).abs().amax(dim=1) < 1e-5
    assert 0.2 < same.float().mean() < 0.8 and dropped.isfinite().all()


@pytest.mark.parametrize("case", CONFIGS)
def test_nothing_and_unknown_modalities_are_refused(case: str) -> None:
    fusion = build(case)
    data, positions, subject = inputs()
    with pytest.raises(ValueError, match="6 of 6 samples without any modality"):
        fusion({}, {}, subject)
    one = torch.tensor([True] * 5 + [False])
    with pytest.raises(ValueError, match="1 of 6 samples without any modality"):
        fusion(data, positions, subject, {"eeg": one, "meg": one})
    with pytest.raises(ValueError, match="fnirs"):
        fusion({**data, "fnirs": data["eeg"]}, positions, subject)


@pytest.mark.parametrize("case", CONFIGS)
def test_state_round_trip_seed_and_double_precision(case: str) -> None:
    first, second, again = build(case, 0), build(case, 1), build(case, 0)
    data, positions, subject = inputs()
    assert torch.equal(first(data, positions, subject), again(data, positions, subject))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(data, positions, subject), second(data, positions, subject))
    double = {name: one.double() for name, one in data.items()}
    places = {name: one.double() for name, one in positions.items()}
    out = first.double()(double, places, subject)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out.float(), second(data, positions, subject), atol=1e-4, rtol=1e-4)
    alone = first({"eeg": double["eeg"]}, {"eeg": places["eeg"]}, subject)
    assert alone.dtype == torch.float64


def test_a_config_without_a_name_is_the_late_fusion() -> None:
    shipped = {"modality_dropout": 0.0, "joint_heads": True, "confidence_gate": True}
    assert ADAPTER.validate_python(shipped) == LateFusionConfig(modality_dropout=0.0)
    for case in CONFIGS.values():
        config = ADAPTER.validate_python(case)
        assert ADAPTER.validate_python(config.model_dump(mode="json")) == config
        assert ADAPTER.validate_python(config) is config
    with pytest.raises(ValidationError, match="kind"):
        ADAPTER.validate_python({"name": "late", "kind": "gated"})
    with pytest.raises(ValidationError, match="'middle'"):
        ADAPTER.validate_python({"name": "middle"})


@pytest.mark.parametrize("config", [SingleFusionConfig(), LateFusionConfig()])
def test_one_modality_is_the_bare_encoder_bit_for_bit(config: AnyFusionConfig) -> None:
    data, positions, subject = inputs()
    for name in CHANNELS:
        torch.manual_seed(0)
        bare = build_encoder(ENCODERS[name], SHAPES[name], D)
        torch.manual_seed(0)
        fusion = build_fusion(config, {name: ENCODERS[name]}, {name: SHAPES[name]}, D)
        expected = bare(data[name], positions[name], subject)
        part = {name: data[name]}
        assert torch.equal(fusion(part, positions, subject), expected)
        answers = fusion.answers(part, positions, subject)
        assert list(answers) == [name] and torch.equal(answers[name], expected)
        n_parameters = sum(p.numel() for p in bare.parameters())
        assert sum(p.numel() for p in fusion.parameters()) == n_parameters


def test_half_concat_has_half_branches_and_nothing_else() -> None:
    fusion = build("half_concat")
    data, positions, subject = inputs()
    halves = [fusion.encoders[name](data[name], positions[name], subject) for name in CHANNELS]  # type: ignore
    assert [one.shape for one in halves] == [(6, D // 2), (6, D // 2)]
    assert torch.equal(fusion(data, positions, subject), torch.cat(halves, dim=1))
    assert all(name.startswith("encoders.") for name in fusion.state_dict())
    alone = fusion({"meg": data["meg"]}, positions, subject)
    assert torch.equal(alone, torch.cat([torch.zeros(6, D // 2), halves[1]], dim=1))
    with pytest.raises(ValueError, match="2 modalities for a width of 15"):
        build_fusion(ADAPTER.validate_python({"name": "half_concat"}), ENCODERS, SHAPES, 15)
    with pytest.raises(ValueError, match="1 modalities"):
        build_fusion(ADAPTER.validate_python({"name": "half_concat"}), {"eeg": ENCODERS["eeg"]}, SHAPES, D)


def test_single_wants_exactly_one_modality() -> None:
    with pytest.raises(ValueError, match=r"\['eeg', 'meg'\], expected exactly one"):
        build_fusion(SingleFusionConfig(), ENCODERS, SHAPES, D)
    with pytest.raises(ValueError, match="no encoders"):
        build_fusion(LateFusionConfig(), {}, {}, D)


def test_fusions_of_plain_projections() -> None:
    """Encoders without geometry take part as well; their samples are tokens."""
    plain = {name: EEGProjectConfig(dropout=0.0, subject_layers=True) for name in CHANNELS}
    data, positions, subject = inputs()
    for case in ("early", "cross_attention two_way"):
        fusion = build_fusion(ADAPTER.validate_python(CONFIGS[case]), plain, SHAPES, D).eval()
        assert fusion(data, positions, subject).shape == (6, D)
    encoder = build_encoder(plain["eeg"], SHAPES["eeg"], D).eval()
    assert encoder.tokens(data["eeg"], positions["eeg"], subject).shape == (6, N_TIMES, encoder.token_width)  # type: ignore
    assert encoder.token_width == CHANNELS["eeg"] and int(subject.max()) == N_SUBJECTS


SMALL_BRAIN = {
    "name": "brain_module", "n_virtual": 64, "width": 64, "fourier_width": 288, "spatial_dropout": 0.1, "n_convs": 0,
    "init": "linear", "head_width": 0, "time_agg": "linear", "n_time_weights": 16, "dropout": 0.1,
}  # fmt: skip
WIDE_BRAIN = {**SMALL_BRAIN, "n_virtual": 128, "width": 128}
STEPS, LR = 250, 3e-3


@pytest.fixture(scope="module")
def base(project_root: Path) -> BrainTraining:
    return world(project_root / "generation" / "demo_data" / "targets.safetensors")


@pytest.mark.slow
def test_fusions_of_a_simulated_world_and_what_they_know_of_one_modality(base: BrainTraining) -> None:
    """Train separate encoders and compare them with networks trained alone; about 100 s of one core.

    2 people, 1500 pictures, 200 unseen ones, 4 presentations averaged, chance 0.005; a quarter of the sources is seen
    by EEG alone and a quarter by MEG alone.
    """
    alone = {name: trained(base, {"name": "single"}, (name,))[name] for name in CHANNELS}
    tokens = {"width": 32, "heads": 4, "layers": 1, "n_queries": 4}
    configs = [
        {"name": "late", "modality_dropout": 0.0}, {"name": "concat"}, {"name": "add"}, {"name": "half_concat"},
        {"name": "cross_attention", **tokens},
    ]  # fmt: skip
    fused = {str(config["name"]): trained(base, config) for config in configs}
    best = max(hit.mean() for hit, _ in alone.values())
    for case, answers in fused.items():
        assert answers["eeg+meg"][0].mean() >= best + 0.05, case
        for name, (hit, _) in alone.items():
            assert shortfall(answers[name][0], hit) <= 0.02, (case, name)
    assert fused["cross_attention"]["eeg+meg"][0].mean() >= fused["concat"]["eeg+meg"][0].mean() - 0.01
    for fuse in (average_similarities, average_ranks):
        scores = fuse([fused["late"][name][1] for name in CHANNELS])
        assert (scores.argmax(axis=1) == base.study.val.target).mean() >= best


@pytest.mark.slow
def test_early_fusion_of_a_simulated_world(base: BrainTraining) -> None:
    """Train one network over all channels; about 100 s of one core.

    It has to be wide enough for both: 128 virtual channels, where the networks of late fusion have 64 each.
    """
    late = trained(base, {"name": "late", "modality_dropout": 0.0})["eeg+meg"][0]
    alone = {name: trained(base, {"name": "single"}, (name,), WIDE_BRAIN)[name][0] for name in CHANNELS}
    early = {name: hit for name, (hit, _) in trained(base, {"name": "early"}, encoder=WIDE_BRAIN).items()}
    assert early["eeg+meg"].mean() >= max(hit.mean() for hit in alone.values()) + 0.05
    assert shortfall(late, early["eeg+meg"]) <= 0  # two networks are no worse than one
    for name, hit in alone.items():
        assert shortfall(early[name], hit) <= 0.02, name


def shortfall(hits: np.ndarray, reference: np.ndarray) -> float:
    """Say by how much the share of hits is below the reference's, less the sampling error (95 %) of the pairs."""
    difference = reference.astype(float) - hits
    return float(difference.mean() - 1.96 * difference.std() / len(hits) ** 0.5)


def world(targets: Path) -> BrainTraining:
    """Simulate recordings of pictures; the networks of the config are not trained."""
    modality = {"encoder": SMALL_BRAIN, "preprocess": {"whiten": True}}
    settings = {
        "targets": targets,
        "modalities": {"eeg": {"layout": "things_eeg2_63", **modality}, "meg": {"layout": "ctf275", **modality}},
        "simulation": {"n_subjects": 2},
        "data": {"n_train_images": 1500, "train_repetitions": 2, "n_val_images": 200, "test_repetitions": 4},
        "fit": {"max_steps": STEPS, "lr": LR, "schedule": "onecycle"}, "batch_size": 128, "threads": 1,
    }  # fmt: skip
    return BrainTraining(TrainConfig.model_validate(settings), Runtime(device="cpu"))


def trained(
    base: BrainTraining,
    fusion: dict[str, object],
    names: tuple[str, ...] = ("eeg", "meg"),
    encoder: dict[str, object] = SMALL_BRAIN,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Train one fusion briefly; return hits (n,) and similarities (n, 200) of every combination on unseen pictures."""
    modalities = {name: base.config.modalities[name].model_dump() | {"encoder": encoder} for name in names}
    settings = base.config.model_dump() | {"modalities": modalities, "fusion": fusion}
    training = BrainTraining(TrainConfig.model_validate(settings), base.runtime, base.study.view(names))
    with TemporaryDirectory() as folder:
        fit(
            training.module, training.loss, training.batch_at, training.config.fit, base.runtime, Path(folder),
            progress=False,
        )  # fmt: skip
    found = {}
    for part in training.combinations:
        embeds = training.encode(training.module.fusion.eval(), base.study.val, part)
        similarity = training.mapped_space(training.module, part).similarity(embeds, base.study.val_embeds)
        found[combination(part)] = (similarity.argmax(axis=1) == base.study.val.target, similarity)
    return found


@pytest.mark.parametrize("case", sorted(set(CONFIGS) - {"early"}))
def test_recordings_of_different_people_use_each_ones_layers(case: str) -> None:
    fusion = build(case)
    data, positions, subject = inputs()
    other = (subject + 1) % (N_SUBJECTS + 1)
    columns = torch.stack([subject, other], dim=1)
    same = fusion(data, positions, subject)
    assert torch.equal(fusion(data, positions, torch.stack([subject, subject], dim=1)), same)
    mixed = fusion(data, positions, columns)
    assert not torch.allclose(mixed, same)
    for name, person in (("eeg", subject), ("meg", other)):
        one, place = {name: data[name]}, {name: positions[name]}
        torch.testing.assert_close(fusion(one, place, columns), fusion(one, place, person))
    some = {"meg": torch.tensor([True, False] * 3)}
    rows = ~some["meg"]
    eeg_only = fusion({"eeg": data["eeg"]}, positions, subject)
    torch.testing.assert_close(fusion(data, positions, columns, some)[rows], eeg_only[rows])


def test_early_fusion_refuses_recordings_of_different_people() -> None:
    fusion = build("early")
    data, positions, subject = inputs()
    columns = torch.stack([subject, subject], dim=1)
    for call in (fusion, fusion.answers):
        with pytest.raises(ValueError, match=r"people \(6, 2\), one per modality, expected \(b,\)"):
            call(data, positions, columns)
