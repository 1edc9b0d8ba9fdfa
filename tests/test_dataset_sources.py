"""Every layout is known by name, has few options, and refuses a folder that it does not understand."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from public_layouts import TEST_IMAGES, all_blocks, write_image_metadata, write_ubp_eeg
from pydantic import ValidationError
from test_things_eeg2_raw import write as write_raw

from encoders.dataset_sources import SOURCES, open_source
from encoders.sensors import THINGS_EEG2_CHANNELS


@pytest.mark.parametrize("name", SOURCES)
def test_each_layout(name: str, tmp_path: Path) -> None:
    fields = SOURCES[name].model_fields
    assert "root" in fields and len(fields) <= 12
    source = open_source(name, tmp_path)
    assert source.dataset and pickle.loads(pickle.dumps(source)).dataset == source.dataset
    with pytest.raises(ValueError, match=str(tmp_path)):
        source.parts()
    with pytest.raises(ValidationError, match="extra_forbidden"):
        open_source(name, tmp_path, colour="red")


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown layout 'x' of a data set; known are \['things_eeg2_raw'"):
        open_source("x", tmp_path)


def test_two_layouts_of_one_set_agree_on_pictures_and_channels(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw")
    write_ubp_eeg(tmp_path / "ubp" / "sub-01", list(THINGS_EEG2_CHANNELS))
    raw = all_blocks(open_source("things_eeg2_raw", tmp_path / "raw"))
    ubp = all_blocks(open_source("ubp", tmp_path / "ubp"))
    images = [{i for n, (_, c, _) in read.items() if n.endswith("test") for i in c["image"]} for read in (raw, ubp)]
    assert images[0] == images[1] == set(TEST_IMAGES)
    assert raw["sub-01_ses-01_test"][2][0][0].ch_names == ubp["sub-01_test"][2][0][0].ch_names


def test_options_reach_the_layout(tmp_path: Path) -> None:
    write_raw(tmp_path / "a")
    images = write_image_metadata(tmp_path / "b")
    (tmp_path / "a" / "image_metadata.npy").unlink()
    source = open_source("things_eeg2_raw", str(tmp_path / "a"), images=images, tmax=0.5, sfreq=100.0, h_freq=40.0)
    epochs, _ = next(iter(source.parts()[0].blocks()))
    assert epochs.n_times == 70 and np.isfinite(epochs.data).all()
