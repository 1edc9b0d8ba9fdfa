"""Alljoined-1.6M: EDF with service channels, annotations with four fields, blocks of two splits."""

from pathlib import Path

import edfio
import numpy as np
import pytest
from public_layouts import all_blocks

from encoders.datasets.alljoined import Alljoined, read_block

ELECTRODES = ["Afz", "O1", "Oz", "Cz"]
SERVICE = ["TimestampS", "Counter", "CQ_O1", "EQ_O1", "MOT.Q0", "BatteryPercent", "MarkerHardware"]


def write(
    folder: Path, split: str, pictures: list[int], deleted: set[int] = frozenset(), texts: tuple = ()
) -> np.ndarray:  # type: ignore[assignment,type-arg]
    folder.mkdir(parents=True)
    data = np.random.default_rng(len(str(folder))).standard_normal((4, 256 * 48)) * 10
    signals = [
        edfio.EdfSignal(row, 256, label=name, physical_dimension="uV")
        for row, name in zip(data, ELECTRODES, strict=True)
    ]
    signals += [edfio.EdfSignal(np.arange(256.0 * 48), 256, label=name) for name in SERVICE]
    notes = [(1.0 + 0.3 * i, f"stim_{split},{p},{int(i in deleted)},{i}") for i, p in enumerate(pictures)]
    notes += [(0.5, "oddball,7,0,0"), (2.05, "behav,3,0,1"), *texts]
    annotations = [edfio.EdfAnnotation(onset, None, text) for onset, text in notes]
    edfio.Edf(signals, annotations=annotations).write(folder / "recording.edf")
    return data


def test_blocks_splits_channels_and_repetitions(tmp_path: Path) -> None:
    write(tmp_path / "sub-01" / "session_01" / "block_01", "test", [3, 4, 3])
    write(tmp_path / "sub-01" / "session_01" / "block_05", "train", [10, 11, 12, 10], deleted={1})
    write(tmp_path / "sub-01" / "session_02" / "block_05", "train", [10, 13])
    source = Alljoined(root=tmp_path).source()
    read = all_blocks(source)
    assert list(read) == ["sub-01_train", "sub-01_test"] and source.dataset == "alljoined_1.6m"
    data, columns, blocks = read["sub-01_train"]
    assert columns["image"] == ["00010.jpg", "00012.jpg", "00010.jpg", "00010.jpg", "00013.jpg"]  # 11 was deleted
    assert columns["repetition"] == [0, 0, 1, 2, 0]
    assert columns["session"] == ["01"] * 3 + ["02"] * 2 and set(columns["run"]) == {"05"}
    epochs = blocks[0][0]
    assert epochs.ch_names == ("AFz", "O1", "Oz", "Cz") and set(epochs.ch_types) == {"eeg"}
    assert (epochs.sfreq, epochs.tmin, epochs.n_times) == (250.0, pytest.approx(-0.2), 301)
    assert np.isfinite(epochs.positions).all()
    assert 2e-6 < data.std() < 2e-5  # the file has microvolt
    assert read["sub-01_test"][1]["image"] == ["00003.jpg", "00004.jpg", "00003.jpg"]


def test_onsets_are_those_of_the_annotations(tmp_path: Path) -> None:
    folder = tmp_path / "block_05"
    data = write(folder, "train", [1, 2])
    raw, samples, images = read_block(folder / "recording.edf", "train")
    assert samples.tolist() == [256, 333] and images == ("00001.jpg", "00002.jpg")
    np.testing.assert_allclose(raw.get_data(), data * 1e-6, atol=2e-9)


def test_annotations_that_are_not_understood_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", "test", [1])
    with pytest.raises(ValueError, match="in a block of the train split"):
        read_block(tmp_path / "a" / "recording.edf", "train")
    write(tmp_path / "b", "train", [1], texts=((3.0, "stim_train,x"),))
    with pytest.raises(ValueError, match="annotation 'stim_train,x' is not understood"):
        read_block(tmp_path / "b" / "recording.edf", "train")


def test_odd_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no folders sub-XX"):
        Alljoined(root=tmp_path).parts()
    write(tmp_path / "sub-01" / "session_01" / "block_x", "train", [1])
    with pytest.raises(ValueError, match="the folder 'block_x' has no number"):
        Alljoined(root=tmp_path).parts()
    (tmp_path / "sub-01" / "session_01" / "block_x" / "copy.edf").write_bytes(b"")
    with pytest.raises(ValueError, match="have several recordings"):
        Alljoined(root=tmp_path).parts()
