"""XDF, KIT, EGI, CTF and 4D BTi files that lie, built from nothing: true headers with impossible numbers."""

import struct
from collections.abc import Iterator

from hostile_files import Canary, Case, zip_of

STREAM = "<info><type>EEG</type><channel_count>{}</channel_count><nominal_srate>{}</nominal_srate>{}</info>"


def chunk(kind: int, body: bytes) -> bytes:
    """Return one chunk of an XDF file."""
    content = kind.to_bytes(2, "little") + body
    return b"\x04" + struct.pack("<I", len(content)) + content


def stream(channels: str = "2", rate: str = "100", more: str = "") -> bytes:
    """Return the header of an XDF stream."""
    return chunk(2, struct.pack("<I", 1) + STREAM.format(channels, rate, more).encode())


def hidden_entity(encoding: str) -> bytes:
    """Return XML that declares an entity in an encoding of which a search for bytes sees nothing."""
    text = '<!DOCTYPE a [<!ENTITY b "hidden">]><a>&b;</a>'
    if encoding == "UTF-7":
        return b'<?xml version="1.0" encoding="UTF-7"?>' + text.replace("<!", "+ADwAIQ-").encode()
    return f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode(encoding)


def xdf(canary: Canary) -> Iterator[Case]:
    """XDF files."""
    laughs = '<!DOCTYPE a [<!ENTITY b "cccccccccc">' + "".join(
        f'<!ENTITY b{i} "{f"&b{i - 1};" * 10}">' for i in range(1, 9)
    )
    one, numbers = struct.pack("<I", 1), "<name>x</name><channel_format>int8</channel_format>"
    many = [struct.pack("<2d", at, at * (-1) ** at) for at in range(20_000)]
    for name, body in {
        "a stream hidden in a measurement of the clock": stream(more=numbers)
        + chunk(4, one + bytes(16) + stream("9" * 9, more=numbers)),
        "samples hidden behind samples": stream(more=numbers)
        + chunk(3, one + b"\x01\x01\x00\x00\x00" + chunk(3, one + b"\x04" + struct.pack("<I", 2**31))),
        "a clock set anew 20000 times": stream(more=numbers)
        + b"".join(chunk(4, one + measured) for measured in many)
        + chunk(3, one + b"\x01\x01\x00\x00\x00"),
        "a stream twice": stream(more=numbers) * 2,
        "two numbers of channels": stream(more=numbers + "<channel_count>99999999</channel_count>"),
        "a thousand streams": b"".join(
            chunk(2, struct.pack("<I", n) + STREAM.format(1, 100, numbers).encode()) for n in range(1000)
        ),
        "a footer of no stream": chunk(6, one + b"<info/>"),
        "a chunk without its stream": stream(more=numbers) + chunk(3, b"\x01\x00"),
        "no chunks": b"",
        "length of nine bytes": b"\x09" + bytes(20),
        "length beyond the end": b"\x08" + struct.pack("<Q", 2**62),
        "a million empty chunks": b"\x01\x00" * 1_000_000,
        "no samples": stream(),
        "0 channels": stream("0"),
        "a billion channels": stream("999999999"),
        "rate NaN": stream(rate="nan"),
        "rate negative": stream(rate="-1"),
        "rate huge": stream(rate="1e300"),
        "a billion laughs": stream(more=laughs),
        "an outside entity": stream(more=f'<!DOCTYPE a [<!ENTITY b SYSTEM "file://{canary.secret}">]><desc>&b;</desc>'),
        "a file header in UTF-7": chunk(1, hidden_entity("UTF-7")) + stream(),
        "a stream header in UTF-7": chunk(2, struct.pack("<I", 1) + hidden_entity("UTF-7")),
        "elements 100000 deep": stream(more="<a>" * 100_000),
        "samples of no stream": chunk(3, struct.pack("<I", 9) + b"\x01\x01\x00"),
        "samples of a huge count": stream() + chunk(3, struct.pack("<I", 1) + b"\x08" + struct.pack("<Q", 2**60)),
        "samples cut short": stream(more="<channel_format>float32</channel_format>")
        + chunk(3, struct.pack("<I", 1) + b"\x01\x05" + bytes(7)),
        "an unknown format": stream(more="<channel_format>object</channel_format>")
        + chunk(3, struct.pack("<I", 1) + b"\x01\x01" + bytes(8)),
    }.items():
        yield Case(f"XDF: {name}", b"XDF:" + body)
    channel = "<channel><label>Cz</label><unit>/etc/passwd</unit></channel>"
    described = f"<channel_format>float32</channel_format><desc><channels>{channel * 2}</channels></desc>"
    samples = chunk(3, struct.pack("<I", 1) + b"\x01\x02" + (b"\x08" + bytes(16)) * 2)
    version = chunk(1, b"<info><version>1.0</version></info>")
    head = stream(more=f"<name>x</name>{described}")
    for name, body in {"a unit": head, "a type": head.replace(b">EEG<", b">/tm<")}.items():
        yield Case(f"XDF: {name} that is a path", b"XDF:" + version + body + samples)


