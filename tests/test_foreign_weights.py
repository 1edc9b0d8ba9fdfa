"""Checkpoints of torch are read to the bit without torch, and damaged or hostile ones are refused in a sentence."""

import io
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from encoders import foreign_weights
from encoders.foreign_weights import ForeignWeightsError, read_foreign_weights


def saved(content, **how):
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def read(content):
    return read_foreign_weights(io.BytesIO(content))


def rezipped(content, change=lambda name, body: body, compression=zipfile.ZIP_STORED, more=()):
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            body = change(name, old.read(name))
            if body is not None:
                new.writestr(name, body)
        for name, body in more:
            new.writestr(name, body)
    return target.getvalue()


def weights():
    torch.manual_seed(0)
    return {"a": torch.randn(3, 4), "b": torch.arange(5), "n": torch.tensor(7)}


@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"],
)
def test_every_type_is_read(dtype):
    tensor = torch.tensor([[0.0, 1.0, -2.5], [3.0, 1e-3, 90.0]]).abs().to(getattr(torch, dtype))
    got = read(saved({"x": tensor}))["x"]
    wanted = tensor.float() if tensor.is_floating_point() else tensor
    np.testing.assert_array_equal(got, wanted.numpy())
    assert got.dtype == wanted.numpy().dtype and got.flags.c_contiguous


def test_views_parameters_and_shared_storages():
    base = torch.arange(24.0).reshape(4, 6)
    content = {
        "turned": base.T[1:, ::2],
        "tail": base[2:],
        "wide": torch.ones(1).expand(5, 3),
        "parameter": torch.nn.Parameter(base),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.0),
        "one row": base[1:2],
    }
    got = read(saved(content))
    assert got.keys() == content.keys()
    for name, tensor in content.items():
        np.testing.assert_array_equal(got[name], tensor.detach().numpy())


def test_a_state_dict_of_modules_and_containers_with_training_state():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "loss": 0.5,
        "state_dict": module.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "hyper_parameters": {"path": __import__("pathlib").Path("x"), "layers": [torch.ones(2)]},
    }
    got = read(saved(content))
    assert set(got) == {f"state_dict/{name}" for name in module.state_dict()} | {"hyper_parameters/layers/0"}
    np.testing.assert_array_equal(got["state_dict/1.running_var"], module[1].running_var.numpy())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(protocol):
    got = read(saved(weights(), pickle_protocol=protocol))
    np.testing.assert_array_equal(got["a"], weights()["a"].numpy())


def test_the_old_format_is_refused_with_what_to_do():
    with pytest.raises(ForeignWeightsError, match=r"not a zip.*save its state dict again with torch 1\.6"):
        read(saved(weights(), _use_new_zipfile_serialization=False))
    for content in (b"", b"junk", b"PK\x03\x04"):
        with pytest.raises(ForeignWeightsError):
            read(content)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(part):
    content = saved(weights())
    with pytest.raises(ForeignWeightsError, match="cut short"):
        read(content[: int(part * len(content))])


def test_flipped_bits_of_a_storage_are_seen():
    content = bytearray(saved(weights()))
    where = bytes(content).index(weights()["a"].numpy().tobytes())
    content[where] ^= 1
    with pytest.raises(ForeignWeightsError, match="damaged"):
        read(bytes(content))


def test_storages_of_another_size_are_refused():
    shorter = rezipped(saved(weights()), lambda name, body: body[:-4] if name.endswith("data/0") else body)
    with pytest.raises(ForeignWeightsError, match=r"'a' has 44 bytes, expected 12 x 4"):
        read(shorter)
    missing = rezipped(saved(weights()), lambda name, body: None if name.endswith("data/0") else body)
    with pytest.raises(ForeignWeightsError, match="refers to storage '0', which the file lacks"):
        read(missing)


