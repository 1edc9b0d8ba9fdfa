"""Small files made of very many parts, each of which takes a reader its time: events, epochs, averages, texts, objects.

All are sound but for their number, so no check of sizes sees them.
"""

import gzip
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import mne
import numpy as np
from hostile_files import Canary, Case, zip_of
from hostile_headers import brainvision_parts, fif_tags, number, tag
from hostile_matlab import mat
from hostile_vendors import STREAM, chunk

ONE, TWO = struct.pack("<I", 1), struct.pack("<I", 2)
INFO = mne.create_info(["Cz"], 100.0, "eeg")


def parts(canary: Canary, samples: dict[str, bytes]) -> Iterator[Case]:
    """Return all of them."""
    for name, content in (
        *fif(),
        *edf(),
        *brainvision(samples),
        *eeglab(samples),
        *xdf(),
        *egi(),
        *folders(),
    ):
        yield Case(f"many parts: {name}", content, hangs=True)


def fif() -> Iterator[tuple[str, bytes]]:
    """Tags, averages, annotations and triggers."""
    raw = mne.io.RawArray(np.random.default_rng(0).normal(scale=1e-5, size=(1, 4000)), INFO, verbose="error")
    raw.set_annotations(mne.Annotations([1.0, 2.0], 0.0, ["dog", "cat"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x_raw.fif"
        raw.save(path, verbose="error")
        content = path.read_bytes()
        samples = np.stack([raw.get_data()[0].repeat(40), np.tile([0.0, 1.0], 80_000)])
        info = mne.create_info(["Cz", "STI"], 1.0, ["eeg", "stim"])
        mne.io.RawArray(samples, info, verbose="error").save(path, overwrite=True, fmt="short", verbose="error")
        yield "FIF triggers", path.read_bytes()
        path = Path(folder) / "x-ave.fif"
        waves = np.random.default_rng(0).normal(scale=1e-5, size=(300, 1, 150))
        mne.write_evokeds(path, [mne.EvokedArray(wave, INFO, -0.2, verbose="error") for wave in waves], verbose="error")
        yield "FIF averages", path.read_bytes()
    tags = fif_tags(content)
    start = next(position for position, kind, *_ in tags if kind == 104)
    yield "FIF tags", gzip.compress(content[:start] + tag(108) * 900_000 + content[start:])
    times = np.linspace(0.0, 39.0, 150_000).astype(">f4").tobytes()
    changed = {3568: times, 3569: times, 206: b"a" + b":a" * 149_999}
    inside, changing = False, b""
    for position, kind, type_, length, following in tags:
        value = content[position + 16 : position + 16 + length]
        inside = inside if kind not in (104, 105) else kind == 104 and value == number(3810)
        value = changed.get(kind, value) if inside else value
        changing += struct.pack(">4i", kind, type_, len(value), following) + value
    yield "FIF annotations", changing


def edf_of(labels: tuple[str, ...], n_samples: tuple[int, ...], duration: int, data: bytes, bdf: bool = False) -> bytes:
    """Return an EDF+ or BDF file of one record."""
    n = len(labels)
    kind = "24BIT" if bdf else "EDF+C"
    first = b"\xffBIOSEMI" if bdf else b"0       "
    fixed = f"{'X X X X':80}{'Startdate X X X X':80}01.01.2000.00.00{256 * (n + 1):<8}{kind:44}"
    fixed += f"1       {duration:<8}{n:<4}"
    bound = 8_388_607 if bdf else 32_767
    columns = [f"{label:16}" for label in labels] + [" " * 80] * n + ["uV      "] * n
    for value in (-200, 200, -bound - 1, bound):
        columns += [f"{value:<8}"] * n
    columns += [" " * 80] * n + [f"{count:<8}" for count in n_samples] + [" " * 32] * n
    return first + fixed.encode() + "".join(columns).encode() + data


def edf() -> Iterator[tuple[str, bytes]]:
    """Triggers and annotations."""
    signal = np.random.default_rng(0).integers(-1000, 1000, 300_000)
    triggers = np.tile([0, 1], 150_000)
    data = np.concatenate([signal, triggers]).astype("<i4").view("u1").reshape(-1, 4)[:, :3].tobytes()
    yield "BDF triggers", edf_of(("EEG Cz", "Status"), (300_000, 300_000), 300_000, data, bdf=True)
    for word, n in (("stim", 20_000), ("edge", 900), ("BAD_ACQ_SKIP", 900)):
        texts = (b"+%.3f\x150.001\x14%s\x14\x00" % (i / 10, (word if i % 2 else "stim").encode()) for i in range(n))
        notes = b"+0\x14\x14\x00" + b"".join(texts)
        notes += bytes(len(notes) % 2)
        sizes = (300_000, len(notes) // 2)
        yield f"EDF notes of {word}", edf_of(
            ("EEG Cz", "EDF Annotations"), sizes, 3000, signal.astype("<i2").tobytes() + notes
        )


def brainvision(samples: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Samples as text."""
    files = brainvision_parts(samples)
    head = [line for line in files["x.vhdr"].decode().splitlines() if not line.startswith("Ch") or line[:4] in
            ("Ch1=", "Ch2=")]  # fmt: skip
    text = "\n".join("NumberOfChannels=2" if line.startswith("NumberOfChannels") else line for line in head)
    text = text.replace("DataFormat=BINARY", "DataFormat=ASCII")
    section = "[ASCII Infos]\nDecimalSymbol=.\nSkipLines=0\nSkipColumns=0\n\n"
    text = text.replace("[Binary Infos]", f"{section}[Binary Infos]")
    files |= {"x.vhdr": text.encode(), "x.eeg": b"1 2\n2 1\n" * 2_000_000}
    files |= {"junk": np.random.default_rng(0).bytes(200_000)}
    yield "BrainVision lines of text", zip_of(*files.items())


def eeglab(samples: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Epochs, letters and references."""
    n = 6000
    names = np.asarray([f"e{i}" for i in range(n)], object)
    data = np.random.default_rng(0).normal(size=(3, 4, n)).astype(np.float32)
    for name, latencies in {"named": np.zeros(n), "unnamed": np.asarray([np.zeros(2)] * n + [""], object)[:n]}.items():
        event = np.rec.fromarrays([names, np.arange(n) * 10.0 + 1], names=["type", "latency"])
        epoch = np.rec.fromarrays([names, latencies], names=["eventtype", "eventlatency"])
        yield f"EEGLAB {name} epochs", mat(trials=float(n), pnts=4.0, xmax=0.03, data=data, event=event, epoch=epoch)

    def letters(file: h5py.File, shape: tuple[int, int]) -> None:
        for index in range(4):
            text = file["EEG"].create_dataset(f"text{index}", shape=shape, dtype="u2", fillvalue=65)
            text.attrs["MATLAB_class"] = np.bytes_("char")

    def references(file: h5py.File) -> None:
        one = file["#refs#"].create_dataset("one", data=np.zeros((1, 1)))
        many = np.asarray([one.ref] * 90_000, dtype=h5py.ref_dtype)[:, None]
        file["EEG"].create_dataset("many", data=many, dtype=h5py.ref_dtype, compression="gzip")

    changes: dict[str, Callable[[h5py.File], None]] = {
        "letters": lambda file: letters(file, (1, 8_000_000)),
        "rows of letters": lambda file: letters(file, (2, 4_000_000)),
        "references": references,
    }
    for name, change in changes.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.set"
            path.write_bytes(samples["EEGLAB 7.3"])
            with h5py.File(path, "r+") as file:
                change(file)
            yield f"HDF5 {name}", zip_of(("x.set", path.read_bytes()))


def xdf() -> Iterator[tuple[str, bytes]]:
    """Breaks, chunks and markers."""
    channels = "<desc><channels><channel><label>Cz</label></channel></channels></desc>"
    head = b"XDF:" + chunk(1, b"<info><version>1.0</version></info>")
    described = f"<name>x</name><channel_format>int8</channel_format>{channels}"
    head += chunk(2, ONE + STREAM.format(1, 1000, described).encode())
    count = b"\x04" + struct.pack("<I", 200_000)
    broken = b"".join(b"\x08" + struct.pack("<d", 10.0 * i) + b"\x01" for i in range(200_000))
    yield "XDF breaks", head + chunk(3, ONE + count + broken)
    yield "XDF chunks", head + chunk(3, ONE + b"\x01\x01\x00\x05") * 200_000
    texts = STREAM.format(1, 0, "<name>y</name><channel_format>string</channel_format>").replace(">EEG<", ">Markers<")
    signal = b"".join(b"\x08" + struct.pack("<d", i / 1000) + bytes([i % 100]) for i in range(5000))
    markers = b"".join(b"\x08" + struct.pack("<d", i / 41_000) + b"\x01\x01a" for i in range(200_000))
    yield "XDF markers", (
        head
        + chunk(2, TWO + texts.encode())
        + chunk(3, ONE + b"\x04" + struct.pack("<I", 5000) + signal)
        + chunk(3, TWO + count + markers)
    )


def egi() -> Iterator[tuple[str, bytes]]:
    """Events, and kinds of them."""
    for name, n_samples, n_kinds in (("events", 600_000, 1), ("kinds of events", 1000, 1000)):
        head = struct.pack(">i6hi5hih", 2, 2020, 1, 1, 0, 0, 0, 0, 250, 1, 1, 16, 100, n_samples, n_kinds)
        table = np.zeros((n_samples, 1 + n_kinds), ">i2")
        table[:, 0], table[::2, 1:] = np.arange(n_samples) % 1000, 1
        yield f"EGI {name}", head + b"".join(b"e%03d" % kind for kind in range(n_kinds)) + table.tobytes()


def mff_events(n: int, n_kinds: int, at: bytes = b"2020-01-01T00:00:00.000000-05:00") -> bytes:
    """Return a track of events of an MFF folder."""
    event = b"<event><beginTime>%s</beginTime><duration>1000</duration><code>c%d</code><label>x</label></event>"
    track = b'<eventTrack xmlns="http://www.egi.com/event_mff"><name>x</name><trackType>EVNT</trackType>'
    return b'<?xml version="1.0"?>' + track + b"".join(event % (at, i % n_kinds) for i in range(n)) + b"</eventTrack>"


def folders() -> Iterator[tuple[str, bytes]]:
    """Events of MFF folders and markers of CTF folders; `test_formats` has them in true folders."""
    block = struct.pack("<4i", 1, 16 + 8 * 2, 16, 2) + bytes(32)
    files = (("x.mff/signal1.bin", block), ("x.mff/info.xml", b"<a/>"))
    for n, n_kinds in ((30_000, 1), (5000, 5000)):
        yield f"MFF events of {n_kinds} kinds", zip_of(*files, ("x.mff/Events_x.xml", mff_events(n, n_kinds)))
    head = b"MEG41RS\x00".ljust(1288, b"\x00") + struct.pack(">ihxxdd", 10, 3, 1200.0, 1.0) + struct.pack(">h", 1)
    files = (("x.ds/x.res4", head + bytes(600)), ("x.ds/x.meg4", b"MEG41CP\x00" + bytes(4000)))
    for name, file, content in (
        ("markers without an end", "MarkerFile.mrk", b"NUMBER OF MARKERS:\n1\n"),
        ("no markers", "MarkerFile.mrk", b""),
        ("points", "x.pos", b"a 1.0 2.0 3.0\n" * 200_000),
        ("bad stretches", "bad.segments", b"1 0.001 0.002\n" * 200_000),
    ):
        yield f"CTF {name}", zip_of(*files, (f"x.ds/{file}", content))
