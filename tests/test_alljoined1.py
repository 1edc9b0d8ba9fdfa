"""Alljoined1: FIF per person and session, picture numbers as triggers."""

from pathlib import Path

import mne
import numpy as np
import pytest
from public_layouts import all_blocks

from encoders.datasets.alljoined1 import Alljoined1


def write(file: Path, codes: list[int], stim: bool = True) -> None:
    data = 1e-5 * np.random.default_rng(0).standard_normal((5, 512 * 20))
    data[4] = 0
    for i, code in enumerate(codes):
        data[4, 512 + 512 * i : 512 + 512 * i + 50] = code
    info = mne.create_info(["O1", "Oz", "Pz", "Cz", "Status"], 512.0, ["eeg"] * 4 + ["stim" if stim else "misc"])
    mne.io.RawArray(data, info, verbose="error").save(file, verbose="error")


def test_sessions_and_pictures(tmp_path: Path) -> None:
    write(tmp_path / "subj04_session1_eeg.fif", [5, 7, 5, 20_000])
    write(tmp_path / "subj04_session2_eeg.fif", [5, 960])
    write(tmp_path / "subj05_session2_eeg.fif", [960])
    read = all_blocks(Alljoined1(root=tmp_path).source())
    assert list(read) == ["subj04_session1", "subj04_session2", "subj05_session2"]
    _, columns, blocks = read["subj04_session1"]
    assert columns["image"] == ["subj04/0005", "subj04/0007", "subj04/0005"] and columns["repetition"] == [0, 0, 1]
    assert read["subj04_session2"][1]["image"] == ["shared/0005", "shared/0960"]
    assert set(columns["split"]) == {""} and set(columns["session"]) == {"1"}
    epochs = blocks[0][0]
    assert epochs.ch_names == ("O1", "Oz", "Pz", "Cz") and epochs.sfreq == 256.0 and epochs.tmin < -0.04
    assert len(Alljoined1(root=tmp_path, subjects=("subj05",)).parts()) == 1


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected some"):
        Alljoined1(root=tmp_path).parts()
    write(tmp_path / "subj04_session1_eeg.fif", [5], stim=False)
    with pytest.raises(ValueError, match="has no stimulus channel"):
        list(Alljoined1(root=tmp_path).parts()[0].blocks())
    with pytest.raises(ValueError, match=r"expected \['subj09'\]"):
        Alljoined1(root=tmp_path, subjects=("subj09",)).parts()
