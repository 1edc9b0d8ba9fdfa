"""Published state dicts become our networks, with equal results, and every known trap is seen."""

import numpy as np
import published_files as published
import pytest
import torch

from encoders.build import build_encoder
from encoders.networks.atm import ATM50Config, ATMConfig
from encoders.networks.eeg_project import EEGProjectConfig
from encoders.networks.ts_conv import TSConvConfig
from encoders.published_checkpoints import KINDS, UnknownCheckpoint, recognise


def arrays(*states, prefix=""):
    return {f"{prefix}{i}/{name}": value.numpy() for i, state in enumerate(states) for name, value in state.items()}


def network(found):
    built = build_encoder(found.config, found.shape, found.embed_dim)
    built.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in found.tensors.items()})
    return built.eval()


def run(found, data, subject=None):
    subject = torch.zeros(len(data)).long() if subject is None else subject
    with torch.no_grad():
        return network(found)(data, torch.rand(data.shape[1], 2), subject)


def epochs(n=4, channels=63, samples=250):
    return torch.randn(n, channels, samples, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("channels", "logit_scale", "n"), [(63, True, 53), (63, False, 52), (17, False, 52)])
def test_atms(channels, logit_scale, n):
    state = published.atms(channels, 64, logit_scale)
    assert len(state) == n
    found = recognise("atm", arrays(state))
    assert found.design == "ATMS" and isinstance(found.config, ATMConfig)
    assert (found.shape.n_channels, found.shape.n_times, found.shape.n_subjects) == (channels, 250, 10)
    assert (found.logit_scale is None) != logit_scale
    data, ids = epochs(channels=channels), torch.tensor([1, 9, 3, 0])
    torch.testing.assert_close(run(found, data, ids), published.run_atms(state, data, ids), atol=1e-5, rtol=1e-5)


def test_atms_people_are_numbered_from_one_and_the_tenth_has_the_shared_token():
    state = published.atms(17, 32)
    found = recognise("atm", arrays(state))
    assert found.subjects["sub-01"] == 1 and found.subjects["sub-09"] == 9 and found.subjects["sub-10"] == 10
    data = epochs(2, channels=17)
    for name, number in (("sub-01", 1), ("sub-10", 10)):
        ours = run(found, data, torch.full((2,), found.subjects[name]))
        theirs = published.run_atms(state, data, torch.full((2,), number))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    row_zero = run(found, data, torch.zeros(2).long())
    assert not torch.allclose(row_zero, run(found, data, torch.ones(2).long()), atol=1e-3)


