"""Encoder folders: written, loaded again, and used on recordings that fit, or refused in a sentence."""

import json

import numpy as np
import published_files as published
import pytest
import torch
from published_files import recording

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.imported_encoder import (
    CHANNELS_17,
    CHANNELS_63,
    IMAGE_PROJECTOR,
    INFO,
    STATE,
    embed_epochs,
    import_encoder,
    load_encoder,
    save_embeds,
)
from encoders.published_checkpoints import UnknownCheckpoint

SOURCE = {"40.pth": "0" * 64}


def arrays(state, path="0"):
    return {f"{path}/{name}": value.numpy() for name, value in state.items()}


@pytest.fixture
def atm(tmp_path):
    torch.manual_seed(0)
    state = published.atms(17, 32)
    import_encoder("atm", arrays(state), tmp_path / "atm", source=SOURCE)
    return tmp_path / "atm", state


def test_the_montages_are_those_of_the_publications():
    assert len(set(CHANNELS_63)) == 63 and "Fz" not in CHANNELS_63 and CHANNELS_63[30] == "Cz"
    assert len(set(CHANNELS_17)) == 17 and CHANNELS_63[-17:] == CHANNELS_17


def test_a_folder_says_what_it_wants_and_loads_what_was_written(atm):
    folder, state = atm
    network, info = load_encoder(folder)
    assert (info.design, info.embed_dim, info.target_space) == ("ATMS", 32, "open_clip ViT-H-14 laion2b_s32b_b79k")
    assert (info.input.n_channels, info.input.n_times, info.input.sfreq, info.input.tmin) == (17, 250, 250.0, 0.0)
    assert info.input.whitening == "MVNN" and info.source == SOURCE
    assert info.logit_scale == {"stored": pytest.approx(2.659, abs=1e-3), "used": "as stored"}
    written = json.loads((folder / INFO).read_text())
    assert written["config"]["name"] == "atm" and written["subjects"]["sub-10"] == 10
    assert not network.training and not (folder / IMAGE_PROJECTOR).exists()


def test_embeddings_are_those_of_the_published_network(atm):
    folder, state = atm
    epochs = recording()
    for subject, number in (("sub-03", 3), ("sub-10", 10), ("", 10)):
        embeds, _ = embed_epochs(folder, epochs, subject=subject)
        expected = published.run_atms(state, torch.from_numpy(epochs.data), torch.full((3,), number))
        np.testing.assert_allclose(embeds, expected.numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="does not know subject 'sub-11'"):
        embed_epochs(folder, epochs, subject="sub-11")


def test_channels_are_found_by_name_and_long_epochs_are_cut(atm):
    folder, _ = atm
    epochs = recording()
    expected, _ = embed_epochs(folder, epochs)
    extra = recording(ch_names=(*CHANNELS_17, "Fp1"), n_times=301, tmin=-0.2)
    extra.data[:, :17, 50:300] = epochs.data
    shuffled = extra.pick(tuple(reversed(extra.ch_names)))
    np.testing.assert_allclose(embed_epochs(folder, shuffled)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"sfreq": 200.0}, "expects 250 Hz, the recording has 200 Hz"),
        ({"ch_names": CHANNELS_17[:16]}, r"lacks \['O2'\]"),
        ({"n_times": 249}, "250 samples from 0 s after the onset, the recording has 249"),
        ({"tmin": 0.1}, "from 0.1 s"),
        ({"tmin": -0.2}, "from -0.2 s"),
        ({"scale": 1e-5}, r"whitened epochs.*9.97e-06.*--whiten"),
    ],
)
def test_recordings_that_do_not_fit_are_refused(atm, made, said):
    with pytest.raises(EpochsMismatch, match=said):
        embed_epochs(atm[0], recording(**made))


def test_raw_volts_can_be_whitened_by_their_own_noise(atm):
    mixing = np.random.default_rng(1).standard_normal((17, 17))
    epochs = recording(8)
    mixed = np.asarray(1e-5 * (mixing @ epochs.data), dtype=np.float32)
    volts = SignalEpochs(mixed, 250.0, 0.0, CHANNELS_17, ("eeg",) * 17, epochs.positions)
    embeds, _ = embed_epochs(atm[0], volts, whiten=True)
    louder = SignalEpochs(10 * mixed, 250.0, 0.0, CHANNELS_17, ("eeg",) * 17, epochs.positions)
    np.testing.assert_allclose(embed_epochs(atm[0], louder, whiten=True)[0], embeds, atol=1e-3)


