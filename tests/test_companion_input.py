import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import hostile_matlab
import mne
import numpy as np
import pytest
from hostile_files import Canary
from recording_samples import samples
from scipy.io import savemat

from encoders.epochs import EpochsMismatch
from encoders.readers import read_epochs

SFREQ = 200.0
NAMES = ("Fp1", "Cz", "Pz", "O1")


def pack(path: Path, *files: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    return path


def write_brainvision(folder: Path) -> Path:
    pytest.importorskip("pybv")
    raw = mne.io.RawArray(np.ones((4, 1600)) * 1e-5, mne.create_info(list(NAMES), SFREQ, "eeg"), verbose="error")
    raw.set_annotations(mne.Annotations([3.0], [0.0], ["dog"]))
    parts = folder / "parts"
    parts.mkdir()
    mne.export.export_raw(parts / "x.vhdr", raw, verbose="error")
    return parts


def test_brainvision_header_may_not_point_elsewhere(tmp_path: Path) -> None:
    header = write_brainvision(tmp_path) / "x.vhdr"
    secret = tmp_path / "secret.eeg"
    shutil.copy(tmp_path / "parts" / "x.eeg", secret)
    for name in ("../secret.eeg", str(secret), "..\\secret.eeg", "C:secret.eeg"):
        text = header.read_text().replace("DataFile=x.eeg", f"DataFile={name}")
        (tmp_path / "evil.vhdr").write_text(text)
        with pytest.raises(EpochsMismatch, match="another folder"):
            read_epochs(pack(tmp_path / "evil.zip", tmp_path / "evil.vhdr", tmp_path / "parts" / "x.vmrk"))
        decoy = text.replace("[Common Infos]", "[Decoy]\nDataFile=x.eeg\n[Common Infos]")
        (tmp_path / "evil.vhdr").write_text(decoy)
        with pytest.raises(EpochsMismatch, match="another folder"):
            read_epochs(
                pack(tmp_path / "evil.zip", tmp_path / "evil.vhdr", *sorted((tmp_path / "parts").iterdir())[::2])
            )


def test_brainvision_without_its_data_file(tmp_path: Path) -> None:
    parts = write_brainvision(tmp_path)
    with pytest.raises(EpochsMismatch, match="data file 'x.eeg' is missing"):
        read_epochs(pack(tmp_path / "a.zip", parts / "x.vhdr", parts / "x.vmrk"))
    with pytest.raises(EpochsMismatch, match="is missing"):
        read_epochs(shutil.copy(parts / "x.vhdr", tmp_path / "alone"))


def test_eeglab_companion(tmp_path: Path) -> None:
    data = np.sin(np.arange(4 * 1600).reshape(4, 1600) / 50).astype("<f4")
    data.T.tofile(tmp_path / "x.fdt")
    eeg = {
        "setname": "x", "nbchan": 4, "trials": 1, "pnts": 1600, "srate": SFREQ, "xmin": 0.0, "xmax": 8.0,
        "chanlocs": np.rec.fromarrays([np.asarray(NAMES, dtype=object)], names=["labels"]),
        "event": np.rec.fromarrays([np.asarray(["dog", "cat"], object), [400.0, 900.0]], names=["type", "latency"]),
        "icawinv": [], "icasphere": [], "icaweights": [], "icaact": [],
        "chaninfo": {"icachansind": []}, "ref": "", "epoch": [], "urevent": [],
        "filename": "x.set", "filepath": "", "times": [], "icachansind": [],
    }  # fmt: skip
    savemat(tmp_path / "x.set", {"EEG": eeg | {"data": "x.fdt"}}, appendmat=False)
    epochs = read_epochs(pack(tmp_path / "x.zip", tmp_path / "x.set", tmp_path / "x.fdt"))
    assert epochs.stimulus == ("dog", "cat")
    np.testing.assert_allclose(epochs.data[0, :, 40], data[:, 399] * 1e-6, rtol=1e-4)
    with pytest.raises(EpochsMismatch, match=r"data file 'x.fdt' is missing"):
        read_epochs(pack(tmp_path / "y.zip", tmp_path / "x.set"))
    for name in ("../x.fdt", "/etc/x.fdt"):
        savemat(tmp_path / "x.set", {"EEG": eeg | {"data": name}}, appendmat=False)
        with pytest.raises(EpochsMismatch, match="another folder"):
            read_epochs(pack(tmp_path / "z.zip", tmp_path / "x.set", tmp_path / "x.fdt"))


def test_matlab_files_of_two_formats_are_refused_and_lead_to_no_other_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(np.random.default_rng(0).normal(scale=20, size=(1000, 63)).astype("<f4").tobytes())
    canary, path = Canary(secret, tmp_path / "mark"), tmp_path / "x.set"
    corpus = [*hostile_matlab.matlab5(canary, samples()), *hostile_matlab.hdf5(canary, samples())]
    cases = [case for case in corpus if re.search("as MATLAB 5|before HDF5|text of|beside|of one name", case.name)]
    assert len(cases) == 9
    for case in cases:
        path.write_bytes(case.content)
        with pytest.raises(EpochsMismatch, match="HDF5 file|MATLAB file"):
            read_epochs(path, onsets=[0.5])


def test_epochs_of_a_rapid_stream_are_named_by_the_event_at_zero(tmp_path: Path) -> None:
    eeg: dict[str, Any] = {
        "nbchan": 4, "trials": 2, "pnts": 100, "srate": SFREQ, "xmin": -0.1, "xmax": 0.395,
        "data": np.ones((4, 100, 2)),
        "chanlocs": np.rec.fromarrays([np.asarray(NAMES, dtype=object)], names=["labels"]), "chaninfo": {"x": 1},
        "event": np.rec.fromarrays(
            [np.asarray(["a", "b", "b", "c"], object), [10.0, 20.0, 110.0, 120.0], [1, 1, 2, 2]],
            names=["type", "latency", "epoch"],
        ),
    }  # fmt: skip
    table = np.empty(2, dtype=[("eventtype", object), ("eventlatency", object)])
    table[0] = (np.asarray(["a", "b"], object), np.asarray([-100.0, 0.0]))
    table[1] = (np.asarray(["b", "c"], object), np.asarray([0.0, 100.0]))
    savemat(tmp_path / "x.set", {"EEG": eeg | {"epoch": table}}, appendmat=False)
    epochs = read_epochs(tmp_path / "x.set")
    assert epochs.data.shape == (2, 4, 100)
    assert epochs.stimulus == ("b", "b")