def test_an_unknown_person_switches_the_published_batch_but_only_its_own_epoch_here():
    state = published.atms(17, 32)
    found, data = recognise("atm", arrays(state)), epochs(2, channels=17)
    mixed = run(found, data, torch.tensor([1, 10]))
    alone = published.run_atms(state, data[:1], torch.tensor([1]))
    switched = published.run_atms(state, data, torch.tensor([1, 10]))
    torch.testing.assert_close(mixed[:1], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1:], switched[1:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(switched[:1], alone, atol=1e-3)


def test_atms_sees_the_last_channel_only_through_attention():
    found, data = recognise("atm", arrays(published.atms(17, 32))), epochs(1, channels=17)
    built = network(found)
    tokens = []
    built.norm.register_forward_hook(lambda _, __, out: tokens.append(out))
    with torch.no_grad():
        built(data, data, torch.tensor([1]))
    assert tokens[0].shape == (1, 17, 250)


def test_what_atms_never_uses_may_be_anything_or_nothing():
    state = published.atms(17, 32)
    expected = recognise("atm", arrays(state))
    dead = [name for name in state if "mask" in name or "temporal" in name or "position" in name]
    dead += [name for name in state if name.startswith("subject_wise_linear")]
    assert len(dead) == 8
    for name in dead:
        state[name] = torch.full_like(state[name], float("nan"))
    for k in range(2, 10):  # their number follows a setting
        state[f"subject_wise_linear.{k}.weight"] = torch.zeros(250, 250)
    assert all(np.array_equal(recognise("atm", arrays(state)).tensors[n], v) for n, v in expected.tensors.items())
    for name in dead:
        del state[name]
    assert recognise("atm", arrays(state)).tensors.keys() == expected.tensors.keys()


def test_atms_50():
    state = published.atms_50(63, 64)
    assert len(state) == 50
    found = recognise("atm", arrays(state))
    assert found.design == "ATMS_50" and isinstance(found.config, ATM50Config) and found.subjects == {}
    data = epochs()
    torch.testing.assert_close(run(found, data), published.run_atms_50(state, data), atol=1e-5, rtol=1e-5)
    for name in state:
        if name.startswith("attention_model.encoder_layer."):
            state[name] = torch.full_like(state[name], float("nan"))
    torch.testing.assert_close(run(recognise("atm", arrays(state)), data), run(found, data))
    state["attention_model.pos_encoder.pe"] = torch.zeros(5000, 63)
    with pytest.raises(UnknownCheckpoint, match="time code"):
        recognise("atm", arrays(state))


def test_nice_is_two_files_in_any_order_and_flattens_position_by_position():
    convolutions, projection = published.nice()
    assert (len(convolutions), len(projection)) == (16, 6)
    data = epochs()
    flat = published.run_ts_conv(convolutions, data, "0.tsconv", "0.projection.0", "position")
    expected = published.run_head(projection, flat, published.NICE_HEAD)
    for files in ((convolutions, projection), (projection, convolutions)):
        found = recognise("nice", arrays(*files))
        assert found.config == TSConvConfig() and found.embed_dim == 768 and found.logit_scale is None
        torch.testing.assert_close(run(found, data), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(UnknownCheckpoint, match="Proj_eeg_cls.pth is missing"):
        recognise("nice", arrays(convolutions))
    with pytest.raises(UnknownCheckpoint, match="Enc_eeg_cls.pth is missing"):
        recognise("nice", arrays(projection))


@pytest.mark.parametrize("channels", [17, 63])
def test_ubp_ts_conv_has_no_mixing_and_flattens_channel_by_channel(channels):
    state = published.ubp_ts_conv(channels, 64)
    assert len(state) == 21
    found, data = recognise("ubp", arrays(state)), epochs(channels=channels)
    assert isinstance(found.config, TSConvConfig) and not found.config.mix and found.config.flatten == "channel"
    flat = published.run_ts_conv(state, data, "backbone", None, "channel")
    expected = published.run_head(state, flat, published.UBP_HEAD)
    torch.testing.assert_close(run(found, data), expected, atol=1e-5, rtol=1e-5)
    assert found.logit_scale == pytest.approx(2.659, abs=1e-3)


def test_neurobridge_ts_conv_mixes_and_flattens_channel_by_channel():
    state = published.neurobridge_ts_conv(63, 64)
    assert len(state) == 22
    found, data = recognise("neurobridge", arrays(state)), epochs()
    flat = published.run_ts_conv(state, data, "tsconv", "projection", "channel")
    expected = published.run_head(state, flat, published.NEUROBRIDGE_HEAD)
    torch.testing.assert_close(run(found, data), expected, atol=1e-5, rtol=1e-5)


def test_the_two_orders_differ_by_a_permutation_of_columns():
    state, data = published.neurobridge_ts_conv(5, 32), epochs(channels=5)
    theirs = recognise("neurobridge", arrays(state))
    # (d, channel * position) -> (d, position * channel)
    columns = theirs.tensors["head.linear.weight"].reshape(32, 40, 36).transpose(0, 2, 1).reshape(32, 1440)
    permuted = {**theirs.tensors, "head.linear.weight": columns}
    ours = build_encoder(theirs.config.model_copy(update={"flatten": "position"}), theirs.shape, 32).eval()
    ours.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in permuted.items()})
    with torch.no_grad():
        got = ours(data, torch.rand(5, 2), torch.zeros(4).long())
    torch.testing.assert_close(got, run(theirs, data), atol=1e-5, rtol=1e-5)
    wrong = build_encoder(TSConvConfig(), theirs.shape, 32).eval()
    wrong.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in theirs.tensors.items()})
    assert not torch.allclose(wrong(data, data, torch.zeros(4).long()), got, atol=1e-2)


@pytest.mark.parametrize(
    ("n_inputs", "channels", "samples"), [(4250, 17, 250), (15750, 63, 250), (54471, 271, 201), (54200, 271, 200)]
)
@pytest.mark.parametrize(("kind", "logit_scale", "n"), [("ubp", True, 7), ("neurobridge", False, 6)])
def test_eeg_project(n_inputs, channels, samples, kind, logit_scale, n):
    state = published.eeg_project(n_inputs, 16, logit_scale)
    assert len(state) == n
    found, data = recognise(kind, arrays(state)), epochs(channels=channels, samples=samples)
    assert isinstance(found.config, EEGProjectConfig)
    assert (found.shape.n_channels, found.shape.n_times) == (channels, samples)
    expected = published.run_head(state, data.flatten(1), published.PROJECT_HEAD)
    torch.testing.assert_close(run(found, data), expected, atol=1e-5, rtol=1e-5)


def test_eeg_project_of_another_size_needs_to_be_told_the_samples():
    state = published.eeg_project(32 * 100, 16)
    with pytest.raises(UnknownCheckpoint, match=r"3200.*--samples"):
        recognise("neurobridge", arrays(state))
    assert recognise("neurobridge", arrays(state), n_times=100).shape.n_channels == 32
    with pytest.raises(UnknownCheckpoint, match="no multiple of 7"):
        recognise("neurobridge", arrays(state), n_times=7)


