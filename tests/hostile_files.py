"""Files that a stranger may send to break the service: archives, arrays and whatever is no recording at all.

Every case has a name, bytes, and whether a harmless reading of it is allowed. `hostile_headers` and `hostile_matlab`
hold those of single formats, `hostile_requests` what is wrong outside the file.
"""

import gzip
import io
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Canary:
    """What no upload may reach: a file that must not be read, and a path at which nothing may appear."""

    secret: Path
    mark: Path


@dataclass(frozen=True)
class Case:
    """One hostile file; ``may_pass`` where reading it does no harm, ``hangs`` where it is made to take for ever."""

    name: str
    content: bytes
    may_pass: bool = False
    hangs: bool = False


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, (str(self.mark),)


def pickles(canary: Canary) -> Iterator[Case]:
    """Pickles, bare and in the wrappings that numpy, torch and joblib give them."""
    import pickle

    bad = Payload(canary.mark)
    for protocol in range(6):
        yield Case(f"pickle protocol {protocol}", pickle.dumps(bad, protocol))
    yield Case("pickle in gzip", gzip.compress(pickle.dumps(bad)))
    yield Case("pickle in zip", zip_of(("data.pkl", pickle.dumps(bad))))
    yield Case("torch checkpoint", zip_of(("archive/data.pkl", pickle.dumps(bad, 2)), ("archive/version", b"3\n")))
    yield Case("pickle behind a FIF start", bytes.fromhex("000000640000001f00000014") + pickle.dumps(bad))
    array = io.BytesIO()
    np.save(array, np.array([bad], dtype=object), allow_pickle=True)
    yield Case("npy of objects", array.getvalue())
    for name in ("data", "sfreq", "ch_names", "stimulus", "ignored"):
        arrays = npz_arrays() | {name: np.array([bad], dtype=object)}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=True, **arrays)
        yield Case(f"npz with objects in {name}", buffer.getvalue())
    yield Case("npz with a pickle as member", npz_of(data=pickle.dumps(bad)))
    yield Case("npz of a structured object type", npz_of(data=header("[('a', '|O')]", (1,)) + bytes(8)))


# Names that a refusal must not repeat as they are.
SHOUTS = ("\x1b[2J\x07evil\r\nX: y", 'Traceback File "/etc/passwd"', "\u202egpj.exe", "x" * 100_000)


def npz_arrays() -> dict[str, np.ndarray]:
    """Return the arrays of a valid recording."""
    return {
        "data": np.random.default_rng(0).normal(scale=1e-5, size=(2, 3, 50)).astype(np.float32),
        "sfreq": np.float64(100.0),
        "tmin": np.float64(-0.1),
        "ch_names": np.asarray(["Fp1", "Cz", "Oz"]),
    }  # type: ignore[dict-item]


