"""Pickles are read as text is: nothing in them is imported or called."""

import argparse
import collections
import os
import pathlib
import pickle
import sys

import pytest

from encoders import inert_pickle
from encoders.inert_pickle import Inert, PickleRefused, Storage, StoredTensor, read_pickle

PLAIN = [
    None,
    True,
    -(2**40),
    2**200,
    0.1,
    "text \u00e4",
    b"bytes",
    [1, [2, (3,)]],
    {"a": {"b": (1, 2, 3, 4)}, 5: []},
    ("x",) * 5,
    collections.OrderedDict(a=1, b=2),
]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_what_they_were(protocol):
    values = [value for value in PLAIN if protocol > 2 or not isinstance(value, bytes)]
    assert read_pickle(pickle.dumps(values, protocol)) == values


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_pickle_runs_nothing(protocol, tmp_path):
    mark = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    content = pickle.dumps({"weights": 1, "evil": Payload()}, protocol)
    read = read_pickle(content)
    assert read["weights"] == 1 and isinstance(read["evil"], Inert) and "system" in read["evil"].name
    assert not mark.exists()
    pickle.loads(content)  # the file is a working attack
    assert mark.exists()


def test_names_are_never_imported():
    for module in ("antigravity", "this"):
        sys.modules.pop(module, None)
    assert read_pickle(b"cantigravity\nfly_or_else\n.") == Inert("antigravity fly_or_else")
    assert read_pickle(b"(ithis\nd\n.") == Inert("this d")
    assert not {"antigravity", "this"} & set(sys.modules)


def test_objects_of_other_libraries_become_names_and_the_rest_is_read():
    holder = argparse.Namespace(lr=0.1)
    holder.again = holder
    read = read_pickle(pickle.dumps({"args": holder, "path": pathlib.PurePosixPath("x"), "n": 3, "set": {1}}))
    assert read["n"] == 3 and isinstance(read["args"], Inert) and "PurePosixPath" in read["path"].name


def test_containers_may_contain_themselves():
    loop: list[object] = [1]
    loop.append(loop)
    read = read_pickle(pickle.dumps(loop))
    assert read[0] == 1 and read[1] is read


def tensor(arguments: str) -> bytes:
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI6\ntQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + arguments.encode() + b"I00\nNtR."


def test_a_tensor_is_a_view_of_a_storage():
    read = read_pickle(tensor("I1\n(I2\nI2\nt(I2\nI1\nt"))
    assert read == StoredTensor(Storage("torch FloatStorage", "0", 6), 1, (2, 2), (2, 1))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cut short|damaged"),
        (b"\x80\x02", "cut short|damaged"),
        (b"\x80\x02]", "cut short|damaged"),
        (b"0.", "where there is none"),
        (b"t.", "never begun"),
        (b"h\x07.", "damaged"),
        (b"I1\nI2\na.", "damaged"),
        (b"I1\nI2\nI3\ns.", "damaged"),
        (b"\x82\x01.", "EXT1"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"Pkey\n.", "PERSID"),
        (b"I1\nQ.", "no tensor"),
        (b"\xff\xfe", "damaged"),
        (tensor("I-1\n(I2\nt(I1\nt"), "impossible sizes"),
        (tensor("I0\n(I2\nI2\nt(I1\nt"), "2 sizes and 1 strides"),
        (tensor("I0\n(V2\nt(I1\nt"), "impossible sizes"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(VnoI0\n(t(ttR.", "damaged|no storage"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "damaged"),
        (b"L" + b"9" * 5000 + b"L\n.", "damaged"),
    ],
)
def test_damage_is_refused_in_a_sentence(content, said):
    with pytest.raises(PickleRefused, match=said):
        read_pickle(content)


def test_the_work_is_limited(monkeypatch):
    monkeypatch.setattr(inert_pickle, "MAX_OPCODES", 100)
    with pytest.raises(PickleRefused, match="more than 100 instructions"):
        read_pickle(b"N0" * 60 + b"N.")
    monkeypatch.setattr(inert_pickle, "MAX_PICKLE_BYTES", 10)
    with pytest.raises(PickleRefused, match="at most 10"):
        read_pickle(b"N" * 11)


def test_keys_that_would_take_for_ever_to_hash_are_passed_over():
    doubling = b")" + b"2\x86" * 60  # a tuple of two of the tuple before it, sixty times
    assert read_pickle(b"}(" + doubling + b"I1\nVa\nI2\nu.") == {"a": 2}


def test_nesting_deeper_than_pythons_own_stack_is_refused():
    n = 50_000  # a call of a call of a call
    content = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00" + b"h\x00N" * n + b")" + b"\x87" * n + b"R."
    with pytest.raises(PickleRefused, match="RecursionError"):
        read_pickle(content)
    assert isinstance(read_pickle(b")" + b"\x85" * n + b"."), tuple)
