import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import mne
import numpy as np
import pytest

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.formats import FORMATS
from encoders.readers import read_epochs

SFREQ, ONSETS = 200.0, (2.0, 3.5, 5.0)
NAMES = ("Fp1", "Cz", "Pz", "O1")


def recording(annotated: bool = True) -> mne.io.BaseRaw:
    """Eight seconds of four channels; channel k is a slow sine of (k + 1) * 10 uV."""
    times = np.arange(round(8 * SFREQ)) / SFREQ
    scale = (np.arange(len(NAMES)) + 1)[:, None] * 1e-5
    raw = mne.io.RawArray(
        scale * np.sin(2 * np.pi * times)[None], mne.create_info(list(NAMES), SFREQ, "eeg"), verbose="error"
    )
    raw.set_montage("colin27_1005", verbose="error")
    if annotated:
        raw.set_annotations(mne.Annotations(ONSETS, [0.0] * 3, ["dog", "cat", "dog"]))
    return raw


def write_fif(raw: mne.io.BaseRaw, folder: Path) -> Path:
    raw.save(folder / "x_raw.fif", verbose="error")
    return folder / "x_raw.fif"


def write_fif_gz(raw: mne.io.BaseRaw, folder: Path) -> Path:
    (folder / "upload").write_bytes(gzip.compress(write_fif(raw, folder).read_bytes()))
    return folder / "upload"


def write_edf(raw: mne.io.BaseRaw, folder: Path) -> Path:
    mne.export.export_raw(folder / "x.edf", raw, verbose="error")
    return folder / "x.edf"


def write_bdf(raw: mne.io.BaseRaw, folder: Path) -> Path:
    edfio = pytest.importorskip("edfio")
    signals = [
        edfio.BdfSignal(row * 1e6, SFREQ, label=name, physical_dimension="uV", physical_range=(-99, 99))
        for row, name in zip(raw.get_data(), NAMES, strict=True)
    ]
    notes = [edfio.EdfAnnotation(a["onset"], None, a["description"]) for a in raw.annotations]
    edfio.Bdf(signals, annotations=notes).write(folder / "x.bdf")
    return folder / "x.bdf"


def write_set(raw: mne.io.BaseRaw, folder: Path) -> Path:
    pytest.importorskip("eeglabio")
    mne.export.export_raw(folder / "x.set", raw, verbose="error")
    return folder / "x.set"


def write_brainvision(raw: mne.io.BaseRaw, folder: Path) -> Path:
    pytest.importorskip("pybv")
    parts = folder / "parts"
    parts.mkdir()
    mne.export.export_raw(parts / "x.vhdr", raw, verbose="error")
    return pack(folder / "x.zip", *sorted(parts.iterdir()))


def pack(path: Path, *files: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f"session/{file.name}")
    return path


Writer = Callable[[mne.io.BaseRaw, Path], Path]
WRITERS: list[Writer] = [write_fif, write_fif_gz, write_edf, write_bdf, write_set, write_brainvision]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", ["keep", "recording.dat", "x.fif", "upload"])
def test_format_is_found_by_content(write: Writer, name: str, tmp_path: Path) -> None:
    path = write(recording(), tmp_path)
    if name != "keep":
        (tmp_path / "renamed").mkdir()
        path = path.rename(tmp_path / "renamed" / name)
    epochs = read_epochs(path, tmin=-0.2, tmax=0.6)
    assert epochs.ch_names == NAMES
    assert set(epochs.ch_types) == {"eeg"}
    assert epochs.sfreq == SFREQ
    assert epochs.tmin == pytest.approx(-0.2)
    assert [text.split("/")[-1] for text in epochs.stimulus] == ["dog", "cat", "dog"]
    for onset, epoch in zip(ONSETS, epochs.data, strict=True):
        expected = np.sin(2 * np.pi * (onset + epochs.times)) * (np.arange(4) + 1)[:, None] * 1e-5
        np.testing.assert_allclose(epoch, expected, atol=5e-8)


@pytest.mark.parametrize("write", WRITERS)
def test_onsets_of_the_caller_replace_missing_events(write: Writer, tmp_path: Path) -> None:
    path = write(recording(annotated=False), tmp_path)
    with pytest.raises(EpochsMismatch, match="continuous and has no events"):
        read_epochs(path)
    epochs = read_epochs(path, onsets=[1.0, 4.0])
    assert epochs.data.shape == (2, 4, 241)


def cut_recording() -> mne.BaseEpochs:
    events, event_id = mne.events_from_annotations(recording(), verbose="error")
    return mne.Epochs(recording(), events, event_id, -0.1, 0.7, baseline=None, preload=True, verbose="error")


def test_epoched_eeglab(tmp_path: Path) -> None:
    pytest.importorskip("eeglabio")
    cut_recording().export(tmp_path / "x.set", verbose="error")
    epochs = read_epochs(tmp_path / "x.set")
    assert epochs.data.shape == (3, 4, 161)
    assert epochs.tmin == pytest.approx(-0.1)
    assert epochs.stimulus == ("dog", "cat", "dog")  # the second dog is in the cat's epoch too


def test_epochs_fif_and_npz_agree(tmp_path: Path) -> None:
    cut_recording().save(tmp_path / "x-epo.fif", verbose="error")
    from_fif = read_epochs(tmp_path / "x-epo.fif")
    from_fif.save(tmp_path / "x.npz")
    (tmp_path / "x.npz").rename(tmp_path / "blob")
    from_npz = read_epochs(tmp_path / "blob")
    np.testing.assert_array_equal(from_fif.data, from_npz.data)
    assert from_fif.stimulus == from_npz.stimulus == ("dog", "cat", "dog")