def header(descr: str, shape: tuple[int, ...], version: tuple[int, int] = (1, 0)) -> bytes:
    """Return the head of an ``.npy`` that says what it is told to."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text.encode()


def npz_of(**members: bytes) -> bytes:
    """Return a valid npz with members replaced by raw bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in npz_arrays().items():
            if name not in members:
                one = io.BytesIO()
                np.save(one, array)
                archive.writestr(f"{name}.npy", one.getvalue())
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def arrays(canary: Canary) -> Iterator[Case]:
    """npz files whose headers or values lie."""
    for name, shape in {
        "huge": (10**9, 10**9, 10**9),
        "overflowing": (2**33, 2**33, 4),
        "negative": (-1, -3, -50),
        "one negative": (2, -3, 50),
        "too long": (2, 3, 5000),
        "of 40 dimensions": (1,) * 40,
        "of nothing": (0, 3, 50),
        "flat": (300,),
    }.items():
        yield Case(f"npz shape {name}", npz_of(data=header("'<f4'", shape) + bytes(1200)))
    for descr in (
        "'<U2000000000'",
        "'|V99999999'",
        "'<M8[s]'",
        "'<c8'",
        "[('a','<f4')]",
        "'|b1'",
        "'banana'",
        "__import__('os')",
    ):
        yield Case(f"npz type {descr}", npz_of(data=header(descr, (2, 3, 50)) + bytes(1200)))
    for name, letter in {"beyond Unicode": 0x7F000041, "of half a pair": 0xDC31, "negative": 0xFFFFFFFF}.items():
        for order in "<>":
            text = np.asarray([letter, 65, 65], dtype=f"{order}u4").tobytes()
            yield Case(f"npz letters {name} {order}", npz_of(ch_names=header(f"'{order}U1'", (3,)) + text))
    yield Case("npz header of version 3", npz_of(data=header("'<f4'", (2, 3, 50), (3, 0)) + bytes(1200)))
    yield Case("npz header of version 9", npz_of(data=header("'<f4'", (2, 3, 50), (9, 9)) + bytes(1200)))
    for name, shape in {"a terabyte of no letters": (2**40,), "more than can be counted": (2**62, 2**62)}.items():
        for descr in ("'<U0'", "'|S0'", "'|V0'"):
            for field in ("ch_names", "stimulus", "subject"):
                yield Case(f"npz {field} of {descr}, {name}", npz_of(**{field: header(descr, shape)}), hangs=True)
    yield Case("npz a million names", saved(ch_names=np.zeros(1_000_000, "U1")), hangs=True)
    yield Case("npz a million stimuli", saved(stimulus=np.zeros(1_000_000, "U1")), hangs=True)
    many = np.zeros((10_000_000, 1, 1), "u1")
    yield Case("npz ten million epochs", saved(data=many, ch_names=np.asarray(["Cz"])), hangs=True)
    yield Case("npz header of another magic", npz_of(stimulus=b"/etc/passwd Traceback" * 10))
    yield Case("npz header cut short", npz_of(stimulus=b"\x93NUMPY\x01\x00"))
    nested = b"(" * 5000 + b")" * 5000
    yield Case("npz header nested", npz_of(data=b"\x93NUMPY\x01\x00" + struct.pack("<H", len(nested)) + nested))
    for name, value in {
        "NaN": np.nan, "infinite": np.inf, "zero": 0.0, "negative": -100.0, "tiny": 1e-300, "huge": 1e300,
    }.items():  # fmt: skip
        yield Case(f"npz rate {name}", saved(sfreq=np.float64(value)))
    yield Case("npz rate text", saved(sfreq=np.asarray("100")))
    yield Case("npz rate of many", saved(sfreq=np.full(1000, 100.0)))
    yield Case("npz tmin NaN", saved(tmin=np.float64(np.nan)))
    yield Case("npz tmin huge", saved(tmin=np.float64(1e300)))
    for name, value in {"NaN": np.nan, "infinite": np.inf, "huge": 1e30, "overflowing": 1e39}.items():
        data = npz_arrays()["data"].astype(np.float64)
        data[1, 2, 3] = value
        yield Case(f"npz value {name}", saved(data=data))
    yield Case("npz values of text", saved(data=np.full((2, 3, 50), "x")))
    yield Case("npz no channels", saved(data=np.zeros((2, 0, 50), np.float32), ch_names=np.zeros(0, "U1")))
    yield Case("npz names twice", saved(ch_names=np.asarray(["Cz", "Cz", "Oz"])))
    yield Case("npz name empty", saved(ch_names=np.asarray(["", "Cz", "Oz"])))
    yield Case("npz name long", saved(ch_names=np.asarray(["x" * 100_000, "Cz", "Oz"])))
    yield Case("npz name of control characters", saved(ch_names=np.asarray(["a\n\x1b[2J", "Cz", "Oz"])))
    yield Case("npz name turned right to left", saved(ch_names=np.asarray(["a\u202egnp", "Cz", "Oz"])))
    yield Case("npz name of a surrogate", saved(ch_names=np.asarray(["\ud800", "Cz", "Oz"])))
    yield Case("npz name a path", saved(ch_names=np.asarray([str(canary.secret), "Cz", "Oz"])), may_pass=True)
    yield Case("npz type of channel unknown", saved(ch_types=np.asarray(["eeg", "eeg", "object"])))
    for name in SHOUTS:
        data = npz_arrays()["data"]
        data[0, 0, 3] = np.nan
        names = np.asarray([name, "Cz", "Oz"])
        yield Case(f"npz NaN in a channel named {name[:20]!r}", saved(data=data, ch_names=names))
        yield Case(f"npz two channels named {name[:20]!r}", saved(ch_names=names[[0, 0, 2]]))
        yield Case(f"npz a channel of type {name[:20]!r}", saved(ch_types=np.asarray([name, "eeg", "eeg"])))
    yield Case("npz positions of text", saved(positions=np.full((3, 3), "/etc/passwd")))
    yield Case("npz positions short", saved(positions=np.zeros((2, 3))))
    yield Case("npz averages of zero", saved(n_averaged=np.asarray([0, 1])))
    for power in (53, 63):
        yield Case(f"npz averages of 2^{power}", saved(n_averaged=np.asarray([2**power, 1], dtype=np.uint64)))
    yield Case("npz 5000 channels", saved(
        data=np.zeros((1, 5000, 4), np.float32), ch_names=np.asarray([f"E{i}" for i in range(5000)])))  # fmt: skip
    yield Case("npz 200 arrays", saved(**{f"a{i}": np.zeros(1) for i in range(200)}))
    yield Case(
        "npz bomb",
        saved(data=np.zeros((10, 60, 100_000), np.float32), ch_names=np.asarray([f"E{i}" for i in range(60)])),
    )
    yield Case("npz cut short", saved()[:-200])
    yield Case("npz without a data array", zip_of(("sfreq.npy", header("'<f8'", ()) + bytes(8))))


