from dataclasses import replace

import pytest
import torch

from encoders.build import AnyEncoderConfig, SignalShape
from encoders.early_fusion import EarlyFusionConfig, stacked_shape
from encoders.networks.brain_module import BrainModuleConfig
from encoders.networks.eeg_project import EEGProjectConfig
from tests.toy_fusion import ENCODER, ENCODERS, SHAPES, D, inputs

CONFIG = EarlyFusionConfig()
NETWORKS: dict[str, AnyEncoderConfig] = {
    "brain_module": BrainModuleConfig(n_virtual=32, width=32, fourier_width=288, n_convs=2, head_width=16),
    "eeg_project": EEGProjectConfig(),
}


@pytest.mark.parametrize("embed_dim", [512, 768, 1024])
@pytest.mark.parametrize("network", NETWORKS)
def test_eeg_and_meg_stacked_are_334_channels(network: str, embed_dim: int) -> None:
    spots = torch.rand(334, 2, generator=torch.Generator().manual_seed(0))
    shapes = {
        name: SignalShape(len(part), 100, 100.0, 2, tuple((float(x), float(y)) for x, y in part))
        for name, part in {"eeg": spots[:63], "meg": spots[63:]}.items()
    }
    fusion = CONFIG.build(dict.fromkeys(shapes, NETWORKS[network]), shapes, embed_dim).eval()
    assert stacked_shape(shapes).n_channels == 334
    data = {name: torch.randn(2, shape.n_channels, 100) for name, shape in shapes.items()}
    positions = {name: torch.tensor(shape.positions) for name, shape in shapes.items()}
    subject = torch.tensor([0, 2])
    out = fusion(data, positions, subject)
    assert out.shape == (2, embed_dim) and out.isfinite().all()
    for name in shapes:
        silent = {**data, name: torch.zeros_like(data[name])}
        alone = fusion(silent, positions, subject)
        assert alone.isfinite().all()
        rest = {other: one for other, one in data.items() if other != name}
        assert torch.equal(fusion(rest, positions, subject), alone)


def test_one_pass_is_the_encoder_over_stacked_channels() -> None:
    fusion = CONFIG.build(ENCODERS, SHAPES, D).eval()
    data, positions, subject = inputs()
    stacked = torch.cat([data["eeg"], data["meg"]], dim=1)
    places = torch.tensor(stacked_shape(SHAPES).positions)
    torch.testing.assert_close(fusion(data, positions, subject), fusion.encoder(stacked, places, subject))


def test_modalities_get_strips_of_their_own_and_unknown_places_stay_unknown() -> None:
    shape = stacked_shape(SHAPES)
    places = torch.tensor(shape.positions)
    assert shape.n_channels == len(places) == 9 + 14
    assert places[:9, 0].max() < 0.5 <= places[9:, 0].min() and places.max() <= 1
    assert torch.equal(places[:9, 1], torch.tensor(SHAPES["eeg"].positions)[:, 1])
    fusion = CONFIG.build(ENCODERS, SHAPES, D).eval()
    data, positions, subject = inputs()
    lost = {name: one.clone() for name, one in positions.items()}
    lost["meg"][3, 0] = -1  # one negative coordinate is enough
    expected = fusion(data, lost, subject)
    data["meg"][:, 3] = 1e3
    assert torch.equal(fusion(data, lost, subject), expected)
    assert stacked_shape({name: replace(one, positions=()) for name, one in SHAPES.items()}).positions == ()


def test_all_conditions_share_one_pass_in_training() -> None:
    fusion = CONFIG.build(ENCODERS, SHAPES, D).train()
    sizes = []
    fusion.encoder.register_forward_hook(lambda module, given, out: sizes.append(len(out)))
    data, positions, subject = inputs()
    answers = fusion.answers(data, positions, subject)
    assert sizes == [18] and [len(one) for one in answers.values()] == [6, 6, 6]
    answers["eeg+meg"].square().sum().backward()
    assert all(p.grad is not None for p in fusion.encoder.parameters())


def test_what_cannot_be_stacked_is_refused() -> None:
    with pytest.raises(ValueError, match="different ones"):
        CONFIG.build({**ENCODERS, "meg": EEGProjectConfig()}, SHAPES, D)
    with pytest.raises(ValueError, match="at least two"):
        CONFIG.build({"eeg": ENCODER}, {"eeg": SHAPES["eeg"]}, D)
    for change in ({"n_times": 30}, {"sfreq": 200.0}, {"n_subjects": 9}):
        other = replace(SHAPES["meg"], **change)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="preprocess all to one rate and window"):
            CONFIG.build(ENCODERS, {"eeg": SHAPES["eeg"], "meg": other}, D)