def binary(canary: Canary) -> Iterator[Case]:
    """KIT and EGI files."""
    for name, entries in {
        "directory of a million": [(0, 16, 32, 1_000_000)],
        "directory of a negative count": [(0, 16, 32, 32)] + [(100, 4, 1, -1)] * 31,
        "directory beyond the end": [(0, 16, 32, 32)] + [(2**31, 4, 1, 1)] * 31,
        "directory of zeros": [(0, 16, 32, 32)] + [(0, 0, 0, 0)] * 31,
        "directory to itself": [(0, 16, 32, 32)] * 32,
    }.items():
        yield Case(f"KIT: {name}", b"".join(struct.pack("<I3i", *entry) for entry in entries).ljust(4096, b"\x00"))
    for name, change in {
        "0 channels": {9: 0},
        "negative channels": {9: -5},
        "rate 0": {8: 0},
        "negative samples": {13: -1},
        "a billion samples": {13: 2**31 - 1},
        "32000 events": {14: 32_000},
        "segments": {0: 3},
        "month 77": {2: 77},
    }.items():
        fields = [2, 2020, 1, 1, 0, 0, 0, 0, 250, 4, 1, 16, 100, 100, 0]
        for index, value in change.items():
            fields[index] = value
        content = struct.pack(">i6hi5hih", *fields) + bytes(800)
        yield Case(f"EGI: {name}", content, may_pass=name == "month 77")