def saved(**changes: np.ndarray) -> bytes:
    """Return a compressed npz of a valid recording with arrays replaced."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **(npz_arrays() | changes))
    return buffer.getvalue()


def zip_of(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip of members, each a name or an info record with its bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def special(name: str, mode: int) -> zipfile.ZipInfo:
    """Return the record of a link, a device or another special file."""
    info = zipfile.ZipInfo(name)
    info.external_attr = (mode | 0o777) << 16
    info.create_system = 3
    return info


def archives(canary: Canary, samples: dict[str, bytes]) -> Iterator[Case]:
    """Zips and gzips that are bombs, lead out of their folder or are no archives."""
    edf = samples["EDF"]
    for name in (
        "../x.edf", "../../../../tmp/phosphene-hostile.edf", "/tmp/phosphene-hostile.edf", "..\\x.edf", "C:\\x.edf",
        "a/../../x.edf", "x\x00.edf", "-rf", "x.edf\n", " ", "con\u202efde.x", "x" * 300 + ".edf", "~/x.edf", ".",
        "\U0001f600.edf",
    ):  # fmt: skip
        harmless = name in ("~/x.edf", "C:\\x.edf", "x\x00.edf")
        yield Case(f"zip member named {name[:30]!r}", zip_of((name, edf)), may_pass=harmless)
    for what, mode in {
        "link": stat.S_IFLNK,
        "device": stat.S_IFCHR,
        "pipe": stat.S_IFIFO,
        "socket": stat.S_IFSOCK,
    }.items():
        yield Case(f"zip with a {what}", zip_of((special("x.edf", mode), str(canary.secret).encode())))
    yield Case("zip link with a file behind it", zip_of((special("a", stat.S_IFLNK), b"/tmp"), ("a/x.edf", edf)))
    yield Case("zip bomb", zip_of(("x.edf", edf[:300] + bytes(300 << 20))))
    yield Case("zip of zips of zips", nested_zip(b"x" * 10, 20))
    yield Case("zip of many bombs", zip_of(*((f"{i}.fdt", bytes(8 << 20)) for i in range(40))))
    yield Case("zip of 10000 members", zip_of(*((f"{i}", b"") for i in range(10_000))))
    yield Case("zip of two recordings", zip_of(("a.edf", edf), ("b.edf", edf)))
    yield Case("zip with one name twice", zip_of(("a/x.edf", edf), ("b/x.edf", edf)))
    yield Case("zip packed with bzip2", zip_of(("x.edf", edf), method=zipfile.ZIP_BZIP2))
    yield Case("zip packed with lzma", zip_of(("x.edf", edf), method=zipfile.ZIP_LZMA))
    whole = zip_of(("x.edf", edf))
    yield Case("zip cut short", whole[: len(whole) // 2])
    yield Case("zip behind junk", b"#!/bin/sh\ntouch /tmp/phosphene-hostile\n" + whole)
    yield Case("zip before junk", whole + bytes(70_000))
    yield Case("zip empty", zip_of())
    yield Case("zip that says it is encrypted", flagged(whole))
    yield Case("zip that says it is larger", resized(whole, 10**9))
    yield Case("zip that says it is smaller", resized(whole, 10))
    yield Case("zip with a damaged member", whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    yield Case("zip of overlapping members", overlapping(whole))
    junk = np.random.default_rng(0).bytes(300_000)
    bombs = zip_of(*((f"{i}.fdt", bytes(24 << 20)) for i in range(4)), ("junk.txt", junk))
    yield Case("zip of bombs that says they are packed large", swollen(bombs, 310_000))
    zeros = {f"a{i}": np.zeros(6 << 20, np.float32) for i in range(4)}
    bombs = saved(**zeros, junk=np.frombuffer(junk, np.uint8))
    yield Case("npz of bombs that says they are packed large", swollen(bombs, 310_000))
    yield Case("gzip bomb", gzip.compress(bytes(300 << 20), 9))
    yield Case("gzip of gzip", gzip.compress(gzip.compress(samples["FIF"])))
    yield Case("gzip cut short", gzip.compress(samples["FIF"])[:5000])
    yield Case("gzip with a wrong checksum", gzip.compress(samples["FIF"])[:-8] + bytes(8))
    yield Case("gzip of many empty parts", gzip.compress(b"") * 200_000, may_pass=False)
    yield Case("gzip of a zip bomb", gzip.compress(zip_of(("x.edf", bytes(100 << 20)))))


def nested_zip(content: bytes, depth: int) -> bytes:
    """Return a zip in a zip in a zip."""
    for _ in range(depth):
        content = zip_of(("a.zip", content))
    return content


def _changed(content: bytes, marker: bytes, offset: int, new: bytes) -> bytes:
    changed = bytearray(content)
    at = content.rfind(marker) + offset
    changed[at : at + len(new)] = new
    return bytes(changed)


def flagged(content: bytes) -> bytes:
    """Set the bit of encryption in the directory of a zip."""
    return _changed(content, b"PK\x01\x02", 8, b"\x01\x00")


def resized(content: bytes, n_bytes: int) -> bytes:
    """Let the directory of a zip lie about a member's size."""
    return _changed(content, b"PK\x01\x02", 24, struct.pack("<I", n_bytes))


