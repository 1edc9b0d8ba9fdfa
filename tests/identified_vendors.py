"""Recordings of single vendors that say who was recorded and when, made from files of their devices."""

import re
import struct
from pathlib import Path

import numpy as np
from identified_recordings import WHO

from benchmarks.sample_recordings import zipped

DAY_S = 549849600
# name -> (onset of a stimulus in seconds); the recordings are a fraction of a second long
ONSETS = {"CTF": "0.1", "KIT": "0.15", "4D BTi": "0.15", "EGI .mff": "0.008"}


def identified_vendors(formats: Path) -> dict[str, bytes]:
    """Return one recording per format; ``formats`` is the folder of vendors' files."""
    return {
        "CTF": ctf(formats / "hostile" / "ctf_no_data.ds"),
        "KIT": kit(formats / "kit" / "kit157.sqd"),
        "4D BTi": bti(formats / "bti" / "linux"),
        "EGI .mff": mff(formats / "egi" / "test_egi_evoked.mff"),
    }


def ctf(folder: Path, marker: str = "") -> bytes:
    """Return a CTF folder with simulated samples; ``marker`` is the name of an event at 0.1 s of the first trial."""
    header = bytearray((folder / f"{folder.stem}.res4").read_bytes())
    n_samples, n_channels = struct.unpack_from(">ih", header, 1288)
    texts = {8: 256, 264: 256, 520: 256, 1360: 32, 1392: 256, 1648: 32, 1680: 32, 1712: 32, 1744: 32}
    for place, length in texts.items():
        struct.pack_into(f">{length}s", header, place, WHO.encode())
    struct.pack_into(">255s", header, 778, b"10:11:12")
    struct.pack_into(">255s", header, 1033, b"05-JUN-1987")
    counts = np.random.default_rng(0).integers(-1000, 1000, (n_channels, n_samples)).astype(">i4")
    said = f"\nPATIENT {WHO} 1987-06-05 19870605\n".encode()
    files = {f"{WHO}.ds/{WHO}.res4": bytes(header), f"{WHO}.ds/{WHO}.meg4": b"MEG41CP\x00" + counts.tobytes()}
    for suffix in (".infods", ".hist", ".acq", ".hc", ".eeg"):
        content = (folder / f"{folder.stem}{suffix}").read_bytes()
        files[f"{WHO}.ds/{WHO}{suffix}"] = content if suffix in (".hc", ".eeg") else content + said
    if marker:
        where = "TRIAL NUMBER\t\tTIME FROM SYNC POINT (in seconds)\n                  +0\t\t\t\t     +0.1\n\n\n"
        of_one = f"CLASSGROUPID:\n3\nNAME:\n{marker}\nCOMMENT:\n{WHO}\nCOLOR:\nred\nEDITABLE:\nNo\nCLASSID:\n1\n"
        of_one += f"NUMBER OF SAMPLES:\n1\nLIST OF SAMPLES:\n{where}"
        files[f"{WHO}.ds/MarkerFile.mrk"] = (
            f"PATH OF DATASET:\n/data/{WHO}.ds\n\n\nNUMBER OF MARKERS:\n1\n\n\n{of_one}"
        ).encode()
    return zipped(files)


def kit(file: Path) -> bytes:
    """Return a KIT file whose comment and model are the person, in a zip under a name that says so too."""
    content = bytearray(file.read_bytes())
    (system,) = struct.unpack_from("<I", content, 16)
    struct.pack_into("<128s", content, system + 12 + 128, WHO.encode())
    struct.pack_into("<256s", content, system + 12 + 256 + 4, f"{WHO}, born 1987-06-05".encode())
    struct.pack_into("<2i", content, system + 12 + 256 + 4 + 256, DAY_S, DAY_S)
    return zipped({f"{WHO}_05.06.87.sqd": bytes(content)})


def bti(folder: Path) -> bytes:
    """Return a 4D BTi recording: the person is its site, its host and everybody who worked on it."""
    config = bytearray((folder / "config_linux").read_bytes())
    struct.pack_into(">32s16s", config, 2, WHO.encode(), WHO.encode())
    owners = [match.start() for match in re.finditer(b"yuval\x00", config)]
    for place in owners:
        struct.pack_into(">32s", config, place, WHO.encode())
        struct.pack_into(">i", config, place + 32, DAY_S)
    assert len(owners) >= 4
    return zipped(
        {
            f"{WHO}/1987-06-05/c,rfDC": (folder / "pdf_linux").read_bytes(),
            f"{WHO}/1987-06-05/config": bytes(config),
            f"{WHO}/1987-06-05/hs_file": (folder / "hs_linux").read_bytes(),
        }
    )


def mff(folder: Path) -> bytes:
    """Return an EGI folder of that day, with a file about the person."""
    files = {}
    for file in folder.iterdir():
        content = file.read_bytes()
        if file.suffix == ".xml":
            content = content.replace(b"2020-09-14T", b"1987-06-05T").replace(b"example_3", WHO.encode())
            content = content.replace(b"<label>category_1</label>", f"<label>{WHO}</label>".encode())
            content = content.replace(b"<name>User Events</name>", f"<name>{WHO}</name>".encode())
        files[f"{WHO}.mff/{file.name}"] = content
    field = '<field><name>{}</name><data dataType="string">{}</data></field>'
    person = "".join(field.format(name, value) for name, value in (("localIdentifier", WHO), ("birth", "1987-06-05")))
    files[f"{WHO}.mff/subject.xml"] = (
        '<?xml version="1.0" encoding="UTF-8"?><patient xmlns="http://www.egi.com/subject_mff">'
        f"<fields>{person}</fields></patient>"
    ).encode()
    return zipped(files)
