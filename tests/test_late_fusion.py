import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from encoders.availability import hide_modalities
from encoders.build import PRESETS, SignalShape, build_encoder
from encoders.late_fusion import LateFusion, LateFusionConfig

CHANNELS = {"eeg": 9, "meg": 14}
D = 16


def _fusion(seed=0, modalities=("eeg", "meg"), **options):
    torch.manual_seed(seed)
    encoders = {
        name: build_encoder(PRESETS["brain_module_demo"], SignalShape(CHANNELS[name], 64, 100.0, 3), D)
        for name in modalities
    }
    return LateFusion(encoders, D, LateFusionConfig(**options))


def _stirred(seed=0, **options):
    """Return a fusion whose gates and heads are no longer at their neutral start."""
    fusion = _fusion(seed, **options)
    with torch.no_grad():
        for part in [*fusion.gates.values(), *fusion.heads.values()]:
            for parameter in part.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return fusion.eval()


def _inputs(n=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    data = {name: torch.randn(n, count, 64, generator=generator) for name, count in CHANNELS.items()}
    positions = {name: torch.rand(count, 2, generator=generator) for name, count in CHANNELS.items()}
    return data, positions, torch.arange(n) % 4


def test_one_modality_alone_is_that_encoders_embedding_bit_for_bit():
    fusion = _stirred()
    data, positions, subject = _inputs()
    for name in CHANNELS:
        expected = fusion.encoders[name](data[name], positions[name], subject)
        assert torch.equal(fusion({name: data[name]}, {name: positions[name]}, subject), expected)
    single = _fusion(modalities=("eeg",)).eval()
    expected = single.encoders["eeg"](data["eeg"], positions["eeg"], subject)
    assert torch.equal(single({"eeg": data["eeg"]}, positions, subject), expected)


@pytest.mark.parametrize("missing", ["eeg", "meg"])
@pytest.mark.parametrize("rubbish", [0.0, 1e6, math.nan, math.inf])
def test_a_missing_modality_has_no_influence(missing, rubbish):
    fusion = _stirred()
    data, positions, subject = _inputs()
    available = {missing: torch.zeros(6, dtype=torch.bool)}
    expected = fusion(data, positions, subject, available)
    other = {**data, missing: torch.full_like(data[missing], rubbish)}
    assert torch.equal(fusion(other, positions, subject, available), expected)
    rest = next(name for name in CHANNELS if name != missing)
    assert torch.equal(fusion({rest: data[rest]}, positions, subject), expected)


def test_a_missing_modality_gets_no_gradient():
    fusion = _stirred()
    data, positions, subject = _inputs()
    data["meg"].requires_grad_()
    available = {"meg": torch.tensor([True, True, False, False, True, False])}
    fusion(data, positions, subject, available).square().sum().backward()
    assert ((data["meg"].grad.abs().sum((1, 2)) > 0) == available["meg"]).all()


def test_availability_is_per_sample_and_batch_mates_are_independent():
    fusion = _stirred()
    data, positions, subject = _inputs()
    available = {
        "eeg": torch.tensor([True, True, False, True, False, True]),
        "meg": torch.tensor([True, False, True, True, True, False]),
    }
    together = fusion(data, positions, subject, available)
    for row in range(6):
        names = [name for name in CHANNELS if available[name][row]]
        one = {name: data[name][row : row + 1] for name in names}
        alone = fusion(one, {name: positions[name] for name in names}, subject[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_positions_may_differ_between_samples():
    fusion = _stirred()
    data, positions, subject = _inputs()
    available = {"meg": torch.tensor([True, False] * 3)}
    per_sample = {name: place.expand(6, -1, -1) for name, place in positions.items()}
    torch.testing.assert_close(
        fusion(data, per_sample, subject, available), fusion(data, positions, subject, available), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("joint_heads", [True, False])
@pytest.mark.parametrize("confidence_gate", [True, False])
def test_both_together_start_as_the_mean(joint_heads, confidence_gate):
    fusion = _fusion(joint_heads=joint_heads, confidence_gate=confidence_gate).eval()
    data, positions, subject = _inputs()
    embeds, available = fusion.embed_each(data, positions, subject)
    expected = (embeds["eeg"] + embeds["meg"]) / 2
    torch.testing.assert_close(fusion.combine(embeds, available), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(fusion(data, positions, subject), fusion.combine(embeds, available))


def test_nothing_available_is_refused():
    fusion = _fusion().eval()
    data, positions, subject = _inputs()
    nothing = torch.zeros(6, dtype=torch.bool)
    with pytest.raises(ValueError, match="6 of 6 samples without any modality"):
        fusion({}, {}, subject)
    with pytest.raises(ValueError, match="6 of 6 samples without any modality"):
        fusion(data, positions, subject, {"eeg": nothing, "meg": nothing})
    one = torch.tensor([True] * 5 + [False])
    with pytest.raises(ValueError, match="1 of 6 samples without any modality"):
        fusion(data, positions, subject, {"eeg": one, "meg": one})
    with pytest.raises(ValueError, match="no encoders"):
        LateFusion({}, D, LateFusionConfig())


def test_unknown_modalities_are_refused_by_name():
    data, positions, subject = _inputs()
    with pytest.raises(ValueError, match="fnirs"):
        _fusion()({**data, "fnirs": data["eeg"]}, positions, subject)


def test_modality_dropout_never_takes_everything_and_is_off_in_eval():
    fusion = _fusion(modality_dropout=0.5)
    masks = {
        "eeg": torch.ones(4000, dtype=torch.bool),
        "meg": torch.cat([torch.ones(2000, dtype=torch.bool), torch.zeros(2000, dtype=torch.bool)]),
    }
    torch.manual_seed(0)
    kept = hide_modalities(masks, fusion.modality_dropout)
    assert (kept["eeg"] | kept["meg"]).all()
    assert not (kept["meg"] & ~masks["meg"]).any()
    assert kept["eeg"][2000:].all()
    # of the pairs, 1/4 lose nothing, 1/4 would lose both and keep both, 1/4 lose either
    assert abs(float((kept["eeg"] & kept["meg"])[:2000].float().mean()) - 0.5) < 0.04
    data, positions, subject = _inputs()
    assert torch.equal(fusion.eval()(data, positions, subject), fusion(data, positions, subject))


def test_modality_dropout_trains_on_all_three_conditions():
    fusion = _fusion(modality_dropout=0.5).train()
    seen = set()
    combine = fusion.combine

    def watched(embeds, available):
        seen.update(zip(available["eeg"].tolist(), available["meg"].tolist(), strict=True))
        return combine(embeds, available)

    fusion.combine = watched
    data, positions, subject = _inputs(n=32)
    torch.manual_seed(0)
    fusion(data, positions, subject)
    assert seen == {(True, True), (True, False), (False, True)}


def test_every_parameter_learns_from_a_batch_with_both():
    fusion = _stirred(modality_dropout=0.0).train()
    data, positions, subject = _inputs(n=12)
    for encoder in fusion.encoders.values():
        for block in encoder.blocks:
            nn.init.ones_(block.scale)
    fusion(data, positions, subject).square().sum().backward()
    idle = [name for name, p in fusion.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


def test_state_round_trip():
    first, second = _stirred(0), _stirred(1)
    second.load_state_dict(first.state_dict())
    data, positions, subject = _inputs()
    assert torch.equal(first(data, positions, subject), second(data, positions, subject))


def test_fused_wins_when_each_modality_sees_half_of_the_sources():
    torch.manual_seed(0)
    n_train, n_test, n_sources = 4000, 200, 12
    gains = {name: torch.randn(count, n_sources) for name, count in CHANNELS.items()}
    gains["eeg"][:, 7:] = 0
    gains["meg"][:, :5] = 0
    courses = torch.randn(n_sources, 24)
    targets = torch.randn(n_train + n_test, n_sources)

    def record(name):
        signal = torch.einsum("ns,cs,st->nct", targets, gains[name], courses)
        return 0.1 * signal + torch.randn(len(targets), CHANNELS[name], 24) * 0.7

    data = {name: record(name) for name in CHANNELS}
    positions = {name: torch.rand(count, 2) for name, count in CHANNELS.items()}
    people = {
        name: build_encoder(PRESETS["eeg_project"], SignalShape(count, 24, 100.0, 1), n_sources)
        for name, count in CHANNELS.items()
    }
    fusion = LateFusion(people, n_sources, LateFusionConfig()).train()
    optimizer = torch.optim.AdamW(fusion.parameters(), lr=3e-3)
    for step in range(250):
        rows = torch.randint(n_train, (128,))
        out = fusion({name: one[rows] for name, one in data.items()}, positions, torch.zeros(128).long())
        logits = 5 * functional.normalize(out, dim=-1) @ functional.normalize(targets[rows], dim=-1).T
        optimizer.zero_grad()
        functional.cross_entropy(logits, torch.arange(128)).backward()
        optimizer.step()
        assert logits.isfinite().all(), step
    fusion.eval()
    test = {name: one[n_train:] for name, one in data.items()}
    gallery = functional.normalize(targets[n_train:], dim=-1)

    def top_1(names):
        with torch.no_grad():
            out = fusion({name: test[name] for name in names}, positions, torch.zeros(n_test).long())
        return float(((out @ gallery.T).argmax(-1) == torch.arange(n_test)).float().mean())

    both, eeg, meg = top_1(["eeg", "meg"]), top_1(["eeg"]), top_1(["meg"])
    assert min(eeg, meg) >= 0.05  # chance .005
    assert both >= max(eeg, meg) + 0.05