def test_convolutional_encoders_fit_five_lengths_of_epochs():
    state = published.ubp_ts_conv(17, 16)
    assert recognise("ubp", arrays(state)).shape.n_times == 250
    assert recognise("ubp", arrays(state), n_times=252).shape.n_times == 252
    with pytest.raises(UnknownCheckpoint, match="250 to 254"):
        recognise("ubp", arrays(state), n_times=255)
    meg = published.neurobridge_ts_conv(271, 16)
    meg["proj_eeg.0.weight"] = torch.randn(16, 26 * 40)
    found = recognise("neurobridge", arrays(meg))
    assert (found.shape.n_times, found.shape.sfreq) == (201, 200.0)
    assert network(found).temporal.weight.shape == (40, 1, 25)
    with pytest.raises(UnknownCheckpoint, match="250 samples, but 201"):
        recognise("atm", arrays(published.atms(17, 16)), n_times=201)


MAKERS = {
    "atm": lambda: (published.atms(17, 16),),
    "nice": lambda: published.nice(16),
    "ubp": lambda: (published.ubp_ts_conv(17, 16),),
    "ubp ": lambda: (published.eeg_project(4250, 16, logit_scale=True),),
    "neurobridge": lambda: (published.neurobridge_ts_conv(17, 16),),
    "neurobridge ": lambda: (published.eeg_project(4250, 16),),
}


@pytest.mark.parametrize("true", MAKERS)
@pytest.mark.parametrize("claimed", KINDS)
def test_a_claim_is_compared_with_what_is_found(true, claimed):
    tensors = arrays(*MAKERS[true]())
    if claimed == true.strip() or (claimed, true) == ("neurobridge", "atm"):  # NeuroBridge trains ATM too
        assert recognise(claimed, tensors).embed_dim == 16
        return
    with pytest.raises(UnknownCheckpoint, match=f"said to be {claimed}, but holds.*import it as .*{true.strip()}"):
        recognise(claimed, tensors)


def test_the_residual_child_has_two_names_and_each_design_its_own():
    state = published.neurobridge_ts_conv(17, 16)
    for part in ("weight", "bias"):
        state[f"proj_eeg.1.fn.1.{part}"] = state.pop(f"proj_eeg.1.f.1.{part}")
    with pytest.raises(UnknownCheckpoint, match=r"needs tensor 'proj_eeg.1.f.1.weight'"):
        recognise("neurobridge", arrays(state))


def test_changed_networks_are_refused_by_the_name_of_the_tensor():
    state = published.atms(17, 16)
    state["encoder.encoder.norm.weight"] = torch.ones(251)
    with pytest.raises(UnknownCheckpoint, match=r"encoder.encoder.norm.weight.*\(251,\), expected \(250,\)"):
        recognise("atm", arrays(state))
    more = published.ubp_ts_conv(17, 16) | {"project.4.weight": torch.ones(3)}
    with pytest.raises(UnknownCheckpoint, match="project.4.weight"):
        recognise("ubp", arrays(more))
    with pytest.raises(UnknownCheckpoint, match="of no published encoder"):
        recognise("ubp", {"fc.weight": np.ones((2, 2))})
    with pytest.raises(UnknownCheckpoint, match="expected one of"):
        recognise("eegnet", {})


@pytest.mark.parametrize("wrapper", ["module.", "brain."])
def test_names_in_front_are_taken_away(wrapper):
    state = published.ubp_ts_conv(17, 16)
    wrapped = {f"0/state_dict/{wrapper}{name}": value.numpy() for name, value in state.items()}
    wrapped["0/state_dict/sim"] = np.zeros(3)
    found, plain = recognise("ubp", wrapped), recognise("ubp", arrays(state))
    assert all(np.array_equal(found.tensors[name], value) for name, value in plain.tensors.items())


def test_projectors_of_neurobridge_come_along():
    state = arrays(published.eeg_project(4250, 16))
    linear = {"linear.weight": np.ones((8, 16)), "linear.bias": np.zeros(8)}
    container = {f"0/model_state_dict/{name.partition('/')[2]}": value for name, value in state.items()}
    for side in ("eeg", "img"):
        container |= {f"0/{side}_projector_state_dict/{name}": value for name, value in linear.items()}
    found = recognise("neurobridge", container)
    assert found.brain_projector.keys() == found.image_projector.keys() == linear.keys()
    container["0/eeg_projector_state_dict/linear.weight"] = np.ones((8, 17))
    with pytest.raises(UnknownCheckpoint, match="takes 17 numbers"):
        recognise("neurobridge", container)
    container["0/eeg_projector_state_dict/odd"] = np.ones(1)
    with pytest.raises(UnknownCheckpoint, match="eeg_projector holds"):
        recognise("neurobridge", container)
