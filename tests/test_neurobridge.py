"""Arrays of five axes and an info.json, of NeuroBridge and SAMGA."""

from pathlib import Path

import numpy as np
import pytest
from public_layouts import TEST_IMAGES, TRAIN_IMAGES, all_blocks, write_image_folders, write_neurobridge

from encoders.datasets.neurobridge import NeurobridgeEpochs
from encoders.datasets.things_meg_sensors import things_meg_ch_names
from encoders.sensors import THINGS_EEG2_CHANNELS


def test_eeg(tmp_path: Path) -> None:
    data = write_neurobridge(tmp_path / "preprocessed_eeg", list(THINGS_EEG2_CHANNELS), 250, (4, 8))
    write_image_folders(tmp_path / "images_set")
    read = all_blocks(NeurobridgeEpochs(root=tmp_path / "preprocessed_eeg").source())
    for name, images, n in (("train", TRAIN_IMAGES, 4), ("test", TEST_IMAGES, 8)):
        got, columns, blocks = read[f"sub-01_{name}"]
        np.testing.assert_allclose(got, data[name].reshape(-1, 63, 250) * 1e-5, rtol=1e-6)
        assert columns["image"] == [image for image in images for _ in range(n)]
        assert (blocks[0][0].sfreq, blocks[0][0].tmin) == (250.0, 0.0)


def test_meg_names_of_sensors_lose_their_serial_number(tmp_path: Path) -> None:
    write_neurobridge(tmp_path, [f"{name}-1609" for name in things_meg_ch_names()], 20, (1, 12))
    write_image_folders(tmp_path)
    epochs = all_blocks(NeurobridgeEpochs(root=tmp_path, dataset="things_meg"))["sub-01_test"][2][0][0]
    assert epochs.ch_names == things_meg_ch_names() and set(epochs.ch_types) == {"mag"}


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="info.json does not exist"):
        NeurobridgeEpochs(root=tmp_path).parts()
    (tmp_path / "info.json").write_text("{}")
    with pytest.raises(ValueError, match="lacks ch_names or times"):
        NeurobridgeEpochs(root=tmp_path).parts()
    write_neurobridge(tmp_path, ["O1", "Oz"], 20, (1, 12))
    write_image_folders(tmp_path)
    np.save(tmp_path / "sub-01" / "train.npy", np.zeros((18, 1, 2, 20), np.float32))
    with pytest.raises(ValueError, match=r"has shape \(18, 1, 2, 20\), expected \(concepts, pictures"):
        list(NeurobridgeEpochs(root=tmp_path).parts()[0].blocks())
