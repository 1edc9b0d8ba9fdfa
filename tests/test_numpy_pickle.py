"""Pickled arrays are read as numpy and pickle read them, and everything else is refused by name."""

import builtins
import datetime
import os
import pickle
import random
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest

from encoders.inert_pickle import PickleRefused
from encoders.numpy_pickle import read_numpy_pickle
from encoders.pickled_arrays import MAX_TEXT_BYTES

DTYPES = ["<f8", "<f4", "<f2", ">f8", "<i8", ">i4", "i1", "u1", "<u2", "?", "<c16", "<U7", "S5"]


def read(content: bytes):
    value, n_bytes = read_numpy_pickle(memoryview(content))
    assert n_bytes == len(content)
    return value


def random_array(source: random.Random) -> np.ndarray:
    rng = np.random.default_rng(source.randrange(1 << 30))
    shape = tuple(source.choice([0, 1, 2, 3, 5]) for _ in range(source.randrange(4)))
    array = rng.integers(0, 255, (*shape, 16)).astype("u1").sum(axis=-1).astype(source.choice(DTYPES))
    return np.asfortranarray(array) if source.random() < 0.3 else array


def random_value(source: random.Random, depth: int = 0):
    kinds = ["text", "bytes", "int", "float", "none", "bool", "array", "scalar", "complex"]
    kind = source.choice(kinds + ["dict", "list", "tuple", "objects"] * (depth < 4))
    match kind:
        case "text":
            return "".join(chr(source.choice([65, 0xE4, 0x4E2D, 0x1F600, 10])) for _ in range(source.randrange(300)))
        case "bytes":
            return source.randbytes(source.choice([0, 3, 300]))
        case "int":
            return source.choice([0, -1, 255, 256, 65536, -(2**31), 2**40, 2**200])
        case "float":
            return source.choice([0.0, -1.5, 1e300, float("inf")])
        case "none":
            return None
        case "bool":
            return source.random() < 0.5
        case "array":
            return random_array(source)
        case "scalar":
            return source.choice([np.float32(1.5), np.int64(-3), np.str_("ab"), np.bool_(True)])
        case "complex":
            return complex(1, -2)
        case "dict":
            keys = [f"k{i}" for i in range(source.randrange(5))] + [3, b"k"]
            return {key: random_value(source, depth + 1) for key in keys}
        case "objects":
            array = np.empty((2, 3), dtype=object)
            for i in np.ndindex(array.shape):
                array[i] = random_value(source, depth + 2)
            return array
        case _:
            values = [random_value(source, depth + 1) for _ in range(source.randrange(6))]
            return tuple(values) if kind == "tuple" else values


def same(a, b) -> None:
    if isinstance(b, np.ndarray):
        assert isinstance(a, np.ndarray) and a.shape == b.shape
        assert a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")  # numpy swaps foreign bytes while it reads
        if b.dtype == object:
            for one, other in zip(a.ravel(), b.ravel(), strict=True):
                same(one, other)
        else:
            np.testing.assert_array_equal(a, b)
    elif isinstance(b, dict):
        assert list(a) == list(b)
        for key in b:
            same(a[key], b[key])
    elif isinstance(b, list | tuple):
        assert type(a) is type(b) and len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    else:
        assert type(a) is type(b) and a == b


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_random_nested_values_are_read_as_pickle_reads_them(protocol: int) -> None:
    for seed in range(150):
        value = random_value(random.Random(seed))
        content = pickle.dumps(value, protocol)
        same(read(content), pickle.loads(content))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_shared_and_recursive_containers_keep_their_identity(protocol: int) -> None:
    shared = np.arange(4.0)
    loop: list[object] = [shared, shared]
    loop.append(loop)
    got = read(pickle.dumps(loop, protocol))
    assert got[0] is got[1] and got[2] is got


