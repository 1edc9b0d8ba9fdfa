"""MATLAB files, level 5 and 7.3, that lie, nest, or take their data from other files."""

import io
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hostile_files import Canary, Case, zip_of
from scipy.io import savemat

HEAD = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def element(kind: int, content: bytes) -> bytes:
    """Return one element of a MATLAB 5 file."""
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(kind: int, content: bytes, dims: tuple[int, ...] = (1, 1), name: bytes = b"EEG") -> bytes:
    """Return an array of class ``kind``."""
    flags = element(6, struct.pack("<II", kind, 0))
    return element(14, flags + element(5, struct.pack(f"<{len(dims)}i", *dims)) + element(1, name) + content)


def cells(depth: int) -> bytes:
    """Return cells in cells."""
    inner = matrix(6, element(9, bytes(8)), name=b"")
    for _ in range(depth):
        inner = matrix(1, inner, name=b"")
    return inner


def structure(**changes: Any) -> dict[str, Any]:
    """Return an EEGLAB structure of three channels."""
    return {
        "nbchan": 3.0, "pnts": 200.0, "trials": 1.0, "srate": 100.0, "xmin": 0.0,
        "data": np.random.default_rng(0).normal(size=(3, 200)),
        "chanlocs": np.rec.fromarrays([np.asarray(["Fp1", "Cz", "Oz"], dtype=object)], names=["labels"]),
        "event": np.rec.fromarrays([np.asarray(["a", "b"], object), [40.0, 60.0]], names=["type", "latency"]),
        "icawinv": [], "icasphere": [], "icaweights": [], "chaninfo": {"x": 1}, "epoch": [], **changes,
    }  # fmt: skip


def mat(**changes: Any) -> bytes:
    """Return an EEGLAB file with fields replaced."""
    return mat_of(EEG=structure(**changes))


def mat_of(**arrays: Any) -> bytes:
    """Return a MATLAB 5 file."""
    buffer = io.BytesIO()
    savemat(buffer, arrays, appendmat=False)
    return buffer.getvalue()


