"""Formats of single vendors as files or zips, through the same door as all others, and the list of them."""

import json
import struct
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hostile_parts import mff_events
from hostile_vendors import chunk, hidden_entity

from encoders.epochs import EpochsMismatch
from encoders.formats import FORMATS
from encoders.readers import read_epochs
from serving.cli import main

WINDOW = {"onsets": [0.15], "tmin": -0.05, "tmax": 0.1}
NAMES = ("Fp1", "Cz", "Oz")


def packed(target: Path, files: dict[str, Path]) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in files.items():
            archive.write(file, name)
    return target


def folder_zip(folder: Path, target: Path) -> Path:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return packed(target, {str(file.relative_to(folder.parent)): file for file in files})


def test_kit(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "formats" / "kit"
    alone = read_epochs(folder / "kit157.sqd", **WINDOW)
    assert alone.data.shape == (1, 157, 151) and set(alone.ch_types) == {"mag"}
    files = {file.name: file for file in folder.glob("kit157*")}
    with_markers = read_epochs(packed(tmp_path / "upload", files), **WINDOW)
    np.testing.assert_array_equal(with_markers.data, alone.data)
    (tmp_path / "lie").write_bytes((folder / "kit157.sqd").read_bytes()[:400_000])
    with pytest.raises(EpochsMismatch, match="KIT file points beyond"):
        read_epochs(tmp_path / "lie", **WINDOW)


def test_egi_raw(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "formats" / "egi" / "egi256.raw"
    assert read_epochs(file, **WINDOW).data.shape == (1, 256, 38)
    content = bytearray(file.read_bytes())
    for offset, value in ((22, -1), (22, 32000), (20, 0), (20, -250), (30, 2**15 - 1)):
        struct.pack_into(">h", content, offset, value)
        (tmp_path / "upload").write_bytes(content)
        with pytest.raises(EpochsMismatch):
            read_epochs(tmp_path / "upload", **WINDOW)
        content = bytearray(file.read_bytes())


def test_mff(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "formats" / "egi" / "test_egi_evoked.mff"
    epochs = read_epochs(folder_zip(folder, tmp_path / "upload"), onsets=[0.008], tmin=-0.004, tmax=0.004)
    assert epochs.data.shape == (1, 252, 3) and epochs.sfreq == 250.0
    copy = tmp_path / "copy.mff"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    outside = b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><epochs>&b;</epochs>'
    for content in (outside, *(hidden_entity(encoding) for encoding in ("UTF-7", "UTF-16", "cp037"))):
        (copy / "epochs.xml").write_bytes(content)
        with pytest.raises(EpochsMismatch, match="declares entities"):
            read_epochs(folder_zip(copy, tmp_path / "entities"), **WINDOW)
    (copy / "epochs.xml").write_bytes((folder / "epochs.xml").read_bytes())
    events = (copy / "Events_User Events.xml").read_bytes()
    for n, n_kinds in ((40_000, 1), (3000, 2000)):
        (copy / "Events_User Events.xml").write_bytes(mff_events(n, n_kinds))
        with pytest.raises(EpochsMismatch, match="events or 1000 kinds"):
            read_epochs(folder_zip(copy, tmp_path / "events"), **WINDOW)
    (copy / "Events_User Events.xml").write_bytes(events)
    (copy / "Signal1.BIN").write_bytes((folder / "signal1.bin").read_bytes())
    for name in ("signal1.bin", "signal2.bin"):
        (copy / name).write_bytes((folder / name).read_bytes()[:-400])
        with pytest.raises(EpochsMismatch, match="cut short"):
            read_epochs(folder_zip(copy, tmp_path / "cut"), **WINDOW)
        (copy / name).write_bytes((folder / name).read_bytes())


def test_bti(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "formats" / "bti" / "linux"
    files = {file.name: file for file in folder.iterdir()}
    epochs = read_epochs(packed(tmp_path / "upload", files), **WINDOW)
    assert epochs.data.shape == (1, 248, 154) and set(epochs.ch_types) == {"mag"}
    del files["config_linux"]
    with pytest.raises(EpochsMismatch, match="no file in the zip"):
        read_epochs(packed(tmp_path / "without", files), **WINDOW)


def test_ctf_with_a_real_header(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "formats" / "hostile" / "ctf_no_data.ds"
    header = (source / "ctf_no_data.res4").read_bytes()
    n_samples, n_channels = struct.unpack_from(">ih", header, 1288)
    folder = tmp_path / "person.ds"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name.replace("ctf_no_data", "person")).write_bytes(file.read_bytes())
    counts = np.random.default_rng(0).integers(-1000, 1000, (n_channels, n_samples)).astype(">i4")
    (folder / "person.meg4").write_bytes(b"MEG41CP\x00" + counts.tobytes())
    (folder / "hz.ds").mkdir()
    (folder / "hz.ds" / "hz.res4").write_bytes(header)  # what the scanner leaves of its head coil measurement
    epochs = read_epochs(folder_zip(folder, tmp_path / "upload"), **WINDOW)
    assert set(epochs.ch_types) >= {"mag"} and epochs.n_channels > 200
    markers = (folder / "MarkerFile.mrk").read_bytes()
    for content in (b"", markers[: len(markers) // 2]):
        (folder / "MarkerFile.mrk").write_bytes(content)
        with pytest.raises(EpochsMismatch, match="marker file of the CTF folder ends"):
            read_epochs(folder_zip(folder, tmp_path / "markers"), **WINDOW)
    (folder / "MarkerFile.mrk").write_bytes(markers)
    for name in ("person.pos", "BadChannels"):
        content = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_bytes(b"a 1 2 3\n" * 50_000)
        with pytest.raises(EpochsMismatch, match="more than 10000 lines"):
            read_epochs(folder_zip(folder, tmp_path / "lines"), **WINDOW)
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(EpochsMismatch, match=r"CTF data \(.meg4\) holds 0 bytes"):
        read_epochs(folder_zip(source, tmp_path / "empty"), **WINDOW)
    with pytest.raises(EpochsMismatch, match="whole .ds folder"):
        read_epochs(folder / "person.meg4", **WINDOW)
    (folder / "recording.res4").write_bytes(b"JUNK" + header[4:])
    with pytest.raises(EpochsMismatch, match="two recordings"):
        read_epochs(folder_zip(folder, tmp_path / "two"), **WINDOW)
    (folder / "recording.res4").unlink()
    (folder / "person.res4").rename(folder / "person.RES4")
    (folder / "person.res4").write_bytes(b"JUNK" + header[4:])
    with pytest.raises(EpochsMismatch, match="not named .res4"):
        read_epochs(folder_zip(folder, tmp_path / "decoy"), **WINDOW)


ONE = struct.pack("<I", 1)


def xdf(*, labels: tuple[str, ...] = NAMES, unit: str = "microvolts", rate: str = "100", extra: bytes = b"") -> bytes:
    """Return three seconds of three channels and two markers, as LabRecorder writes them."""
    channels = "".join(f"<channel><label>{name}</label><unit>{unit}</unit></channel>" for name in labels)
    head = '<?xml version="1.0"?><info><name>s</name>'
    eeg = f"{head}<type>EEG</type><channel_count>3</channel_count><nominal_srate>{rate}</nominal_srate>"
    eeg += f"<channel_format>float32</channel_format><desc><channels>{channels}</channels></desc></info>"
    marks = f"{head}<type>Markers</type><channel_count>1</channel_count><nominal_srate>0</nominal_srate>"
    marks += "<channel_format>string</channel_format><desc/></info>"
    one, two = struct.pack("<I", 1), struct.pack("<I", 2)
    content = b"XDF:" + chunk(1, b'<?xml version="1.0"?><info><version>1.0</version></info>')
    content += chunk(2, one + eeg.encode()) + chunk(2, two + marks.encode()) + extra
    waves = 10.0 * np.arange(1, 4) * np.sin(np.arange(300) / 15)[:, None]
    samples = b"".join(b"\x08" + struct.pack("<d3f", 10 + i / 100, *wave) for i, wave in enumerate(waves))
    content += chunk(3, one + b"\x04" + struct.pack("<I", 300) + samples)
    events = ((11.0, b"dog"), (12.0, b"cat"))
    texts = b"".join(b"\x08" + struct.pack("<d", at) + b"\x01\x03" + text for at, text in events)
    return content + chunk(3, two + b"\x01\x02" + texts)


def test_xdf(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(xdf())
    epochs = read_epochs(tmp_path / "upload", tmin=-0.1, tmax=0.2)
    assert epochs.ch_names == NAMES and epochs.stimulus == ("dog", "cat")
    expected = 20e-6 * np.sin(np.arange(90, 121) / 15)
    np.testing.assert_allclose(epochs.data[0, 1], expected, atol=1e-8)


@pytest.mark.parametrize(("step_s", "sound"), [(7.0, True), (20.0, False)])
def test_xdf_samples_without_a_time_come_one_step_after_the_last(
    step_s: float, sound: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stretches = (
        b"\x08" + struct.pack("<d3f", 10 - step_s * number, 0, 0, 0) + (b"\x00" + bytes(12)) * 699
        for number in (3, 2, 1)
    )
    earlier = b"".join(chunk(3, ONE + b"\x04" + struct.pack("<I", 700) + stretch) for stretch in stretches)
    (tmp_path / "upload").write_bytes(xdf(extra=earlier))
    monkeypatch.setattr("encoders.xdf_chunks.MAX_BREAKS", 1)  # the first time of all is one
    with nullcontext() if sound else pytest.raises(EpochsMismatch, match="breaks in its time"):
        assert read_epochs(tmp_path / "upload", tmin=-0.1, tmax=0.2).n_epochs == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (xdf(labels=("Fp1",)), "names 1 of its 3 channels"),
        (xdf(labels=("a", "b", "")), "names 2 of its 3 channels"),
        (xdf(unit="bananas"), "units"),
        (xdf(rate="nan"), "samples per second"),
        (xdf(rate="-5"), "samples per second"),
        (xdf(rate="1e300"), "samples per second"),
        (xdf()[:-10], "damaged"),
        (xdf(extra=b"\x08" + b"\xff" * 8), "damaged"),
        (xdf(extra=chunk(3, b"\x09\x00\x00\x00\x01\x01")), "does not describe"),
        (xdf(extra=chunk(2, b"\x03\x00\x00\x00<!DOCTYPE a>")), "declares entities"),
        (xdf(extra=chunk(1, hidden_entity("UTF-7"))), "declares entities"),
        (xdf(extra=b"\x01\x00" * 1000), "damaged"),
        (xdf(extra=chunk(4, ONE + bytes(16) + chunk(5, b""))), "damaged"),
        (xdf(extra=chunk(4, ONE + bytes(15))), "damaged"),
        (xdf(extra=chunk(3, ONE + b"\x01\x01\x00" + bytes(12) + chunk(5, b""))), "damaged"),
        (xdf(extra=chunk(3, ONE + b"\x01\x01\x00" + bytes(11))), "damaged"),
        (xdf(extra=chunk(3, ONE + b"\x01\x01\x05" + bytes(20))), "damaged"),
        (xdf(extra=chunk(3, struct.pack("<I", 2) + b"\x01\x01\x00\x01\x03do")), "damaged"),
        (xdf(extra=chunk(6, ONE + b"<info>")), "damaged"),
        (xdf(extra=chunk(2, struct.pack("<I", 3) + b"<name/>")), "not described by <info>"),
        (xdf(extra=chunk(2, ONE + b"<info/>")), "a stream twice"),
        (xdf(extra=chunk(4, ONE + struct.pack("<2d", 1, np.nan))), "not finite"),
        (xdf(extra=b"".join(chunk(4, ONE + struct.pack("<2d", -i, 0)) for i in range(60))), "set anew"),
        (b"XDF:" + bytes(100), "damaged"),
    ],
)
def test_xdf_that_lies(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(content)
    with pytest.raises(EpochsMismatch, match=message):
        read_epochs(tmp_path / "upload")


def test_real_xdf_without_channel_names_is_told_what_to_do(shared_data: Path) -> None:
    for name in ("minimal", "eeglab_test"):
        with pytest.raises(EpochsMismatch, match="write labels"):
            read_epochs(shared_data / "formats" / "xdf" / f"{name}.xdf", **WINDOW)


def test_the_list_of_formats(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["formats", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == [entry.name for entry in FORMATS]
    for entry in entries:
        assert (entry["send"] and entry["checks"] and entry["tested_with"]) if entry["supported"] else entry["advice"]
    assert main(["formats"]) == 0
    printed = capsys.readouterr().out
    assert all(entry["name"] in printed for entry in entries) and "SNIRF" in printed


def test_snirf_is_refused_for_what_it_is(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "x.snirf", "w") as file:
        file.create_group("nirs")
    with pytest.raises(EpochsMismatch, match="SNIRF, which holds optical"):
        read_epochs(tmp_path / "x.snirf")
