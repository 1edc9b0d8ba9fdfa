"""Torch files of UBP: EEG with names, times and sessions, MEG with neither."""

from pathlib import Path

import numpy as np
import pytest
import torch
from public_layouts import TEST_IMAGES, TIMES_301, TRAIN_IMAGES, all_blocks, numbered, whitened, write_ubp_eeg

from encoders.datasets.things_meg_sensors import things_meg_ch_names
from encoders.datasets.ubp import UbpEpochs
from encoders.sensors import THINGS_EEG2_CHANNELS


@pytest.mark.parametrize("n_listed", [300, 301])
def test_eeg(tmp_path: Path, n_listed: int) -> None:
    data = write_ubp_eeg(tmp_path / "sub-01", list(THINGS_EEG2_CHANNELS), TIMES_301[:n_listed])
    read = all_blocks(UbpEpochs(root=tmp_path).source())
    for name, images, n in (("train", TRAIN_IMAGES, 4), ("test", TEST_IMAGES, 8)):
        got, columns, blocks = read[f"sub-01_{name}"]
        np.testing.assert_allclose(got, data[name].reshape(-1, 63, 250).astype(np.float32) * 1e-5, rtol=1e-6)
        assert columns["image"] == [image for image in images for _ in range(n)]
        assert columns["session"] == [f"{i + 1:02d}" for i in range(4) for _ in range(n // 4)] * len(images)
        assert (blocks[0][0].sfreq, blocks[0][0].tmin) == (250.0, 0.0)


def write_meg(folder: Path, n_channels: int = 271) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    for name, images, n in (("train", TRAIN_IMAGES, 1), ("test", TEST_IMAGES, 12)):
        data = whitened(len(images), n, n_channels, 201).astype(np.float16)
        split = {"train": "training_images", "test": "test_images"}[name]
        paths = [f"{split}/{concept}/{file}" for concept, file in numbered(images)]
        torch.save({"eeg": data, "img": paths}, folder / f"{name}.pt", pickle_protocol=5)
    return data


def test_meg_has_the_sensors_of_things_meg(tmp_path: Path) -> None:
    data = write_meg(tmp_path / "sub-01")
    source = UbpEpochs(root=tmp_path, dataset="things_meg").source()
    assert source.dataset == "things_meg"
    got, columns, blocks = all_blocks(source)["sub-01_test"]
    np.testing.assert_allclose(got, data.reshape(-1, 271, 201).astype(np.float32) * 1e-14, rtol=1e-6)
    epochs = blocks[0][0]
    assert epochs.ch_names == things_meg_ch_names() and set(epochs.ch_types) == {"mag"}
    assert (epochs.sfreq, epochs.tmin) == (200.0, 0.0)
    assert columns["image"] == [image for image in TEST_IMAGES for _ in range(12)]


def test_meg_with_another_number_of_sensors_is_refused(tmp_path: Path) -> None:
    write_meg(tmp_path / "sub-01", 272)
    with pytest.raises(ValueError, match="neither ch_names nor times and 272 channels"):
        list(UbpEpochs(root=tmp_path).parts()[0].blocks())


def test_pictures_that_differ_within_a_condition_are_refused(tmp_path: Path) -> None:
    write_ubp_eeg(tmp_path / "sub-01", list(THINGS_EEG2_CHANNELS))
    images = np.full((18, 4), "a/a_01s.jpg")
    for img, reason in (
        (np.where(np.eye(18, 4) > 0, "b/b_01s.jpg", images), "have different"),
        (images[:3], "img has shape"),
    ):
        content = {"eeg": whitened(18, 4, 63, 250).astype(np.float16), "img": img}
        torch.save(content, tmp_path / "sub-01" / "train.pt", pickle_protocol=5)
        with pytest.raises(ValueError, match=reason):
            list(UbpEpochs(root=tmp_path).parts()[0].blocks())