def folders(canary: Canary) -> Iterator[Case]:
    """Zips of CTF, MFF and 4D BTi folders."""
    for name, (n_samples, n_channels, sfreq) in {
        "a billion samples": (2**31 - 1, 300, 1200.0),
        "negative channels": (100, -1, 1200.0),
        "rate NaN": (100, 300, float("nan")),
        "rate 0": (100, 300, 0.0),
        "zeros behind the counts": (10, 3, 1200.0),
    }.items():
        head = b"MEG41RS\x00".ljust(1288, b"\x00") + struct.pack(">ihxxdd", n_samples, n_channels, sfreq, 1.0)
        files = (
            ("x.ds/x.res4", head + struct.pack(">h", 1) + bytes(600)),
            ("x.ds/x.meg4", b"MEG41CP\x00" + bytes(4000)),
        )
        yield Case(f"CTF: {name}", zip_of(*files))
    yield Case("CTF: header cut short", zip_of(("x.ds/x.res4", b"MEG41RS\x00"), ("x.ds/x.meg4", bytes(4000))))
    entity = f'<!DOCTYPE a [<!ENTITY b SYSTEM "file://{canary.secret}">]><a>&b;</a>'.encode()
    block = struct.pack("<4i", 1, 16 + 8 * 2, 16, 2) + bytes(16)
    for encoding in ("UTF-7", "UTF-16", "cp037"):
        files = (("x.mff/signal1.bin", block + bytes(16)), ("x.mff/info.xml", hidden_entity(encoding)))
        yield Case(f"MFF: an entity in {encoding}", zip_of(*files))
    for name, signal, info in (
        ("an outside entity", block + bytes(16), entity),
        ("XML in UTF-16", block + bytes(16), entity.decode().encode("utf-16")),
        ("blocks of no length", struct.pack("<4i", 1, 0, 0, 2) * 100, b"<a/>"),
        ("negative blocks", struct.pack("<4i", 1, 32, -32, 2) * 100, b"<a/>"),
        ("a billion channels", struct.pack("<4i", 1, 2**31 - 1, 16, 2**28), b"<a/>"),
        ("no signal", b"", b"<a/>"),
        ("signal cut short", block + bytes(3), b"<a/>"),
        ("nothing else", block + bytes(16), b"<a/>"),
    ):
        yield Case(f"MFF: {name}", zip_of(("x.mff/signal1.bin", signal), ("x.mff/info.xml", info)))
    for name, data in {
        "nothing": b"",
        "zeros": bytes(4000),
        "a far header": bytes(4000) + struct.pack(">q", 2**40),
    }.items():
        yield Case(
            f"4D BTi: data of {name}", zip_of(("c,rfDC", data), ("config", bytes(2000)), ("hs_file", bytes(100)))
        )
    ones = b"\x00\x01" * 2000 + struct.pack(">q", 1000)
    yield Case("4D BTi: 65537 epochs behind the end", zip_of(("c,rfDC", ones), ("config", bytes(200_000))), hangs=True)
    for name, at, value in (
        ("a billion epochs", 12, struct.pack(">i", 2**31 - 1)),
        ("fewer than no epochs", 12, struct.pack(">i", -1)),
        ("a billion events", 20, struct.pack(">i", 2**31 - 1)),
        ("a billion processes", 48, struct.pack(">i", 2**31 - 1)),
        ("a billion steps that lead back", 48, struct.pack(">i", 1).ljust(368, b"\x00") + struct.pack(">i", 2**31 - 1)
            + bytes(36) + bytes(4) + b"x".ljust(24, b"\x00") + struct.pack(">i", -64)),
        ("32767 channels", 52, struct.pack(">h", 2**15 - 1)),
    ):  # fmt: skip
        data = bytes(1000 + at) + value + bytes(2000) + struct.pack(">q", 1000)
        yield Case(f"4D BTi: {name}", zip_of(("c,rfDC", data), ("config", bytes(200_000))), hangs=True)
    data = bytes(4000) + struct.pack(">q", 1000)
    for name, at, value in (
        ("32767 channels", 58, struct.pack(">h", 2**15 - 1)),
        ("blocks that go back", 70, struct.pack(">h", 1).ljust(46, b"\x00") + b"B_weights_used".ljust(100, b"\x00")
            + bytes(4) + struct.pack(">2I", 1 << 10, 1 << 20)),
        ("blocks beyond the end", 70, struct.pack(">h", 1).ljust(106, b"\x00") + b"\xff" * 4),
    ):  # fmt: skip
        config = bytes(at) + value + bytes(2000)
        yield Case(f"4D BTi: configuration of {name}", zip_of(("c,rfDC", data), ("config", config)), hangs=True)
    yield Case("4D BTi: a large configuration", zip_of(("c,rfDC", data), ("config", bytes(3_000_000))), hangs=True)
    blocks = struct.pack("<4i", 1, 32, 1, 2) + bytes(17) + bytes(5) * 3_000_000
    yield Case("MFF: a million blocks", zip_of(("x.mff/signal1.bin", blocks), ("x.mff/info.xml", b"<a/>")), hangs=True)
    yield Case("4D BTi: configuration of ones", zip_of(("c,rfDC", data), ("config", b"\x01" * 5000)))