def test_names_of_both_numpy_generations_are_known() -> None:
    value = {"a": np.arange(3), "b": np.float64(2)}
    content = pickle.dumps(value, 2)
    assert b"numpy._core.multiarray" in content
    same(read(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")), value)


@pytest.mark.parametrize("protocol", [4, 5])
def test_large_arrays_are_views_of_the_file_and_read_only(protocol: int) -> None:
    array = np.random.default_rng(0).standard_normal((100, 100, 10))
    content = np.frombuffer(pickle.dumps({"data": array}, protocol), dtype=np.uint8)
    value, _ = read_numpy_pickle(memoryview(content))
    assert np.shares_memory(value["data"], content) and not value["data"].flags.writeable
    np.testing.assert_array_equal(value["data"], array)


def test_long_arrays_of_protocol_2_are_decoded_in_blocks() -> None:
    array = np.random.default_rng(0).integers(0, 256, MAX_TEXT_BYTES + 12345).astype(np.uint8)
    np.testing.assert_array_equal(read(pickle.dumps(array, 2)), array)


class Call:
    def __init__(self, function, *arguments) -> None:
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def objects(value) -> np.ndarray:
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


def hostile() -> list[tuple[str, object, str]]:
    return [
        ("system", Call(os.system, "true"), "asks for .*system"),
        ("eval", Call(builtins.eval, "1+1"), "asks for .*eval"),
        ("exec in a list", [1, {"a": Call(builtins.exec, "")}], "asks for .*exec"),
        ("getattr", Call(builtins.getattr, 1, "real"), "asks for .*getattr"),
        ("inside an object array", objects(Call(os.system, "true")), "asks for .*system"),
        ("process", Call(subprocess.Popen, ["true"]), "asks for .*Popen"),
        ("nested", Call(os.getenv, Call(os.getcwd)), "asks for .*(getenv|getcwd)"),
        ("a class", threading.Thread, "asks for .*threading Thread"),
        ("numpy's own loader", Call(np.load, "x"), "asks for .*numpy load"),
        ("a date", datetime.date(2020, 1, 1), "asks for .*datetime date"),
        ("a set", {1, 2}, "EMPTY_SET|builtin(s|__) set"),
        ("an instance", Call(random.Random), "asks for .*random Random"),
        ("ndarray itself", np.ndarray, "holds 'numpy ndarray' itself"),
        ("ndarray called", Call(np.ndarray, (3,)), "calls 'numpy ndarray'"),
        ("a structured type", np.zeros(2, dtype=[("a", "f8")]), "element type 'V8'"),
        ("dates", np.zeros(2, dtype="M8[s]"), "element type 'M8'"),
        ("a tuple as key", {(1, 2): 3}, "tuple as key"),
    ]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(("name", "value", "reason"), hostile(), ids=[name for name, _, _ in hostile()])
def test_anything_else_is_named_and_refused(name: str, value: object, reason: str, protocol: int) -> None:
    with pytest.raises(PickleRefused, match=reason):
        read(pickle.dumps({"data": value}, protocol))


def test_a_working_attack_does_not_run(tmp_path) -> None:
    mark = tmp_path / "ran"
    content = pickle.dumps({"data": np.zeros(3), "evil": objects(Call(os.system, f"touch {mark}"))}, 4)
    with pytest.raises(PickleRefused, match="asks for 'posix system'"):
        read(content)
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists()


def test_names_are_never_imported() -> None:
    sys.modules.pop("antigravity", None)
    for content in (b"\x80\x02cantigravity\nfly\n.", b"\x80\x04\x8c\x0bantigravity\x8c\x03fly\x93."):
        with pytest.raises(PickleRefused, match="asks for 'antigravity fly'"):
            read(content)
    assert "antigravity" not in sys.modules


def test_every_truncation_and_every_flipped_byte_is_refused_or_read_without_harm() -> None:
    content = pickle.dumps({"data": np.arange(5), "names": ["a", "b"], "f": np.float32(1)}, 4)
    for n in range(len(content)):
        with pytest.raises(PickleRefused):
            read_numpy_pickle(memoryview(content[:n]))
    for i in range(len(content)):
        for flip in (1, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[i] ^= flip
            try:
                read_numpy_pickle(memoryview(bytes(damaged)))
            except PickleRefused:
                pass


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.", "behind its end"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.", "behind its end"),
        (b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"\0.", "bytes, which no data file needs"),
        (b"\x80\x02c" + b"a" * 5000 + b"\nb\n.", "name without an end"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "instruction NEWOBJ"),
        (b"\x80\x02ccopyreg\n_reconstructor\n.", "copyreg _reconstructor"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "outside of it"),
        (b"\x80\x02]2.", "instruction DUP"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"", "cut short"),
        (b"\xff", "unknown instruction"),
        (b"\x80\x02" + b"(" * 10 + b"t" * 11 + b".", "never begun"),
    ],
)
def test_broken_and_odd_instructions_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(PickleRefused, match=reason):
        read_numpy_pickle(memoryview(content))


def test_an_array_that_promises_more_than_it_has_is_refused() -> None:
    content = pickle.dumps(np.arange(3.0), 4)
    assert content.count(b"K\x03\x85") == 1
    with pytest.raises(PickleRefused, match=r"shape \(9,\) and type float64 has 24 bytes, expected 72"):
        read(content.replace(b"K\x03\x85", b"K\x09\x85"))


def test_half_made_arrays_are_refused() -> None:
    made = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R."
    with pytest.raises(PickleRefused, match="before it is complete"):
        read(made)


def test_a_text_of_array_size_is_no_text() -> None:
    with pytest.raises(PickleRefused, match="a text of"):
        read(pickle.dumps(["x" * (MAX_TEXT_BYTES + 1)], 4))
