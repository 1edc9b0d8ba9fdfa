"""`phosphene import` and `phosphene embed`, from a file of torch to embeddings of a recording."""

import hashlib
import json
import os
import re

import numpy as np
import published_files as published
import pytest
import torch
from published_files import recording

from encoders.imported_encoder import load_encoder
from encoders.published_checkpoints import KINDS
from serving.cli import _parser, main
from serving.importing import import_files
from serving.landlock import landlock_version

pytestmark = pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_the_command_offers_every_kind():
    for kind in KINDS:
        assert _parser().parse_args(["import", kind, "x.pth", "--out", "d"]).kind == kind


def test_from_a_checkpoint_to_embeddings(tmp_path, capsys):
    state = published.atms(17, 32)
    torch.save(state, tmp_path / "40.pth")
    out = str(tmp_path / "atm")
    assert main(["import", "atm", str(tmp_path / "40.pth"), "--out", out]) == 0
    told = capsys.readouterr().out
    assert "ATMS: 17 channels x 250 samples at 250 Hz" in told and "ViT-H-14" in told and "phosphene embed" in told
    sha256 = hashlib.sha256((tmp_path / "40.pth").read_bytes()).hexdigest()
    assert load_encoder(tmp_path / "atm")[1].source == {"40.pth": sha256}
    epochs = recording()
    epochs.save(tmp_path / "epochs.npz")
    arguments = ["embed", out, str(tmp_path / "epochs.npz"), "--out", str(tmp_path / "e.npz"), "--subject", "sub-02"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["width"] == 32
    expected = published.run_atms(state, torch.from_numpy(epochs.data), torch.full((3,), 2))
    with np.load(tmp_path / "e.npz") as stored:
        np.testing.assert_allclose(stored["brain_embeds"], expected.numpy(), atol=1e-5)
        assert tuple(stored["stimulus"]) == epochs.stimulus
    assert main(arguments) == 0 and "wrote 3 embeddings of width 32" in capsys.readouterr().out
    assert main(["import", "atm", str(tmp_path / "40.pth"), "--out", out, "--json", "--target", "mine"]) == 0
    assert json.loads(capsys.readouterr().out)["target_space"] == "mine"


def test_recordings_in_fif_are_read_too(tmp_path, capsys):
    torch.save(published.eeg_project(4250, 16, True), tmp_path / "last.pth")
    assert main(["import", "ubp", str(tmp_path / "last.pth"), "--out", str(tmp_path / "ubp")]) == 0
    recording().save(tmp_path / "a-epo.fif")
    assert main(["embed", str(tmp_path / "ubp"), str(tmp_path / "a-epo.fif"), "--out", str(tmp_path / "e.npz")]) == 0
    with np.load(tmp_path / "e.npz") as stored:
        assert stored["brain_embeds"].shape == (3, 16)


def test_nice_as_two_files_or_their_folder(tmp_path):
    convolutions, projection = published.nice(16)
    (tmp_path / "model").mkdir()
    torch.save(convolutions, tmp_path / "model" / "test0Enc_eeg_cls.pth")
    torch.save(projection, tmp_path / "model" / "test0Proj_eeg_cls.pth")
    torch.save(projection, tmp_path / "model" / "test0Proj_img_cls.pth")
    whole = import_files("nice", [tmp_path / "model"], tmp_path / "a")
    files = [tmp_path / "model" / f"test0{part}_eeg_cls.pth" for part in ("Proj", "Enc")]
    parts = import_files("nice", files, tmp_path / "b")
    assert whole.source.keys() == parts.source.keys() and len(whole.source) == 2
    data = torch.randn(2, 63, 250)
    flat = published.run_ts_conv(convolutions, data, "0.tsconv", "0.projection.0", "position")
    expected = published.run_head(projection, flat, published.NICE_HEAD)
    for folder in ("a", "b"):
        network, _ = load_encoder(tmp_path / folder)
        with torch.no_grad():
            got = network(data, torch.rand(63, 2), torch.zeros(2).long())
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    (tmp_path / "model" / "test1Enc_eeg_cls.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="holds 2 files .*Enc_eeg_cls.pth, expected one"):
        import_files("nice", [tmp_path / "model"], tmp_path / "c")
    with pytest.raises(ValueError, match="is a folder, expected a checkpoint file of ubp"):
        import_files("ubp", [tmp_path / "model"], tmp_path / "c")


def test_containers_of_neurobridge_and_lightning(tmp_path):
    state, projector = published.neurobridge_ts_conv(17, 16), torch.nn.ModuleDict({"linear": torch.nn.Linear(16, 8)})
    optimizer = torch.optim.AdamW(projector.parameters())
    content = {
        "epoch": 50,
        "model_state_dict": state,
        "eeg_projector_state_dict": projector.state_dict(),
        "img_projector_state_dict": projector.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "loss": 0.1,
    }
    torch.save(content, tmp_path / "checkpoint_last.pth")
    info = import_files("neurobridge", [tmp_path / "checkpoint_last.pth"], tmp_path / "n")
    assert (info.design, info.brain_projector) == ("NeuroBridge TSConv", "linear")
    brain = published.ubp_ts_conv(17, 16)
    lightning = {
        "epoch": 3,
        "pytorch-lightning_version": "2",
        "state_dict": {f"brain.{name}": value for name, value in brain.items()},
        "callbacks": {"ModelCheckpoint": {"best": torch.tensor(1.0)}},
        "hyper_parameters": {"config": torch.nn.Identity()},
    }
    torch.save(lightning, tmp_path / "last.ckpt")
    assert import_files("ubp", [tmp_path / "last.ckpt"], tmp_path / "u").design == "UBP TSconv"


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (lambda: published.atms(17, 16), "ubp", "said to be ubp, but holds ATMS .53 tensors.; import it as atm"),
        (lambda: {"fc.weight": torch.ones(2, 2)}, "nice", "of no published encoder known here"),
        (lambda: published.nice(16)[0], "nice", "Proj_eeg_cls.pth is missing"),
        (lambda: published.eeg_project(3200, 16), "neurobridge", "--samples"),
    ],
)
def test_what_cannot_be_imported_ends_with_status_2_and_a_sentence(tmp_path, capsys, content, kind, said):
    torch.save(content(), tmp_path / "x.pth")
    assert main(["import", kind, str(tmp_path / "x.pth"), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert re.search(said, told) and "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_hostile_damaged_and_old_files(tmp_path, capsys):
    mark = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    torch.save({**published.eeg_project(4250, 16, True), "evil": Payload()}, tmp_path / "evil.pth")
    assert main(["import", "ubp", str(tmp_path / "evil.pth"), "--out", str(tmp_path / "out")]) == 0
    torch.save(published.eeg_project(4250, 16), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "evil.pth").read_bytes()[:5000])
    capsys.readouterr()
    for name, said in (("old.pth", "torch 1.6"), ("cut.pth", "cut short"), ("none.pth", "none.pth")):
        assert main(["import", "ubp", str(tmp_path / name), "--out", str(tmp_path / "no")]) == 2
        assert said in capsys.readouterr().err
    assert not mark.exists() and not (tmp_path / "no").exists()
    recording(sfreq=500.0).save(tmp_path / "e.npz")
    arguments = ["embed", str(tmp_path / "out"), str(tmp_path / "e.npz"), "--out", str(tmp_path / "x.npz")]
    assert main(arguments) == 2
    assert "expects 250 Hz, the recording has 500 Hz" in capsys.readouterr().err