def test_views_beyond_their_storage_are_refused():
    def stretch(name, body):  # the shape (3, 4) becomes (3, 100)
        return body.replace(b"K\x03K\x04\x86", b"K\x03K\x64\x86") if name.endswith("data.pkl") else body

    with pytest.raises(ForeignWeightsError, match=r"of shape \(3, 100\) ends at element 108 of a storage of 12"):
        read(rezipped(saved(weights()), stretch))


def test_bombs_are_refused():
    packed = rezipped(saved({"x": torch.zeros(1_000_000)}), compression=zipfile.ZIP_DEFLATED)
    assert len(packed) < 10_000
    with pytest.raises(ForeignWeightsError, match="compressed"):
        read(packed)
    wide = saved({"x": torch.ones(1).expand(1 << 20, 1 << 20)})
    with pytest.raises(ForeignWeightsError, match="unpack to"):
        read(wide)
    twice = rezipped(saved(weights()))
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = rezipped(twice, more=[("archive/data/0", b"x")])
    with pytest.raises(ForeignWeightsError, match="twice"):
        read(twice)


def test_members_that_overlap_are_refused():
    content = saved({"x": torch.zeros(100_000)})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        large = next(member for member in archive.infolist() if member.file_size == 400_000)
    again = io.BytesIO(content)
    with zipfile.ZipFile(again, "a") as archive:
        for k in range(5):
            copy = zipfile.ZipInfo(f"archive/data/again{k}")
            copy.file_size = copy.compress_size = large.file_size
            copy.header_offset, copy.CRC = large.header_offset, large.CRC
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
        archive._didModify = True
    with pytest.raises(ForeignWeightsError, match="more bytes than the file has"):
        read(again.getvalue())


def test_limits_on_numbers(monkeypatch):
    monkeypatch.setattr(foreign_weights, "MAX_TENSORS", 2)
    with pytest.raises(ForeignWeightsError, match="more than 2 tensors"):
        read(saved(weights()))
    monkeypatch.setattr(foreign_weights, "MAX_MEMBERS", 3)
    with pytest.raises(ForeignWeightsError, match="at most 3"):
        read(saved(weights()))
    monkeypatch.undo()
    monkeypatch.setattr(foreign_weights, "MAX_PICKLE_BYTES", 10)
    with pytest.raises(ForeignWeightsError, match="at most 10"):
        read(saved(weights()))


def test_a_hostile_checkpoint_runs_nothing_and_its_tensors_are_read(tmp_path):
    mark = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    content = saved({"state_dict": weights(), "hyper_parameters": Payload()})
    np.testing.assert_array_equal(read(content)["state_dict/a"], weights()["a"].numpy())
    assert not mark.exists()
    torch.load(io.BytesIO(content), weights_only=False)  # the file is a working attack
    assert mark.exists()


def test_what_holds_no_tensors_is_named():
    with pytest.raises(ForeignWeightsError, match=r"objects of.*Linear.*save model.state_dict"):
        read(saved(torch.nn.Linear(2, 2)))
    with pytest.raises(ForeignWeightsError, match="no dictionary of tensors"):
        read(saved({"epoch": 1}))
    loop = {}
    loop["again"] = loop
    with pytest.raises(ForeignWeightsError, match="no dictionary of tensors"):
        read(rezipped(saved({}), lambda name, body: pickle.dumps(loop) if name.endswith("data.pkl") else body))


def test_other_zips_are_told_apart():
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("a.npy", b"x")
    with pytest.raises(ForeignWeightsError, match="0 members called"):
        read(plain.getvalue())
    with pytest.raises(ForeignWeightsError, match="TorchScript"):
        read(rezipped(saved(weights()), more=[("archive/code/x.py", b"")]))
    with pytest.raises(ForeignWeightsError, match="little-endian"):
        read(rezipped(saved(weights()), lambda name, body: b"big" if name.endswith("byteorder") else body))


def test_the_reader_needs_no_torch():
    code = "import sys, encoders.foreign_weights; print({'torch', 'mne', 'pydantic'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
