"""THINGS-EEG2 as 17 channels at 100 Hz and as 63 channels at 250 Hz, saved by numpy and by pickle."""

from pathlib import Path

import numpy as np
import pytest
from public_layouts import (
    EEG_17,
    TEST_IMAGES,
    TIMES_301,
    TRAIN_IMAGES,
    all_blocks,
    condition_dicts,
    write_condition_dicts,
    write_image_metadata,
)

from encoders.datasets.things_eeg2_epochs import ThingsEeg2Epochs
from encoders.sensors import THINGS_EEG2_CHANNELS

KINDS = {
    "17 channels": (EEG_17, np.arange(-20, 80) / 100, 100, 100.0, -0.2),
    "63 channels": (list(THINGS_EEG2_CHANNELS), TIMES_301, 250, 250.0, 0.0),
}


@pytest.mark.parametrize("form", ["numpy", "pickle"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_of_both_sets(tmp_path: Path, kind: str, form: str) -> None:
    ch_names, times, n_times, sfreq, tmin = KINDS[kind]
    contents = condition_dicts(ch_names, times, n_times, (4, 8))
    for subject in ("sub-01", "sub-02"):
        write_condition_dicts(tmp_path / subject, contents, form)
    write_image_metadata(tmp_path)
    source = ThingsEeg2Epochs(root=tmp_path).source()
    assert source.dataset == "things_eeg2"
    read = all_blocks(source)
    assert list(read) == ["sub-01_train", "sub-01_test", "sub-02_train", "sub-02_test"]
    for name, images, n, key in (("train", TRAIN_IMAGES, 4, "training"), ("test", TEST_IMAGES, 8, "test")):
        data, columns, blocks = read[f"sub-02_{name}"]
        expected = contents[key]["preprocessed_eeg_data"].reshape(-1, len(ch_names), n_times) * 1e-5
        np.testing.assert_allclose(data, expected, rtol=1e-6)
        epochs = blocks[0][0]
        assert (epochs.sfreq, epochs.tmin, epochs.subject) == (sfreq, tmin, "sub-02")
        assert list(epochs.ch_names) == ch_names and set(epochs.ch_types) == {"eeg"}
        assert np.isfinite(epochs.positions).all()
        assert columns["image"] == [image for image in images for _ in range(n)]
        assert columns["concept"] == [image.split("/")[0] for image in columns["image"]]
        assert set(columns["split"]) == {name} and set(columns["session"]) == {""}
        assert columns["repetition"] == list(range(n)) * len(images)
    assert not set(read["sub-01_train"][1]["concept"]) & set(read["sub-01_test"][1]["concept"])


def test_faults_are_named(tmp_path: Path) -> None:
    contents = condition_dicts(EEG_17, np.arange(-20, 80) / 100, 100, (4, 8))
    write_condition_dicts(tmp_path / "sub-01", contents, "pickle")
    with pytest.raises(ValueError, match="give either as 'images'"):
        ThingsEeg2Epochs(root=tmp_path).parts()
    write_image_metadata(tmp_path, TRAIN_IMAGES[:-1])
    with pytest.raises(ValueError, match="the train data has 18 conditions, .* lists 17 pictures"):
        list(ThingsEeg2Epochs(root=tmp_path).parts()[0].blocks())
    write_image_metadata(tmp_path)
    with pytest.raises(ValueError, match="preprocessed_eeg_training.npy: values vary by .* set unit to 'standard'"):
        list(ThingsEeg2Epochs(root=tmp_path, unit="SI").parts()[0].blocks())
    del contents["test"]["times"]
    write_condition_dicts(tmp_path / "sub-01", contents, "numpy")
    with pytest.raises(ValueError, match=r"lacks \['times'\]"):
        list(ThingsEeg2Epochs(root=tmp_path).parts()[1].blocks())
    (tmp_path / "sub-01" / "preprocessed_eeg_test.npy").unlink()
    with pytest.raises(ValueError, match="download both files of sub-01"):
        ThingsEeg2Epochs(root=tmp_path).parts()
