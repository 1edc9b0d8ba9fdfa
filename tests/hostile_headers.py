"""Recordings whose headers lie: FIF tags, EDF and BDF fields, BrainVision references."""

import io
import struct
import zipfile
from collections.abc import Iterator

from hostile_files import Canary, Case, zip_of


def fif_tags(content: bytes) -> list[tuple[int, int, int, int, int]]:
    """List position, kind, type, length and next of every tag."""
    tags, position = [], 0
    while position + 16 <= len(content):
        kind, type_, length, following = struct.unpack_from(">4i", content, position)
        tags.append((position, kind, type_, length, following))
        if following < 0:
            break
        position = following or position + 16 + length
    return tags


def put(content: bytes, position: int, new: bytes) -> bytes:
    """Replace bytes in place."""
    return content[:position] + new + content[position + len(new) :]


def tag(kind: int, type_: int = 3, value: bytes = b"", following: int = 0) -> bytes:
    """Return one FIF tag."""
    return struct.pack(">4i", kind, type_, len(value), following) + value


def number(value: int) -> bytes:
    return struct.pack(">i", value)


def fif(canary: Canary, samples: dict[str, bytes]) -> Iterator[Case]:
    """FIF files that lead round, out, or announce what is not there."""
    for name in ("FIF", "FIF epochs"):
        content = samples[name]
        tags = fif_tags(content)
        first = {kind: (position, length) for position, kind, _, length, _ in reversed(tags)}
        middle = tags[len(tags) // 2][0]
        for what, following in {
            "to itself": middle,
            "to the start": 0x24,
            "beyond the end": 1 << 30,
            "back": 100,
        }.items():
            yield Case(f"{name}: next leads {what}", put(content, middle + 12, number(following)))
        for what, length in {"negative": -1, "huge": 2**31 - 1, "beyond the end": len(content)}.items():
            yield Case(f"{name}: length {what}", put(content, middle + 8, number(length)))
        channels, _ = first[200]
        for value in (-1, 0, 100_000_000, 2**31 - 1):
            yield Case(f"{name}: {value} channels", put(content, channels + 16, number(value)))
        rate, _ = first[201]
        for text, value in {"NaN": "nan", "zero": "0", "negative": "-5", "infinite": "inf"}.items():
            yield Case(f"{name}: rate {text}", put(content, rate + 16, struct.pack(">f", float(value))))
        if 101 in first:
            for value in (4, 100, len(content) - 4, 2**31 - 1):
                yield Case(
                    f"{name}: directory at {value}", put(content, first[101][0] + 16, number(value)), may_pass=False
                )
        matrices = [t for t in tags if t[2] & 0x40000000]
        for position, _, _, length, _ in matrices[:1]:
            end = position + 16 + length
            yield Case(f"{name}: matrix of huge sizes", put(content, end - 12, number(2**31 - 1) * 2))
            yield Case(f"{name}: matrix of negative sizes", put(content, end - 12, number(-1)))
            yield Case(f"{name}: matrix of many dimensions", put(content, end - 4, number(2**30)))
    content = samples["FIF"]
    start = content[:36]  # the tag with the id of the file
    yield Case("FIF: blocks 100000 deep", start + tag(104, 3, number(100)) * 100_000)
    yield Case("FIF: ends before it starts", start + tag(105, 3, number(100)) * 10)
    yield Case("FIF: a million empty tags", start + tag(108) * 1_100_000)
    yield Case("FIF: goes on in another file", start + tag(104, 3, number(110)) + tag(115, 3, number(2))
               + tag(118, 10, str(canary.secret).encode()) + tag(105, 3, number(110)))  # fmt: skip
    yield Case("FIF: only the id", start)
    yield Case("FIF: no data", start + tag(104, 3, number(100)) + tag(105, 3, number(100)))
    yield Case("FIF: goes on in another file without a role", start + tag(104, 3, number(118))
               + tag(118, 10, str(canary.secret).encode()) + tag(105, 3, number(118)))  # fmt: skip
    two = struct.pack(">f", 2)
    yield Case("FIF: goes on in another file, told by a float", start + tag(104, 3, number(118)) + tag(115, 4, two)
               + tag(118, 10, str(canary.secret).encode()) + tag(105, 3, number(118)))  # fmt: skip
    yield from fif_directories(content)
    skips = [t for t in fif_tags(content) if t[1] == 300]
    if skips:
        yield Case("FIF: skips a year", put(content, skips[0][0], struct.pack(">4i", 301, 3, 4, 0) + number(2**31 - 1)))
    sparse = struct.pack(">4i", 3415, 0x40100003, 28, 0) + number(1) * 3 + number(2**30) * 3 + number(2)
    yield Case("FIF: sparse matrix of a billion", start + sparse)


def fif_directories(content: bytes) -> Iterator[Case]:
    """FIF files whose directory is another one for readers than it seems, and says that blocks nest without end."""
    tags = fif_tags(content)
    pointer, last = tags[1][0], tags[-1][0]
    start = next(position for position, kind, *_ in tags if kind == 104)
    entries = struct.pack(">4i", 104, 3, 4, start) * 10_000
    directory = tag(102, 32, entries, -1)
    longer = put(content, last + 12, number(0))
    for name, decoy in {"first": b"", "second": tag(101, 3, number(-1))}.items():
        told = put(longer, pointer + 16, number(len(content) + len(decoy)))
        yield Case(f"FIF: directory of blocks, told {name}", told + decoy + directory)
    listed = [t for t in tags if t[1] != 105]
    entries = b"".join(struct.pack(">4i", *t[1:4], t[0]) for t in listed)
    told = put(longer, pointer + 16, number(len(content))) + tag(102, 32, entries, -1)
    yield Case("FIF: directory without ends of blocks", told)


EDF_FIELDS = {
    "header length": (184, 8),
    "records": (236, 8),
    "duration": (244, 8),
    "signals": (252, 4),
}


def edf(canary: Canary, samples: dict[str, bytes]) -> Iterator[Case]:
    """EDF and BDF headers with absurd numbers."""
    for name in ("EDF", "BDF"):
        content = samples[name]
        (n_signals,) = struct.unpack("4s", content[252:256])
        n = int(n_signals)
        for field, values in {
            "header length": ("0", "-1", "99999999", "x"),
            "records": ("0", "-5", "99999999", "1e7", "nan", ""),
            "duration": ("0", "-1", "nan", "inf", "1e-300"),
            "signals": ("0", "-1", "9999", "\x00\x00\x00\x00"),
        }.items():
            offset, width = EDF_FIELDS[field]
            for value in values:
                yield Case(f"{name}: {field} {value!r}", put(content, offset, value.encode().ljust(width)))
        for what, offset, width, value in (
            ("physical limits equal", 256 + 104 * n, 16 * n, b"0".ljust(8) * 2 * n),
            ("digital limits equal", 256 + 120 * n, 16 * n, b"0".ljust(8) * 2 * n),
            ("physical limit NaN", 256 + 104 * n, 8, b"nan     "),
            ("physical limit infinite", 256 + 112 * n, 8, b"inf     "),
            ("samples zero", 256 + 216 * n, 8, b"0       "),
            ("samples negative", 256 + 216 * n, 8, b"-250    "),
            ("samples huge", 256 + 216 * n, 8, b"99999999"),
            ("samples of one signal a million", 256 + 216 * n, 8, b"1000000 "),
            ("labels of control characters", 256, 16, b"\x1b[2J\x07\x00\x01\x02".ljust(16)),
        ):
            assert len(value) == width or what.startswith("labels")
            yield Case(f"{name}: {what}", put(content, offset, value), may_pass=what.startswith("labels"))
        yield Case(f"{name}: announces a day more", put(content, 236, b"86400   "))
        yield Case(f"{name}: header alone", content[: 256 * (n + 1)])
    for name, notes in {
        "without an end": b"+1\x14a" * 200_000,
        "without an end, apart": b"+1\x14a\x00" * 200_000,
        "of digits": b"+" + b"1" * 1_000_000,
        "of digits twice": (b"+" + b"1" * 100 + b"\x15" + b"1" * 200 + b"\x00") * 3000,
        "of foreign digits": b"+" + "\u0661".encode() * 500_000,
        "broken by lines": (b"+1\x14" * 300 + b"\n\x14\x00") * 1000,
        "by the hundred thousand": b"+1\x14a\x14\x00" * 200_000,
        "by the million, empty": b"+1\x14\x14\x00" * 1_000_000,
        "of a long text and many": b"+1\x14" + b"a" * 100_000 + b"\x14\x00" + b"+1\x14a\x14\x00" * 29_000,
    }.items():
        yield Case(f"EDF: annotations {name}", annotated(samples["EDF"], notes), hangs=True)
    yield Case("EDF: marked as discontinuous", put(samples["EDF"], 192, b"EDF+D"), may_pass=True)
    notes = samples["EDF"].rfind(b"\x14dog\x14")
    if notes > 0:
        yield Case("EDF: annotations of junk", put(samples["EDF"], notes, b"\x14" * 5), may_pass=True)
        yield Case("EDF: annotation at a huge time", put(samples["EDF"], notes - 2, b"e9"), may_pass=True)


def annotated(content: bytes, notes: bytes) -> bytes:
    """Return an EDF file of one record whose last signal, the annotations, is as long as ``notes``."""
    n = int(content[252:256])
    n_samples = [int(content[256 + 216 * n + 8 * k : 264 + 216 * n + 8 * k]) for k in range(n)]
    notes += bytes(len(notes) % 2)
    head = put(content[: 256 * (n + 1)], 236, b"1       ")
    head = put(head, 256 + 216 * n + 8 * (n - 1), b"%-8d" % (len(notes) // 2))
    return head + content[len(head) : len(head) + 2 * sum(n_samples[:-1])] + notes


def brainvision_parts(samples: dict[str, bytes]) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(samples["BrainVision"])) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def brainvision(canary: Canary, samples: dict[str, bytes]) -> Iterator[Case]:
    """BrainVision headers that name other files or announce what is not there."""
    parts = brainvision_parts(samples)
    head = parts["x.vhdr"].decode()

    def packed(text: str, **more: bytes) -> bytes:
        files = {
            **parts,
            "x.vhdr": text.encode("utf-8", "surrogatepass"),
            **{k.replace("_", "."): v for k, v in more.items()},
        }
        return zip_of(*files.items())

    secret = str(canary.secret)
    for target in (secret, "/etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/environ", "../../../etc/passwd", "..",
                   ".", "", "C:\\x.eeg", "\\\\host\\x.eeg", "file:///etc/passwd", "x.vhdr", "$b.vhdr", "x\x00.eeg",
                   "subfolder/x.eeg"):  # fmt: skip
        yield Case(f"BrainVision: data file {target!r}", packed(head.replace("DataFile=x.eeg", f"DataFile={target}")))
    for target in (secret, "/dev/zero", "../x.vmrk", "x.vhdr"):
        yield Case(
            f"BrainVision: marker file {target!r}", packed(head.replace("MarkerFile=x.vmrk", f"MarkerFile={target}"))
        )
    yield Case("BrainVision: a second data file", packed(head + f"\n[More]\nDataFile={secret}\n"))
    yield Case("BrainVision: a decoy before", packed(head.replace("DataFile=x", f"DataFile={secret}\nDataFile=x")))
    yield Case("BrainVision: its header without files", head.encode())
    count = next(line for line in head.splitlines() if line.startswith("NumberOfChannels"))
    for value in ("0", "-3", "99999999", "nan", "1e3", "63.5"):
        yield Case(f"BrainVision: {value} channels", packed(head.replace(count, f"NumberOfChannels={value}")))
    interval = next(line for line in head.splitlines() if line.startswith("SamplingInterval"))
    for value in ("0", "-4000", "nan", "inf", "1e-300", "1e300", "abc"):
        yield Case(f"BrainVision: interval {value}", packed(head.replace(interval, f"SamplingInterval={value}")))
    for value in ("INT_8", "FLOAT_64", "../x", ""):
        line = next(line for line in head.splitlines() if line.startswith("BinaryFormat"))
        yield Case(f"BrainVision: samples as {value!r}", packed(head.replace(line, f"BinaryFormat={value}")))
    yield Case("BrainVision: data as text", packed(head.replace("DataFormat=BINARY", "DataFormat=ASCII")))
    yield Case("BrainVision: no data", packed(head, x_eeg=b""))
    yield Case("BrainVision: one byte of data", packed(head, x_eeg=b"x"))
    yield Case("BrainVision: samples that are NaN", packed(head, x_eeg=b"\xff\xff\xff\x7f" * 63000))
    markers = parts["x.vmrk"].decode()
    late = markers.replace("Mk1=", "Mk1=Comment,dog,99999999999999,1,0\nMk2=")
    yield Case("BrainVision: marker beyond the end", packed(head, x_vmrk=late.encode()), may_pass=True)
    many = markers + "".join(f"Mk{i}=Stimulus,S{i},{i},1,0\n" for i in range(10, 200_000))
    yield Case("BrainVision: 200000 markers", packed(head, x_vmrk=many.encode()), hangs=True)
    yield Case("BrainVision: a million empty lines", packed(head + "\n" * 1_500_000), hangs=True)
    empty = markers.encode() + b"\n" * 3_000_000
    yield Case("BrainVision: a million lines of markers", packed(head, x_vmrk=empty), hangs=True)
    long = markers + "Mk9=Stimulus," + "S" * 2_000_000 + ",10,1,0\n" + "Mk9=Stimulus,S1,20,1,0\n" * 5000
    yield Case("BrainVision: a long marker and many", packed(head, x_vmrk=long.encode()), hangs=True)
    spaces = "DataFile=" + " " * 9000 + "x\n"
    yield Case("BrainVision: lines of spaces", packed(head + spaces * 300), hangs=True)
    yield Case("BrainVision: markers of junk", packed(head, x_vmrk=b"\xff\xfe" * 5000), may_pass=True)
    yield Case("BrainVision: a page of brackets", packed(head + "[" * 500_000))
    yield Case("BrainVision: codepage unknown", packed(head.replace("Codepage=UTF-8", "Codepage=rot13")))
    decoy = head.replace("Codepage=UTF-8", "Codepage=UTF-7").replace("DataFile=x.eeg", f"+AEQ-ataFile={secret}")
    yield Case("BrainVision: data file in UTF-7", packed(decoy + "\n[Decoy]\nDataFile=x.eeg\n"))
    scale = next(line for line in head.splitlines() if line.startswith("Ch1="))
    for value in ("nan", "inf", "1e308", "x", "a" * 300_000, "a" * 9000, "a/" * 4000):
        line = ",".join([*scale.split(",")[:2], value, *scale.split(",")[3:]])
        yield Case(f"BrainVision: resolution {value[:10]}, {len(value)}", packed(head.replace(scale, line)), hangs=True)