def test_one_recording_in_a_zip(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", write_edf(recording(), tmp_path))
    assert read_epochs(path).n_epochs == 3


def test_onsets_for_cut_data_have_no_effect_and_are_refused(tmp_path: Path) -> None:
    cut_recording().save(tmp_path / "x-epo.fif", verbose="error")
    with pytest.raises(EpochsMismatch, match="already cut"):
        read_epochs(tmp_path / "x-epo.fif", onsets=[1.0])


def test_two_recordings_in_a_zip_are_refused(tmp_path: Path) -> None:
    write_fif(recording(), tmp_path)
    write_edf(recording(), tmp_path)
    with pytest.raises(EpochsMismatch, match="2 recordings"):
        read_epochs(pack(tmp_path / "x.zip", tmp_path / "x_raw.fif", tmp_path / "x.edf"))


def test_companions_alone_are_refused(tmp_path: Path) -> None:
    write_brainvision(recording(), tmp_path)
    with pytest.raises(EpochsMismatch, match="marker file"):
        read_epochs(pack(tmp_path / "y.zip", tmp_path / "parts" / "x.vmrk", tmp_path / "parts" / "x.eeg"))


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    edfio = pytest.importorskip("edfio")
    row = np.sin(np.arange(1600) / 20) * 50
    edfio.Edf([edfio.EdfSignal(row, SFREQ, label="Cz", physical_dimension="uV") for _ in range(2)]).write(
        tmp_path / "x.edf"
    )
    with pytest.raises(EpochsMismatch, match="Cz.* more than once"):
        read_epochs(tmp_path / "x.edf", onsets=[2.0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no known recording format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "no known recording format"),
        (b"Version 3.0\x00" + bytes(1000), "Neuroscan"),
        (b"time,Fp1,Fp2\n" * 20, "text table"),
        (b"\x1f\x8b" + bytes(100), "gzip is damaged"),
        (b"PK\x03\x04" + bytes(100), "damaged"),
        (b"0       " + b" " * 300, "number of signals"),
        (b"\xffBIOSEMI" + b" " * 300, "number of signals"),
        (b"MATLAB 5.0 MAT-file" + bytes(300), "MATLAB file is damaged"),
        (b"\x89HDF\r\n\x1a\n" + bytes(300), "HDF5 file is damaged"),
        (b"Brain Vision Data Exchange Header File Version 1.0\n", "names no data file"),
    ],
)
def test_refusals_are_plain(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(content)
    with pytest.raises(EpochsMismatch, match=message) as caught:
        read_epochs(tmp_path / "upload")
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EpochsMismatch, match="not a file"):
        read_epochs(tmp_path)


@pytest.mark.parametrize("write", [write_fif, write_edf, write_set, write_brainvision])
def test_damaged_files_never_raise_anything_else(write: Writer, tmp_path: Path) -> None:
    content = write(recording(), tmp_path).read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(12):
        damaged = bytearray(content)
        for at in rng.integers(0, min(len(content), 4000), size=3):
            damaged[at] = rng.integers(0, 256)
        (tmp_path / "upload").write_bytes(damaged if trial % 3 else content[: rng.integers(10, len(content))])
        try:
            read_epochs(tmp_path / "upload")
        except EpochsMismatch as error:
            assert str(tmp_path) not in str(error)


def test_every_format_has_a_reader_or_advice() -> None:
    assert all(file_format.read or file_format.advice for file_format in FORMATS)
    assert len({file_format.name for file_format in FORMATS}) == len(FORMATS)


def test_real_files_end_as_epochs_or_a_reason(shared_data: Path) -> None:
    read: dict[str, SignalEpochs] = {}
    for path in sorted((shared_data / "formats").rglob("*")):
        if path.is_file() or path.suffix in (".ds", ".mff"):
            for onsets in (None, [0.21]):
                try:
                    read[path.name] = read_epochs(path, onsets=onsets, tmin=-0.05, tmax=0.1, l_freq=0.1, h_freq=40.0)
                except EpochsMismatch as error:
                    assert len(str(error)) > 30
                    assert str(shared_data) not in str(error)
    wanted = (
        "stim_events.bdf bv.vhdr faces_seg.vhdr latin1_old.vhdr exported_linux_raw.fif ctf275_comp_raw.fif edf139ch.edf"
    )
    wanted += (
        " edfplus_markers.edf eeglab_data.set epochs.set raw_onefile.set n400_32ch-epo.fif evoked_4cond-ave.fif.gz"
    )
    wanted += " evoked_as_4epochs-epo.fif biosemi72.bdf uneven_sfreq.edf"
    assert set(wanted.split()) <= set(read)
    assert set(read["evoked_4cond-ave.fif.gz"].ch_types) == {"eeg", "mag", "grad"}


@pytest.mark.parametrize(
    "files",
    [
        ["eeglab/eeglab_data.set", "eeglab/eeglab_data.fdt"],
        ["brainvision/bv.vhdr", "brainvision/test.vmrk", "brainvision/test.eeg"],
        ["brainvision/faces_seg.vhdr", "brainvision/bv_segexport_bin.vmrk", "brainvision/bv_segexport_bin.dat"],
    ],
)
def test_real_recordings_of_several_files_in_a_zip(files: list[str], shared_data: Path, tmp_path: Path) -> None:
    path = pack(tmp_path / "upload", *(shared_data / "formats" / file for file in files))
    direct = read_epochs(shared_data / "formats" / files[0])
    np.testing.assert_array_equal(read_epochs(path).data, direct.data)
