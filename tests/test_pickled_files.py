"""The four forms of pickled data files are told apart by their content and read in place."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.pickled_files import read_pickled_file

DATA = np.random.default_rng(0).standard_normal((20, 4, 30, 25))


def content() -> dict[str, object]:
    return {"preprocessed_eeg_data": DATA, "ch_names": ["O1", "Oz"], "times": np.linspace(0, 1, 25)}


def write(path: Path, form: str) -> Path:
    match form:
        case "numpy dict":
            np.save(path, content(), allow_pickle=True)  # type: ignore[arg-type]
        case "pickle":
            path.write_bytes(pickle.dumps(content(), 4))
        case "torch":
            torch.save(content(), path, pickle_protocol=5)
        case "torch, protocol 2":
            torch.save(content(), path)
    return path


@pytest.mark.parametrize("form", ["numpy dict", "pickle", "torch", "torch, protocol 2"])
def test_every_form_gives_the_same_dictionary(tmp_path: Path, form: str) -> None:
    read = read_pickled_file(write(tmp_path / "data.npy", form))
    assert list(read) == list(content()) and read["ch_names"] == ["O1", "Oz"]
    np.testing.assert_array_equal(read["preprocessed_eeg_data"], DATA)
    np.testing.assert_array_equal(read["times"], content()["times"])


def test_plain_arrays_are_mapped_in_both_orders(tmp_path: Path) -> None:
    for order in ("C", "F"):
        np.save(tmp_path / "x.npy", np.asarray(DATA, order=order))
        read = read_pickled_file(tmp_path / "x.npy")
        assert isinstance(read, np.memmap) and not read.flags.writeable
        np.testing.assert_array_equal(read, DATA)


def test_tensors_come_as_arrays(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float16).reshape(4, 6)
    tensors = {"eeg": base, "part": base[1:3, ::2], "t": base.T, "n": torch.tensor(3), "e": torch.zeros(0, 2)}
    torch.save({**tensors, "img": np.array(["a/b.jpg"])}, tmp_path / "train.pt")
    read = read_pickled_file(tmp_path / "train.pt")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor.numpy())
    assert read["img"].tolist() == ["a/b.jpg"]


def test_reading_does_not_take_the_memory_of_the_arrays(tmp_path: Path) -> None:
    """A hole of 4 GiB is a file of some kilobytes on disk, and could not be copied in the time of a test."""
    n = (4 << 30) // 8
    head = pickle.dumps({"data": np.zeros(9000)}, 4)
    assert head.count(b"B" + (72000).to_bytes(4, "little")) == 1
    start = head.index(b"B" + (72000).to_bytes(4, "little"))
    tail = head[start + 5 + 72000 :]
    shape = head[:start].replace(b"M\x28\x23\x85", b"J" + n.to_bytes(4, "little") + b"\x85")
    assert shape != head[:start]
    path = tmp_path / "large.npy"
    with path.open("wb") as file:
        file.write(shape + b"\x8e" + (n * 8).to_bytes(8, "little"))
        file.seek(n * 8, 1)
        file.write(tail)
    data = read_pickled_file(path)["data"]
    assert data.shape == (n,) and data[-1] == 0.0 and data.nbytes == 4 << 30


def broken(path: Path, form: str) -> Path:
    good = write(path, form).read_bytes()
    path.write_bytes(good[: len(good) // 2])
    return path


@pytest.mark.parametrize("form", ["numpy dict", "pickle", "torch"])
def test_a_file_that_is_cut_short_is_refused_with_its_name(tmp_path: Path, form: str) -> None:
    with pytest.raises(ValueError, match=r"data\.npy.*(cut short|damaged)"):
        read_pickled_file(broken(tmp_path / "data.npy", form))


def test_a_plain_array_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", DATA)
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="is cut short"):
        read_pickled_file(tmp_path / "x.npy")


@pytest.mark.parametrize("form", ["numpy", "pickle", "torch"])
def test_code_in_any_form_is_named_and_not_run(tmp_path: Path, form: str) -> None:
    mark = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (mark,)

    path = tmp_path / "data.npy"
    if form == "numpy":
        np.save(path, {"a": Payload()}, allow_pickle=True)  # type: ignore[arg-type]
    elif form == "pickle":
        path.write_bytes(pickle.dumps({"a": Payload()}, 4))
    else:
        torch.save({"a": Payload()}, path)
    with pytest.raises(ValueError, match="the pickle asks for '(builtins getattr|__builtin__ getattr|pathlib )"):
        read_pickled_file(path)
    assert not mark.exists()


def test_zips_that_are_not_of_torch_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/file.txt", "x")
    with pytest.raises(ValueError, match="0 members <name>/data.pkl"):
        read_pickled_file(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}." + b"0" * 99)
    with pytest.raises(ValueError, match="is compressed"):
        read_pickled_file(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="starts with b'<html>'"):
        read_pickled_file(tmp_path / "x.npy")