def in_two_formats(level5: bytes, text: bytes, version: bytes, hdf5: bytes) -> bytes:
    """Return ``level5`` in the user block of HDF5, which lies in a last array of small numbers."""
    place = 512 << (len(level5) // 512).bit_length()
    content = bytearray(place) + hdf5
    n = len(content) - len(level5) - 64
    inside = element(6, struct.pack("<II", 9, 0)) + element(5, struct.pack("<ii", 1, n)) + element(1, b"a")
    start = struct.pack("<II", 14, n + 56) + inside + struct.pack("<II", 2, n)
    content[: len(level5) + 64] = text.ljust(124) + version + level5[128:] + start
    return bytes(content)


def matlab5(canary: Canary, samples: dict[str, bytes]) -> Iterator[Case]:
    """MATLAB 5 files."""
    for name, value in {
        "nbchan": 1e9, "pnts": 1e12, "trials": 1e9, "srate": 0.0, "xmin": np.nan,
    }.items():  # fmt: skip
        yield Case(f"EEGLAB: {name} {value:g}", mat(**{name: value}), may_pass=name == "xmin")
    for value in (-1.0, np.nan, np.inf, 1e-300, 1e300, "fast", np.zeros((100, 100)), np.asarray(250 + 5j)):
        yield Case(f"EEGLAB: srate {str(value)[:10]!r}", mat(srate=value))
    for value in (-3.0, 0.0, 2.5, "many"):
        yield Case(f"EEGLAB: nbchan {value}", mat(nbchan=value))
        yield Case(f"EEGLAB: trials {value}", mat(trials=value))
    for value in ("/etc/passwd", str(canary.secret), "../x.fdt", "/dev/zero", "", "x.set", "C:\\x.fdt", "missing.fdt"):
        yield Case(f"EEGLAB: samples in {value!r}", mat(data=value))
        yield Case(f"EEGLAB: samples in {value!r}, zipped", zip_of(("x.set", mat(data=value)), ("y.fdt", bytes(2400))))
    yield Case("EEGLAB: companion too short", zip_of(("x.set", mat(data="x.fdt")), ("x.fdt", bytes(100))))
    yield Case("EEGLAB: samples of text", mat(data=np.full((3, 200), "x")))
    yield Case("EEGLAB: samples NaN", mat(data=np.full((3, 200), np.nan)))
    yield Case("EEGLAB: samples huge", mat(data=np.full((3, 200), 1e300)))
    yield Case("EEGLAB: samples complex", mat(data=np.full((3, 200), 1j)), may_pass=True)
    yield Case("EEGLAB: events at huge times", mat(event=np.rec.fromarrays(
        [np.asarray(["a"], object), [1e300]], names=["type", "latency"])), may_pass=True)  # fmt: skip
    yield Case("EEGLAB: no structure", HEAD + matrix(6, element(9, bytes(8)), name=b"other"))
    for name, kind in {"object": 3, "function": 16, "opaque": 17, "unknown class": 99}.items():
        yield Case(f"MATLAB 5: {name}", HEAD + matrix(kind, element(1, b"x" * 8)))
    yield Case("MATLAB 5: cells 20000 deep", HEAD + cells(2000))
    yield Case("MATLAB 5: huge sizes", HEAD + matrix(6, element(9, bytes(8)), (2**31 - 1, 2**31 - 1)))
    yield Case("MATLAB 5: negative sizes", HEAD + matrix(6, element(9, bytes(8)), (-1, -1)))
    yield Case("MATLAB 5: cells of a billion", HEAD + matrix(1, b"", (2**30, 1)))
    yield Case(
        "MATLAB 5: structure without fields", HEAD + matrix(2, element(5, bytes(4)) + element(1, b""), (2**30, 1))
    )
    yield Case("MATLAB 5: length beyond the end", HEAD + struct.pack("<II", 14, 2**31) + bytes(100))
    yield Case("MATLAB 5: bomb", HEAD + element(15, zlib.compress(bytes(300 << 20), 9)))
    yield Case("MATLAB 5: compressed junk", HEAD + element(15, b"junk" * 100))
    yield Case(
        "MATLAB 5: compressed in compressed", HEAD + element(15, zlib.compress(element(15, zlib.compress(bytes(64)))))
    )
    yield Case("MATLAB 5: two arrays of one name", mat() + mat(data="/etc/passwd")[128:])
    yield Case("MATLAB 5: text of level 7.3", b"MATLAB 7.3" + mat()[10:])
    inside = samples["EEGLAB 7.3"][512:]
    for level in (5.0, 7.3):
        content = in_two_formats(mat(), f"MATLAB {level} MAT-file".encode(), HEAD[124:], inside)
        yield Case(f"MATLAB 5: before HDF5, text of level {level}", content)
    extra = {"data": np.zeros((3, 200)), "nbchan": 1e9, "pnts": 200.0, "srate": 100.0, "trials": 1.0}
    yield Case("EEGLAB: another data set beside the structure", mat_of(EEG=structure(), **extra))
    yield Case("MATLAB 5: wrong byte order", HEAD[:126] + b"MI" + mat()[128:])
    yield Case("MATLAB 5: no byte order", HEAD[:126] + b"XX" + mat()[128:])
    yield Case("MATLAB 5: 500000 empty arrays", HEAD + matrix(1, element(14, b"") * 500_000, (500_000, 1)))


def hdf5(canary: Canary, samples: dict[str, bytes]) -> Iterator[Case]:
    """HDF5 files that lead out of themselves or round in themselves."""
    secret = str(canary.secret)

    def made(name: str, change: Callable[[h5py.File], object], may_pass: bool = False) -> Case:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.set"
            path.write_bytes(samples["EEGLAB 7.3"])
            with h5py.File(path, "r+") as file:
                change(file)
            return Case(f"HDF5: {name}", path.read_bytes(), may_pass=may_pass)

    def replace(file: h5py.File, name: str, **how: Any) -> None:
        del file[name]
        file.create_dataset(name, **how)

    def link(file: h5py.File, name: str, target: object) -> None:
        if name in file:
            del file[name]
        file[name] = target

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(shape=(1000, 63), dtype="f4")
        layout[:] = h5py.VirtualSource(secret, "data", shape=(1000, 63))
        del file["EEG/data"]
        file.create_virtual_dataset("EEG/data", layout)

    def ring(file: h5py.File, other: bool) -> None:
        first = file["#refs#"].create_dataset("ring1", (1, 1), dtype=h5py.ref_dtype)
        second = file["#refs#"].create_dataset("ring2", (1, 1), dtype=h5py.ref_dtype)
        first[0, 0], second[0, 0] = (second if other else first).ref, first.ref
        del file["EEG/chanlocs/labels"]
        start = file["EEG/chanlocs"].create_dataset("labels", (1, 1), dtype=h5py.ref_dtype)
        start[0, 0] = first.ref

    def laughs(file: h5py.File) -> None:
        below = file["#refs#"].create_dataset("lol0", data=np.zeros((1, 1)))
        for level in range(1, 12):
            above = file["#refs#"].create_dataset(f"lol{level}", (10, 1), dtype=h5py.ref_dtype)
            for row in range(10):
                above[row, 0] = below.ref
            below = above
        del file["EEG/chanlocs/labels"]
        start = file["EEG/chanlocs"].create_dataset("labels", (1, 1), dtype=h5py.ref_dtype)
        start[0, 0] = below.ref

    def deep(file: h5py.File) -> None:
        group = file["EEG"]
        for _ in range(500):
            group = group.create_group("a")

    def many(file: h5py.File) -> None:
        for index in range(3000):
            file.create_group(f"EEG/a{index}")

    def half_letter(file: h5py.File) -> None:
        name = file["#refs#"].create_dataset("half", data=np.asarray([[0xD800], [0x41]], dtype=np.uint16))
        name.attrs["MATLAB_class"] = np.bytes_("char")
        file["EEG/chanlocs/labels"][0, 0] = name.ref
        file["EEG/data"][0:1000, 0] = np.nan

    whole = samples["EEGLAB 7.3"]
    yield made("NaN in a channel named by half a letter", half_letter)
    yield made("external link for the samples", lambda f: link(f, "EEG/data", h5py.ExternalLink(secret, "/data")))
    yield made("external link for the structure", lambda f: link(f, "EEG", h5py.ExternalLink(secret, "/")))
    yield made("external link to a device", lambda f: link(f, "EEG/etc", h5py.ExternalLink("/dev/zero", "/")))
    yield made("soft link to the root", lambda f: link(f, "EEG/etc", h5py.SoftLink("/")))
    yield made("soft link to itself", lambda f: link(f, "EEG/etc", h5py.SoftLink("/EEG/etc")))
    yield made("hard link to the root", lambda f: link(f, "EEG/etc", f["/"]))
    yield made("hard link to its parent", lambda f: link(f, "EEG/chanlocs/up", f["EEG"]))
    yield made("virtual dataset", virtual)
    elsewhere = made("external storage", lambda f: replace(
        f, "EEG/data", shape=(1000, 63), dtype="f4", external=[(secret, 0, 252_000)]))  # fmt: skip
    yield elsewhere
    for version in (b"\x00\x02IM", b"\x02\x00MI", b"\x02\x01xM"):
        content = in_two_formats(HEAD, HEAD[:124], version, elsewhere.content[512:])
        yield Case(f"HDF5: external storage as MATLAB 5 of version {version!r}", content)
    yield Case("HDF5: text of level 5", b"MATLAB 5.0" + samples["EEGLAB 7.3"][10:])
    yield made("a reference to itself", lambda f: ring(f, False))
    yield made("references round", lambda f: ring(f, True))
    yield made("a billion laughs", laughs)
    yield made("groups 500 deep", deep)
    yield made("3000 groups more", many, may_pass=True)
    yield made("bomb of fill values", lambda f: replace(f, "EEG/data", shape=(1 << 40, 63), dtype="f4", chunks=(1, 63)))
    yield made("bomb of zeros", lambda f: replace(
        f, "EEG/data", data=np.zeros((2_000_000, 63), "i1"), compression="gzip"))  # fmt: skip
    yield made("samples of text", lambda f: replace(f, "EEG/data", data=["a" * 100] * 10))
    yield made("samples opaque", lambda f: replace(f, "EEG/data", data=np.zeros(10, "V8")))
    yield made("samples a structure", lambda f: replace(f, "EEG/data", data=np.zeros(10, [("a", "f4")])))
    yield made("no samples", lambda f: f.__delitem__("EEG/data"))
    yield made("no structure", lambda f: f.__delitem__("EEG"))
    yield made("channels of a billion", lambda f: replace(f, "EEG/nbchan", data=np.asarray([[1e9]])))
    yield made("rate NaN", lambda f: replace(f, "EEG/srate", data=np.asarray([[np.nan]])))
    yield made("rate zero", lambda f: replace(f, "EEG/srate", data=np.asarray([[0.0]])))
    yield made(
        "samples in another file", lambda f: replace(f, "EEG/data", data=np.frombuffer(secret.encode(), "u1")[:, None])
    )
    yield made("packed with lzf", lambda f: replace(f, "EEG/data", data=np.zeros((1000, 63), "f4"), compression="lzf"))
    yield made(
        "a type by reference to a region", lambda f: f["EEG"].create_dataset("r", (1,), dtype=h5py.regionref_dtype)
    )
    yield made("SNIRF", lambda f: f.create_group("nirs"))
    yield Case("HDF5: superblock of zeros", whole[:520] + bytes(200) + whole[720:])
    for at in (600, 2000, 8000):
        yield Case(f"HDF5: zeros at {at}", whole[:at] + bytes(64) + whole[at + 64 :], may_pass=True)