def test_channels_without_names_are_counted(tmp_path):
    torch.manual_seed(0)
    info = import_encoder("ubp", arrays(published.ubp_ts_conv(5, 16)), tmp_path, source=SOURCE)
    assert info.input.ch_names == () and info.subjects == {} and info.logit_scale["used"] == "softplus"
    embeds, _ = embed_epochs(tmp_path, recording(ch_names=CHANNELS_17[:5]))
    assert embeds.shape == (3, 16)
    with pytest.raises(EpochsMismatch, match="expects 5 channels"):
        embed_epochs(tmp_path, recording())
    with pytest.raises(ValueError, match="no person"):
        embed_epochs(tmp_path, recording(ch_names=CHANNELS_17[:5]), subject="sub-01")


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_neurobridge_with_projectors(tmp_path, kind):
    torch.manual_seed(0)
    state = published.eeg_project(4250, 16)
    projector = {"linear": torch.nn.Linear(16, 8)} if kind == "linear" else {
        "mlp": torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
    }  # fmt: skip
    module = torch.nn.ModuleDict(projector)
    tensors = arrays(state, "0/model_state_dict")
    for side in ("eeg", "img"):
        tensors |= arrays(module.state_dict(), f"0/{side}_projector_state_dict")
    info = import_encoder("neurobridge", tensors, tmp_path, source=SOURCE)
    assert (info.brain_projector, info.image_projector) == (kind, kind) and (tmp_path / IMAGE_PROJECTOR).is_file()
    epochs = recording()
    embeds, _ = embed_epochs(tmp_path, epochs)
    hidden = published.run_head(state, torch.from_numpy(epochs.data).flatten(1), published.PROJECT_HEAD)
    with torch.no_grad():
        np.testing.assert_allclose(embeds, module[kind](hidden).numpy(), atol=1e-5)


def test_target_space_can_be_named(tmp_path):
    info = import_encoder(
        "ubp", arrays(published.eeg_project(4250, 16, True)), tmp_path, source=SOURCE, target_space="open_clip ViT-B-32"
    )
    assert info.target_space == "open_clip ViT-B-32"


def test_nothing_is_written_for_a_wrong_claim(tmp_path):
    with pytest.raises(UnknownCheckpoint, match="said to be ubp"):
        import_encoder("ubp", arrays(published.atms(17, 16)), tmp_path / "out", source=SOURCE)
    assert not (tmp_path / "out").exists()


def test_damaged_folders_are_named(atm, tmp_path):
    folder, _ = atm
    with pytest.raises(ValueError, match=r"no encoder.json; make it with `phosphene import`"):
        load_encoder(tmp_path)
    info = json.loads((folder / INFO).read_text())
    (folder / INFO).write_text(json.dumps({**info, "embed_dim": 31}))
    with pytest.raises(ValueError, match="does not fit"):
        load_encoder(folder)
    (folder / INFO).write_text(json.dumps({**info, "new": 1}))
    with pytest.raises(ValueError, match="not readable"):
        load_encoder(folder)
    (folder / INFO).write_text(json.dumps(info))
    (folder / STATE).write_bytes((folder / STATE).read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        load_encoder(folder)
    (folder / STATE).unlink()
    with pytest.raises(ValueError, match=r"no encoder.safetensors"):
        load_encoder(folder)


def test_embeddings_are_stored_with_their_stimuli(atm, tmp_path):
    epochs = recording()
    embeds, info = embed_epochs(atm[0], epochs)
    save_embeds(tmp_path / "embeds.npz", embeds, epochs, info)
    with np.load(tmp_path / "embeds.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["brain_embeds"], embeds)
        assert tuple(stored["stimulus"]) == epochs.stimulus
        assert json.loads(str(stored["encoder"]))["design"] == "ATMS"
