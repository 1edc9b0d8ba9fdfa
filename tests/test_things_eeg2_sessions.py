"""THINGS-EEG2 by sessions: pictures of two sessions keep counting their repetitions."""

import json
from pathlib import Path

import numpy as np
import pytest
from public_layouts import TEST_IMAGES, TRAIN_IMAGES, all_blocks, whitened, write_image_metadata

from encoders.datasets.things_eeg2_sessions import ThingsEeg2Sessions

TRAIN_CONDITIONS = np.array([np.arange(1, 10), np.arange(10, 19), np.arange(1, 10)[::-1], np.arange(10, 19)])


def write(root: Path) -> dict[str, np.ndarray]:
    folder = root / "sub-01"
    folder.mkdir(parents=True)
    conditions = {"training": TRAIN_CONDITIONS, "test": np.tile(np.arange(1, 5), (4, 1))}
    data = {
        "training": whitened(4 * 9, 2, 3, 301).reshape(4, 9, 2, 3, 301),
        "test": whitened(4 * 4, 20, 3, 301).reshape(4, 4, 20, 3, 301),
    }
    for name, array in data.items():
        np.save(folder / f"preprocessed_eeg_{name}_sub-01.npy", array)
        np.save(folder / f"img_conditions_{name}_sub-01.npy", conditions[name])
    (folder / "meta.json").write_text(
        json.dumps({"ch_names": ["O1", "Oz", "stim"], "times": np.linspace(-0.2, 1.0, 301).tolist()})
    )
    write_image_metadata(root)
    return data


def test_sessions_conditions_and_repetitions(tmp_path: Path) -> None:
    data = write(tmp_path)
    read = all_blocks(ThingsEeg2Sessions(root=tmp_path).source())
    assert len(read) == 8
    for session in range(4):
        got, columns, blocks = read[f"sub-01_ses-{session + 1:02d}_train"]
        np.testing.assert_allclose(got, data["training"][session][:, :, :2].reshape(-1, 2, 301) * 1e-5, rtol=1e-6)
        assert columns["image"] == [TRAIN_IMAGES[k - 1] for k in TRAIN_CONDITIONS[session] for _ in range(2)]
        assert set(columns["session"]) == {f"{session + 1:02d}"}
        assert columns["repetition"] == ([0, 1] if session < 2 else [2, 3]) * 9
        assert (blocks[0][0].sfreq, blocks[0][0].tmin, blocks[0][0].ch_names) == (250.0, -0.2, ("O1", "Oz"))
    shown = [
        pair
        for name, (_, columns, _) in read.items()
        if name.endswith("test")
        for pair in zip(columns["image"], columns["repetition"], strict=True)
    ]
    assert sorted(shown) == sorted((image, i) for image in TEST_IMAGES for i in range(80))


def test_conditions_count_from_one(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "sub-01" / "img_conditions_training_sub-01.npy"
    np.save(file, TRAIN_CONDITIONS - 1)
    with pytest.raises(ValueError, match="the train data has 17 conditions"):
        list(ThingsEeg2Sessions(root=tmp_path).parts()[0].blocks())
    np.save(file, np.where(TRAIN_CONDITIONS == 1, 0, TRAIN_CONDITIONS))
    with pytest.raises(ValueError, match="has condition 0, expected numbers from 1"):
        list(ThingsEeg2Sessions(root=tmp_path).parts()[0].blocks())