def swollen(content: bytes, n_bytes: int) -> bytes:
    """Let the directory of a zip say ``n_bytes`` for the packed size of every member."""
    changed, at = bytearray(content), content.find(b"PK\x01\x02")
    while at >= 0:
        changed[at + 20 : at + 24] = struct.pack("<I", n_bytes)
        at = content.find(b"PK\x01\x02", at + 4)
    return bytes(changed)


def overlapping(content: bytes) -> bytes:
    """Let 50 entries of a zip's directory share one member's bytes."""
    start = content.rfind(b"PK\x01\x02")
    end = content.rfind(b"PK\x05\x06")
    entry = content[start:end]
    entries = [entry.replace(b"x.edf", b"%c.edf" % (65 + i)) for i in range(50)]
    directory = b"".join(entries)
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 50, 50, len(directory), start, 0)
    return content[:start] + directory + tail


def strangers(canary: Canary, samples: dict[str, bytes]) -> Iterator[Case]:
    """Bytes that are no recording, and recordings in disguise."""
    for name, content in {
        "nothing": b"",
        "one byte": b"\x00",
        "a megabyte of zeros": bytes(1 << 20),
        "random bytes": np.random.default_rng(1).bytes(100_000),
        "PNG": b"\x89PNG\r\n\x1a\n" + bytes(1000),
        "PDF": b"%PDF-1.7\n" + b"1 0 obj <</Type/Catalog>> endobj\n" * 50,
        "ELF": b"\x7fELF\x02\x01\x01" + bytes(1000),
        "shell": b"#!/bin/sh\ntouch /tmp/phosphene-hostile\n" * 5,
        "XML with entities": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file://%s">]><a>&b;</a>'
        % str(canary.secret).encode(),
        "JSON": b'{"data": [' + b"[" * 5000 + b"]" * 5000 + b"]}",
        "YAML": b"!!python/object/apply:os.system ['touch /tmp/phosphene-hostile']\n" * 3,
        "path": str(canary.secret).encode(),
        "URL": b"http://127.0.0.1:9/recording.edf" + b" " * 100,
        "text": "\u202e\U0001f9e0".encode() * 200,
        "Neuroscan": b"Version 3.0\x00" + bytes(10_000),
        "tar": b"x.edf".ljust(257, b"\x00") + b"ustar\x0000" + bytes(1000),
    }.items():
        yield Case(f"no recording: {name}", content)
    for name, content in samples.items():
        yield Case(f"{name}: first half", content[: len(content) // 2])
        yield Case(f"{name}: first 100 bytes", content[:100])
        yield Case(f"{name}: behind junk", b"junk" + content)
    yield Case("FIF before a zip", samples["FIF"] + samples["BrainVision"], may_pass=True)
    yield Case("EDF before an npz", samples["EDF"] + samples["npz"], may_pass=True)
